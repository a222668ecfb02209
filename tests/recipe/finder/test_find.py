"""A sweep over rates: what it does, and that all is as before after it."""

import copy
import math
import random

import numpy
import pytest
import torch
from support.processes import in_two_processes
from support.tensors import same_bits
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from optimplug import ArgumentError, Horizon, Recipe, find_lr

RECIPE = Recipe(
    {
        "optimizer": {"name": "AdamW", "lr": 0.01, "max_grad_norm": 1.0},
        "groups": [
            {"match": "0.*", "lr_scale": 0.5},
            {"match": "1.*", "freeze": True},
            {"match": "4.bias", "lr": 0.1, "freeze": {"until": "50%"}},
        ],
        "schedule": [{"name": "LinearLR", "start_factor": 0.1, "for": 4}],
    }
)


def net():
    """Layers with all that a forward may change: statistics, random numbers."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
    )


class Noisy(Dataset):
    """Rows that are another each time they are asked for, by every generator that there is."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        noise = [random.random(), float(numpy.random.rand()), torch.rand(()).item()]  # noqa: S311
        return torch.tensor([i, i % 2, 1.0]) / 10 + torch.tensor(noise)


def step_of(model):
    return lambda x: (model(x) - x.sum(1, True)).square().mean()


LOADERS = {
    "shuffled by the global generator": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "shuffled by its own": lambda: DataLoader(
        Noisy(), 4, shuffle=True, generator=torch.Generator()
    ),
    "weighted": lambda: DataLoader(
        Noisy(), 4, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 24, 24)
    ),
    "without batches": lambda: DataLoader(
        TensorDataset(torch.rand(12, 4, 3)), None, shuffle=True, collate_fn=lambda row: row[0]
    ),
    "a list": lambda: [torch.rand(4, 3) for _ in range(6)],
}


def seed():
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)


def trained(recipe, loader, found=False, updates=12):
    """The weights and buffers, and the losses, of a run, with or without a sweep before it."""
    model = net()
    seed()
    batches = loader()
    next(iter(batches))  # its generator is somewhere
    if found:
        find_lr(model, recipe, step_of(model), batches, updates=20)
    losses = []
    with recipe.start(model, Horizon(total_steps=updates)) as run:
        while len(losses) < updates:
            for batch in batches:
                loss = step_of(model)(batch)
                loss.backward()
                losses.append(loss.item())
                run.step()
    return model.state_dict(), losses, [random.random(), numpy.random.rand(), torch.rand(1).item()]  # noqa: S311


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_a_run_after_it_is_a_run_without_it(loader):
    with_it, without = trained(RECIPE, loader, found=True), trained(RECIPE, loader)
    assert with_it[1:] == without[1:]
    assert all(same_bits(with_it[0][key], without[0][key]) for key in without[0])


@pytest.mark.parametrize("name", ["ScheduleFreeAdamW", "SGD", "torch.optim.SGD", "Muon"])
def test_so_it_is_with_other_optimizers(name):
    fallback = {"fallback": {"name": "AdamW", "lr": 0.01}} if name == "Muon" else {}
    recipe = Recipe({"optimizer": {"name": name, "lr": 0.01, "max_grad_norm": 1.0, **fallback}})
    loader = LOADERS["shuffled by its own"]
    with_it, without = trained(recipe, loader, found=True), trained(recipe, loader)
    assert with_it[1:] == without[1:]
    assert all(same_bits(with_it[0][key], without[0][key]) for key in without[0])


def everything(model):
    """All that a sweep might leave otherwise."""
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        [id(p.grad) for p in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        [id(buffer) for buffer in model.buffers()],
    )


def same(one, other):
    return all(
        all(same_bits(a[k], b[k]) for k in b)
        if isinstance(b, dict)
        else same_bits(a, b)
        if isinstance(b, torch.Tensor)
        else a == b
        for a, b in zip(one, other, strict=True)
    )


def test_all_is_as_before_within_an_open_run():
    model = net()
    model[3].eval()
    with RECIPE.start(model, Horizon(total_steps=9)) as run:
        x = torch.rand(4, 3)
        step_of(model)(x).backward()
        before, rates = everything(model), [group["lr"] for group in run.optimizer.param_groups]
        state = copy.deepcopy(run.state_dict())
        find_lr(model, RECIPE, step_of(model), [x, x], updates=20)
        assert same(everything(model), before)
        assert [group["lr"] for group in run.optimizer.param_groups] == rates
        assert str(run.state_dict()) == str(state)
    assert all(p.requires_grad for p in model.parameters())  # what the run had frozen is released


@pytest.mark.parametrize("after", [0, 5])
def test_all_is_as_before_after_an_error(after):
    model, calls = net(), []

    def step(x):
        calls.append(x)
        if len(calls) > after:
            raise OSError("the disk is gone")
        return step_of(model)(x)

    before = everything(model)
    with pytest.raises(OSError, match="the disk is gone"):
        find_lr(model, RECIPE, step, [torch.rand(4, 3)])
    after_it = everything(model)
    # The random rows of this test itself are drawn before its model is asked.
    assert same(after_it, (*before[:4], after_it[4], *before[5:]))


