"""States of torch's own optimizers, with names and without, and of wrapped models."""

import copy

import pytest
import torch
from support.resuming import HORIZON, UPDATES, Net, gradients, moments, started, through_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from optimplug import Recipe, StateError

RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 0.1},
    "groups": [{"match": "*bias", "weight_decay": 0, "lr_scale": 2}],
    "schedule": "cosine",
}


def plain(model, params, updates=UPDATES, cls=torch.optim.AdamW, **settings):
    """Train with torch's own optimizer; return its state, and the moments by plain names."""
    optimizer = cls(params, lr=0.1, **settings)
    for t in range(updates):
        gradients(model, t)
        optimizer.step()
    inner = getattr(model, "module", getattr(model, "_orig_mod", model))
    kept = {
        n: copy.deepcopy(optimizer.state[p])
        for n, p in inner.named_parameters()
        if p in optimizer.state
    }
    return through_file(optimizer.state_dict()), kept


def by_type(model):
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    return [{"params": weights}, {"params": biases, "weight_decay": 0.0}]


class AroundOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return self.net(x)


def same(run, kept):
    own = moments(run.optimizer)
    return own.keys() == kept.keys() and all(
        torch.equal(own[n][k], torch.as_tensor(kept[n][k])) for n in own for k in kept[n]
    )


NOTE = "matched by their order, in which all shapes agree"
SOURCES = {
    "names": (Net, lambda m: m.named_parameters(), None),
    "no names": (Net, lambda m: m.parameters(), NOTE),
    "groups by type": (Net, by_type, NOTE),
    "wrapped": (lambda: nn.DataParallel(Net()), lambda m: m.named_parameters(), None),
    "compiled": (
        lambda: torch.compile(Net(), backend="eager"),
        lambda m: m.named_parameters(),
        None,
    ),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("ours", ["AdamW", "Adam", "torch.optim.AdamW"])
def test_torchs_state_goes_on_with_its_moments(name, ours):
    build, params, note = SOURCES[name]
    model = build()
    state, kept = plain(model, params(model))
    recipe = {**RECIPE, "optimizer": {"name": ours, "lr": 0.1}}
    run = started(recipe)
    found = run.load_state_dict(state, resume="adapt")
    assert same(run, kept)
    assert len(found.moved) == 4
    assert [n for n in found.notes if note and note in n] or not note
    # The schedule goes on from the update that the moments have counted.
    fresh = started(recipe)
    fresh.scheduler.go_to(UPDATES)
    assert found.update == UPDATES
    assert run.scheduler.get_last_lr() == fresh.scheduler.get_last_lr()
    for t in range(UPDATES, 12):
        gradients(run.model, t)
        run.step()


def test_exact_says_that_order_is_no_name():
    state, _ = plain(model := Net(), by_type(model))
    with pytest.raises(StateError, match=r"names +none +matched by their order +adapt"):
        started(RECIPE).load_state_dict(state)


def test_a_state_of_torch_distributed_has_names_for_numbers():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for t in range(UPDATES):
        gradients(model, t)
        optimizer.step()
    state = through_file(get_optimizer_state_dict(model, optimizer))
    kept = {n: optimizer.state[p] for n, p in model.named_parameters()}
    run = started(RECIPE)
    found = run.load_state_dict(state, resume="adapt")
    assert same(run, kept)
    assert not found.notes


def test_all_parameters_may_have_moved_into_a_module():
    state, kept = plain(model := Net(), model.named_parameters())
    run = Recipe(RECIPE).start(AroundOne(), HORIZON)
    found = run.load_state_dict(state, resume="adapt")
    assert same(run, {f"net.{name}": state for name, state in kept.items()})
    assert found.notes == ("'net.' stands before every name now",)


@pytest.mark.parametrize("named", [True, False])
def test_what_is_new_and_what_is_gone(named):
    class Other(Net):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 5)  # for other classes
            self.extra = nn.Linear(2, 2, bias=False)

    model = Net()
    state, kept = plain(model, model.named_parameters() if named else model.parameters())
    run = started(RECIPE, Other())
    if not named:
        with pytest.raises(
            StateError, match=r"no names .* groups have \[4\] parameters, and no order"
        ):
            run.load_state_dict(state, resume="adapt")
        assert not run.optimizer.state
        return
    found = run.load_state_dict(state, resume="adapt")
    assert {*found.moved} == {"body.weight", "body.bias"}
    assert found.new == ("extra.weight",)
    assert found.dropped == {
        "head.weight": "exp_avg of head.weight has the shape (2, 4), the parameter (5, 4)",
        "head.bias": "exp_avg of head.bias has the shape (2,), the parameter (5,)",
    }
    assert same(run, {name: kept[name] for name in found.moved})


