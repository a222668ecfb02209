"""Groups whose weights stay as they are until some update."""

import io
import itertools

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from optimplug import Horizon, Recipe, RecipeError
from optimplug.recipe import RecipeScheduler

HALVE = {"name": "ExponentialLR", "gamma": 0.5}
RULE = {"match": "0.*", "freeze": {"until": 5}}
ADAM = {"name": "AdamW", "lr": 0.1, "weight_decay": 0.5, "max_grad_norm": 1.0}


def build(schedule, groups, optimizer=()):
    recipe = {"optimizer": {"name": "SGD", "lr": 1.0, **dict(optimizer)}}
    recipe |= {"groups": groups, "schedule": schedule}
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    return (model, *Recipe.load(recipe).build(model, Horizon(total_steps=12, steps_per_epoch=4)))


def run(model, optimizer, scheduler, start=0, stop=12):
    """Return the weights of both layers before every update."""
    seen = []
    for t in range(start, stop):
        seen.append([p.detach().clone() for p in model.parameters()])
        generator = torch.Generator().manual_seed(t)
        optimizer.zero_grad()
        model(torch.randn(3, 2, generator=generator)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return seen


def test_weights_and_state_do_not_move_until_then():
    model, optimizer, scheduler = build([HALVE], [RULE], ADAM)
    seen = run(model, optimizer, scheduler)
    for before, after in itertools.pairwise(seen[:6]):
        assert all(map(torch.equal, before[:2], after[:2]))
        assert not torch.equal(before[2], after[2])
    assert not torch.equal(seen[5][0], seen[6][0])
    assert optimizer.state[model[0].weight]["step"] == 12 - 5
    assert model[0].weight.requires_grad  # as data parallelism needs it from the start


@pytest.mark.parametrize("name", ["AdamW", "torch.optim.AdamW"])
@pytest.mark.parametrize("by_name", [True, False])
def test_a_closure_that_computes_them_anew_changes_nothing(name, by_name):
    model, optimizer, scheduler = build([HALVE], [RULE], {"name": name})
    batch = torch.randn(3, 2)

    def closure():
        optimizer.zero_grad()
        loss = model(batch).square().sum()
        loss.backward()
        return loss

    before = model[0].weight.detach().clone()
    for t in range(6):
        assert torch.equal(model[0].weight, before), t
        loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert loss.requires_grad
        scheduler.step()
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_after_a_resume_as_well(stop):
    whole = run(*build([HALVE], [RULE], ADAM))
    model, optimizer, scheduler = build([HALVE], [RULE], ADAM)
    run(model, optimizer, scheduler, 0, stop)
    saved = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], saved)
    saved.seek(0)
    states = torch.load(saved, weights_only=True)
    again = build([HALVE], [RULE], ADAM)
    for part, state in zip(again, states, strict=True):
        part.load_state_dict(state)
    rest = run(*again, stop, 12)
    for a, b in zip(whole[stop:], rest, strict=True):
        assert all(map(torch.equal, a, b))


def test_a_distributed_checkpoint_finds_all_state_to_load_into():
    model, optimizer, _ = build([HALVE], [RULE], ADAM)
    before = [p.detach().clone() for p in model.parameters()]
    state = get_optimizer_state_dict(model, optimizer)["state"]
    assert state.keys() == dict(model.named_parameters()).keys()
    assert all(map(torch.equal, before, model.parameters()))


def test_a_first_update_at_rate_0_leaves_their_state_alone():
    warm = {"preset": "linear", "warmup": 4}
    model, optimizer, scheduler = build(warm, [RULE], ADAM)
    assert scheduler.get_last_lr() == [0.0, 0.0]
    run(model, optimizer, scheduler, 0, 1)
    assert set(optimizer.state) == set(model[1].parameters())


def test_a_second_scheduler_takes_over():
    model, optimizer, scheduler = build([HALVE], [RULE], ADAM)
    other = RecipeScheduler(optimizer, scheduler._run_schedule)
    seen = run(model, optimizer, other)
    assert not torch.equal(seen[5][0], seen[6][0])


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ("2 epoch s", r"groups\[0\].freeze.*until: must be"),
        ("20 steps", r"groups\[0\].freeze.until: .* longer than the run of 12"),
    ],
)
def test_what_cannot_be(until, message):
    with pytest.raises(RecipeError, match=message):
        build([], [{"match": "0.*", "freeze": {"until": until}}])


def test_closing_a_scheduler_thaws_and_leaves_no_trace():
    model, optimizer, scheduler = build([HALVE], [RULE], ADAM)
    before = model[0].weight.detach().clone()
    scheduler.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not [name for name in vars(optimizer) if "recipe" in name]
    run(model, optimizer, scheduler, 0, 1)
    assert not torch.equal(before, model[0].weight)


def test_closing_an_older_scheduler_leaves_the_newer_ones_freeze():
    model, optimizer, scheduler = build([HALVE], [RULE], ADAM)
    newer = RecipeScheduler(optimizer, scheduler._run_schedule)
    scheduler.close()
    seen = run(model, optimizer, newer)
    assert torch.equal(seen[0][0], seen[5][0])
    assert not torch.equal(seen[5][0], seen[6][0])