def test_buffers_that_a_forward_replaces_or_makes_are_put_back():
    class Remembers(nn.Linear):
        def forward(self, x):
            self.seen = x.sum()
            self.register_buffer("made", x.clone(), persistent=False)
            return super().forward(x)

    model = Remembers(3, 1)
    model.register_buffer("seen", torch.zeros(()))
    kept = model.seen
    find_lr(
        model, Recipe({"optimizer": {"name": "SGD", "lr": 0.1}}), step_of(model), [torch.rand(4, 3)]
    )
    assert model.seen is kept
    assert kept == 0
    assert [name for name, _ in model.named_buffers()] == ["seen"]


def test_extra_state_is_put_back():
    class Counts(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

    model = Counts(3, 1)
    find_lr(
        model, Recipe({"optimizer": {"name": "SGD", "lr": 0.1}}), step_of(model), [torch.rand(4, 3)]
    )
    assert model.calls == 0


def test_all_groups_have_one_multiplier(monkeypatch):
    seen = []
    real = torch.optim.SGD.step

    def step(self, *args, **kwargs):
        seen.append([group["lr"] for group in self.param_groups])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    groups = [{"match": "bias", "lr_scale": 3}]
    recipe = Recipe(
        {
            "optimizer": {"name": "torch.optim.SGD", "lr": 0.01},
            "groups": groups,
            "schedule": "linear",
        }
    )
    model = nn.Linear(3, 1)
    curve = find_lr(
        model, recipe, step_of(model), [torch.rand(4, 3)], updates=21, lowest=0.01, highest=1
    )
    assert len(seen) == 21
    assert [rates[1] / rates[0] for rates in seen] == pytest.approx([3] * 21)
    assert [rates[0] / 0.01 for rates in seen] == pytest.approx(curve.multipliers)
    assert curve.multipliers == pytest.approx([10 ** (i / 10 - 2) for i in range(21)])
    assert curve.end == "whole"


def test_a_loss_belongs_to_the_update_before_it():
    # Of one weight under SGD, all losses are known.
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    recipe = Recipe({"optimizer": {"name": "SGD", "lr": 0.1}})
    curve = find_lr(
        model, recipe, lambda x: model(x).square().mean(), [torch.ones(1, 1)], updates=20, highest=1
    )
    weight, expected = 1.0, []
    for multiplier in curve.multipliers:
        weight -= 0.1 * multiplier * 2 * weight
        expected.append(weight**2)
    assert curve.start == 1.0
    assert curve.losses == pytest.approx(expected, rel=1e-5)


def test_accumulated_batches_are_one_update_of_their_mean():
    recipe, batches = Recipe({"optimizer": {"name": "SGD", "lr": 0.1}}), list(torch.rand(8, 4, 3))
    model = nn.Linear(3, 1)
    whole = find_lr(
        model, recipe, step_of(model), list(torch.stack(batches).view(4, 8, 3)), updates=20
    )
    parts = find_lr(model, recipe, step_of(model), batches, updates=20, accumulate=2)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)


def test_lengths_are_of_the_sweep_or_of_the_horizon():
    recipe = Recipe(
        {"optimizer": {"name": "ScheduleFreeAdamW", "lr": 0.01, "warmup_steps": "1 epoch"}}
    )
    model = nn.Linear(3, 1)
    with pytest.raises(
        ArgumentError, match=r"epochs need to know .*; give that of the run as horizon"
    ):
        find_lr(model, recipe, step_of(model), [torch.rand(4, 3)])
    curve = find_lr(model, recipe, step_of(model), [torch.rand(4, 3)], horizon=Horizon(100, 10))
    assert len(curve.points) > 20


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 30])
def test_a_loss_that_is_no_number_ends_it(bad, at):
    model, calls = nn.Linear(3, 1), []

    def step(x):
        calls.append(x)
        return step_of(model)(x) * (bad if len(calls) > at else 1.0)

    curve = find_lr(
        model, Recipe({"optimizer": {"name": "SGD", "lr": 1e-3}}), step, [torch.rand(4, 3)]
    )
    assert (curve.end, len(curve.points), len(calls)) == ("not finite", max(0, at - 1), at + 1)
    assert all(map(math.isfinite, curve.losses))
    assert all(p.isfinite().all() for p in model.parameters())
    if at < 10:
        with pytest.raises(ArgumentError, match="no rate is suggested: the loss is"):
            _ = curve.suggestion


def test_a_loss_that_diverges_ends_it():
    model = nn.Linear(3, 1)
    curve = find_lr(
        model, Recipe({"optimizer": {"name": "SGD", "lr": 1.0}}), step_of(model), [torch.rand(4, 3)]
    )
    assert curve.end == "diverged"
    assert len(curve.points) < 100
    assert 0.01 < curve.suggestion.multiplier < 2


