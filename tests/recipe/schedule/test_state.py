"""What a recipe's scheduler saves of hyperparameters other than the rate, and what a loaded one has."""

import copy

import pytest
import torch
from support.schedules import saved
from torch import nn

from optimplug import Horizon, Recipe, StateError

HORIZON = Horizon(total_steps=12)
DECAY = {"name": "LinearLR", "of": "weight_decay", "start_factor": 0.5, "for": 4}
BETAS = {"name": "LinearLR", "of": "betas", "start_factor": 0.9, "for": 4}
OWN = {"weight_decay": (0.1, 0.02), "betas": ((0.9, 0.99), (0.8, 0.95))}
PHASES = {"weight_decay": DECAY, "betas": BETAS}


def build(of, own=None):
    first, second = own or OWN[of]
    recipe = {
        "optimizer": {
            "name": "AdamW",
            "lr": 1.0,
            of: copy.copy(list(first)) if of == "betas" else first,
        },
        "groups": [{"match": "*bias", of: list(second) if of == "betas" else second}],
        "schedule": [PHASES[of], {"name": "CosineAnnealingLR"}],
    }
    return Recipe.load(recipe).build(torch.nn.Linear(2, 2), HORIZON)


def held(optimizer, of):
    return [group[of] for group in optimizer.param_groups]


def run(optimizer, scheduler, of, steps):
    found = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append((scheduler.get_last_lr(), held(optimizer, of)))
    return found


@pytest.mark.parametrize("of", OWN)
def test_the_groups_own_values_are_in_the_state(of):
    optimizer, scheduler = build(of)
    run(optimizer, scheduler, of, 3)
    assert sorted(scheduler.state_dict()["_initial"]) == [of]
    assert sorted(scheduler.state_dict()["_initial"][of]) == sorted(OWN[of])
    assert sorted(held(optimizer, of)) != sorted(OWN[of])


@pytest.mark.parametrize("order", ["optimizer first", "scheduler first", "scheduler alone"])
@pytest.mark.parametrize("of", OWN)
def test_a_resumed_run_goes_on_from_them_whatever_was_there(of, order):
    optimizer, scheduler = build(of)
    run(optimizer, scheduler, of, 3)
    states = saved(optimizer.state_dict()), saved(scheduler.state_dict())
    # Built with other values, in the order of the same groups.
    again, other = build(of, OWN[of][::-1])
    if order == "optimizer first":
        again.load_state_dict(states[0])
    other.load_state_dict(states[1])
    if order == "scheduler first":
        again.load_state_dict(states[0])
    assert held(again, of) == held(optimizer, of)
    assert held(again, f"initial_{of}") == held(optimizer, f"initial_{of}")
    assert run(again, other, of, 9) == run(optimizer, scheduler, of, 9)


@pytest.mark.parametrize("of", OWN)
def test_they_have_the_type_that_the_optimizer_has(of):
    optimizer, scheduler = build(of)
    kinds = {type(value) for value in held(optimizer, of)}
    state = scheduler.state_dict()
    state["_initial"][of] = [list(v) if of == "betas" else v for v in state["_initial"][of]]
    if of == "betas":  # as a file that knows no tuples has them
        with pytest.raises(StateError, match="_initial must be of the kind"):
            scheduler.load_state_dict(state)
    else:
        scheduler.load_state_dict(state)
    assert {type(value) for value in held(optimizer, f"initial_{of}")} == kinds


@pytest.mark.parametrize("of", OWN)
def test_a_state_with_fewer_than_there_are_groups_is_refused(of):
    optimizer, scheduler = build(of)
    state = scheduler.state_dict()
    state["_initial"][of].pop()
    before = copy.deepcopy(scheduler.state_dict()), held(optimizer, of)
    with pytest.raises(StateError, match=rf"_initial\['{of}'\] must hold 2 values"):
        scheduler.load_state_dict(state)
    assert (scheduler.state_dict(), held(optimizer, of)) == before


@pytest.mark.parametrize("missing", [[], ["weight_decay", "momentum"]])
def test_a_state_of_other_hyperparameters_is_refused(missing):
    _optimizer, scheduler = build("weight_decay")
    state = scheduler.state_dict()
    state["_initial"] = {name: [0.1, 0.1] for name in missing}
    with pytest.raises(StateError, match="_initial must be of the kind"):
        scheduler.load_state_dict(state)


@pytest.mark.parametrize("order", [("Adam", "SGD"), ("SGD", "Adam")], ids=" ".join)
@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
@pytest.mark.parametrize("optimizer_first", [True, False], ids=["", "schedule first"])
def test_a_schedule_of_momentum_gives_each_group_its_own_back(order, older, optimizer_first):
    settings = {"Adam": {"name": "Adam", "lr": 0.01}, "SGD": {"name": "SGD", "lr": 0.1}}
    settings["SGD"]["momentum"] = 0.9
    first, second = order
    recipe = Recipe(
        {
            "optimizer": settings[first],
            "groups": [{"match": "1.*", "optimizer": settings[second]}],
            "schedule": {
                "name": "LinearLR",
                "start_factor": 1,
                "end_factor": 0.5,
                "of": "momentum",
            },
        }
    )
    horizon = Horizon(total_steps=20, steps_per_epoch=10)
    start = [recipe.build(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), horizon) for _ in "12"]
    (optimizer, scheduler), again = start
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    states = [copy.deepcopy(each.state_dict()) for each in (optimizer, scheduler)]
    if older:  # those that had one, one after another
        _drop_none(states[1])
    pairs = list(zip(again, states, strict=True))
    for each, state in pairs if optimizer_first else reversed(pairs):
        each.load_state_dict(state)
    adam, sgd = (_group(again[0], name) for name in ("Adam", "SGD"))
    assert adam["betas"] == (0.9, 0.999)
    assert "initial_momentum" not in adam
    assert sgd["momentum"] == _group(optimizer, "SGD")["momentum"] < 0.8


def _group(optimizer, name):
    return next(group for group in optimizer.param_groups if group["optimizer"] == name)


def _drop_none(state):
    """Make every list of momentums in a state, and in the states in it, what it once was."""
    for key, value in state.items():
        if key == "_last_momentum":
            state[key] = [each for each in value if each is not None]
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                _drop_none(each)