def test_shapes_that_disagree_are_no_order():
    model = Net()
    state, _ = plain(model, [*model.parameters()][::-1])
    with pytest.raises(StateError, match=r"cannot be matched by their order: .* has the shape"):
        started(RECIPE).load_state_dict(state, resume="adapt")


def test_parameters_without_gradients_were_given_or_not():
    for given in (True, False):
        model = Net()
        model.body.requires_grad_(False)
        params = [p for p in model.parameters() if given or p.requires_grad]
        state, kept = plain(model, params)
        other = Net()
        other.body.requires_grad_(False)
        recipe = {**RECIPE, "groups": []}
        run = started(recipe, other)
        found = run.load_state_dict(state, resume="adapt")
        own = moments(run.optimizer)
        assert {n for n in own if "head" in n} == {*kept}
        assert all(torch.equal(own[n]["exp_avg"], kept[n]["exp_avg"]) for n in kept)
        assert found.update == UPDATES


def test_of_what_counts_nothing_the_schedule_stays_where_it_is():
    model = Net()
    state, _ = plain(model, model.named_parameters(), cls=torch.optim.SGD, momentum=0.9)
    recipe = {**RECIPE, "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9}}
    found = started(recipe).load_state_dict(state, resume="adapt")
    assert found.update == 0
    assert found.notes == (
        "the checkpoint does not say how many updates there were: the schedule is at 0",
    )
    assert len(found.moved) == 4


def test_torchs_optimizers_are_not_given_what_they_could_not_go_on_from():
    state, _ = plain(model := Net(), model.named_parameters())
    recipe = {**RECIPE, "optimizer": {"name": "torch.optim.AdamW", "lr": 0.1, "amsgrad": True}}
    run = started(recipe)
    with pytest.raises(StateError, match=r"has no max_exp_avg_sq.* leave out amsgrad"):
        run.load_state_dict(state, resume="adapt")
    assert not run.optimizer.state
    recipe["optimizer"]["name"] = "AdamW"
    run = started(recipe)
    run.load_state_dict(state, resume="adapt")
    gradients(run.model, 6)
    run.step()


def test_peft_is_no_part_of_a_name():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["body"], modules_to_save=["head"], r=2)
    state, kept = plain(model := Net(), model.named_parameters())
    run = started({**RECIPE, "groups": []}, peft.get_peft_model(Net(), config))
    found = run.load_state_dict(state, resume="adapt")
    assert {n.rpartition(".")[2] for n in found.moved} == {"weight", "bias"}
    assert all("modules_to_save" in name for name in found.moved)
    assert all("lora" in name for name in found.new)
    own = moments(run.optimizer)
    assert torch.equal(
        own["base_model.model.head.modules_to_save.default.weight"]["exp_avg"],
        kept["head.weight"]["exp_avg"],
    )


@pytest.mark.parametrize("policy", ["exact", "adapt"])
def test_lbfgs_keeps_one_state_for_all_parameters_in_their_order(policy):
    recipe = {"optimizer": {"name": "LBFGS", "lr": 0.1}}

    def go(run, updates):
        for _ in range(updates):
            batch = torch.ones(2, 3)

            def closure(run=run, batch=batch):
                run.optimizer.zero_grad()
                loss = run.model(batch).square().sum()
                loss.backward()
                return loss

            run.step(closure)

    first = started(recipe)
    go(first, 2)
    again = started(recipe)
    again.model.load_state_dict(first.model.state_dict())
    again.load_state_dict(through_file(copy.deepcopy(first.state_dict())), resume=policy)
    go(first, 2)
    go(again, 2)
    for p, q in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)

    class Reversed(Net):
        def __init__(self):
            super().__init__()
            body, head = self.body, self.head
            del self.body, self.head
            self.head, self.body = head, body

    run = started(recipe, Reversed())
    with pytest.raises(StateError, match="LBFGS keeps one state for all parameters"):
        run.load_state_dict(first.state_dict(), resume=policy)
    assert not run.optimizer.state