def test_a_loss_below_0_diverges_too():
    weight = nn.Linear(1, 1, bias=False)
    nn.init.constant_(weight.weight, 2.0)

    def step(x):
        return (weight(x).square() - 10).mean()

    curve = find_lr(
        weight, Recipe({"optimizer": {"name": "SGD", "lr": 1.0}}), step, [torch.ones(1, 1)]
    )
    assert curve.end == "diverged"


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.rand(6, 3))


class Once(IterableDataset):
    def __iter__(self):
        return self

    def __next__(self):
        return torch.rand(3)


def test_a_stream_is_begun_anew():
    model = nn.Linear(3, 1)
    curve = find_lr(
        model,
        Recipe({"optimizer": {"name": "SGD", "lr": 0.1}}),
        step_of(model),
        DataLoader(Stream(), 4),
    )
    assert len(curve.points) > 20


BAD = {
    "too few updates": ({"updates": 19}, "updates must be an int >= 20"),
    "no multiplier": ({"lowest": 0}, "lowest must be a number > 0"),
    "no range": ({"lowest": 1, "highest": 1}, "highest must be a number > lowest"),
    "infinite": ({"highest": math.inf}, "highest must be a number > lowest"),
    "nothing diverges": ({"diverges": 1}, "diverges must be a number > 1"),
    "no batches in an update": ({"accumulate": 0}, "accumulate must be an int >= 1"),
    "no horizon": ({"horizon": 9}, "Horizon"),
    "an iterator": ({"batches": iter([1])}, "batches must be what gives them anew"),
    "a stream that is one": ({"batches": DataLoader(Once(), 4)}, "batches must be what gives them anew"),
    "no batches": ({"batches": []}, "batches must give at least one batch"),
    "nothing to iterate": ({"batches": 3}, "batches must be what gives them anew"),
    "no loss": ({"step": lambda _: None}, r"step must return the loss of a batch.*\(got None\)"),
    "a number": ({"step": lambda _: 0.5}, r"step must return the loss.*\(got 0.5\)"),
    "many losses": ({"step": lambda _: torch.ones(3, requires_grad=True)}, r"a tensor of \(3,\)"),
    "no gradient": ({"step": lambda _: torch.ones(())}, "without a gradient"),
    "a rate that only begins": ({"recipe": Recipe({"optimizer": {"name": "Rprop"}})}, "at its first step alone"),
    "a bad recipe": ({"recipe": {"optimizer": {"name": "SDG"}}}, "did you mean 'SGD'"),
    "a rate of its own": (
        {"recipe": Recipe({"optimizer": {"name": "Prodigy"}})},
        "Prodigy looks for its rate by itself",
    ),
    "a rate of its own under a rule": (
        {"recipe": Recipe({"optimizer": {"name": "AdamW"}, "groups": [
            {"match": "bias", "optimizer": {"name": "Prodigy"}}]})},
        "Prodigy looks for its rate by itself",
    ),
    "a rate that only begins under a rule": (
        {"recipe": Recipe({"optimizer": {"name": "AdamW"}, "groups": [
            {"match": "bias", "optimizer": {"name": "Rprop"}}]})},
        "Rprop takes lr at its first step alone",
    ),
    "a closure": ({"recipe": Recipe({"optimizer": {"name": "LBFGS"}})}, "needs a closure"),
    "torch's closure": (
        {"recipe": Recipe({"optimizer": {"name": "torch.optim.LBFGS"}})},
        "needs a closure",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_done_is_refused_and_changes_nothing(name):
    given, message = BAD[name]
    model = nn.Linear(3, 1)
    arguments = {
        "recipe": Recipe({"optimizer": {"name": "SGD", "lr": 0.1}}),
        "step": step_of(model),
        "batches": [torch.rand(4, 3)],
        **given,
    }
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        find_lr(model, **arguments)
    assert same(everything(model), before)


def halves(rank):
    """Of each batch of four rows, those of one of two processes."""
    generator = torch.Generator().manual_seed(3)
    whole = [torch.rand(4, 3, generator=generator) for _ in range(5)]
    return whole if rank is None else [batch[2 * rank : 2 * rank + 2] for batch in whole]


def swept(rank=None, wrap=lambda model: model):
    torch.manual_seed(2)
    model = wrap(nn.Linear(3, 1))
    before = [p.detach().clone() for p in model.parameters()]
    recipe = Recipe({"optimizer": {"name": "SGD", "lr": 1.0}})
    curve = find_lr(model, recipe, step_of(model), halves(rank))
    assert all(map(same_bits, model.parameters(), before))
    return {"losses": [curve.start, *curve.losses], "end": curve.end}


def swept_by_one_of_two():
    return swept(torch.distributed.get_rank(), nn.parallel.DistributedDataParallel)


@pytest.mark.slow
def test_two_processes_see_one_curve():
    alone, (one, other) = swept(), in_two_processes(swept_by_one_of_two)
    assert one == other
    assert one["end"] == alone["end"] == "diverged"
    assert len(one["losses"]) == len(alone["losses"])
    assert one["losses"] == pytest.approx(alone["losses"], rel=1e-3)
