import copy
import io

import pytest
import torch
from torch import nn

from optimplug import ArgumentError, Horizon, Recipe, RecipeError, Run, StateError

UPDATES = 8
HORIZON = Horizon(total_steps=UPDATES, steps_per_epoch=4)
RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 0.1, "max_grad_norm": 1.0},
    "groups": [
        {"match": "0.*", "freeze": {"until": 3}},
        {"match": "1.bias", "freeze": True},
        {"match": "*bias", "weight_decay": 0},
    ],
    "schedule": [
        {"name": "LinearLR", "start_factor": 0.1, "for": 3},
        {"name": "ReduceLROnPlateau", "monitor": "eval_loss", "patience": 0, "factor": 0.5},
    ],
}
LOSSES = [5.0, 4.0, 6.0, 7.0, 3.0, 3.0, 8.0, 1.0]


def started(recipe=RECIPE):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return Recipe.load(recipe).start(model, HORIZON)


def update(run, t):
    run.model(torch.full((2, 3), float(t + 1))).square().sum().backward()
    run.step()
    run.validated({"eval_loss": LOSSES[t]})


def what_is(run):
    weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    return {"weights": weights, **copy.deepcopy(run.state_dict())}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_run_does_what_build_and_a_loop_do():
    run = started()
    other = started()
    optimizer, scheduler = Recipe.load(RECIPE).build(other.model, HORIZON)
    for t in range(UPDATES):
        update(run, t)
        other.model(torch.full((2, 3), float(t + 1))).square().sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        scheduler.step_metric({"eval_loss": LOSSES[t]})
    by_hand = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    weights = dict(other.model.named_parameters())
    assert same(what_is(run), {"weights": weights, **by_hand})


@pytest.mark.parametrize("stop", range(UPDATES + 1))
def test_a_resumed_run_equals_the_uninterrupted_one(stop):
    whole = started()
    for t in range(stop):
        update(whole, t)
    resumed = started()
    resumed.model.load_state_dict(copy.deepcopy(whole.model.state_dict()))
    resumed.load_state_dict(through_file(whole.state_dict()))
    for t in range(stop, UPDATES):
        update(whole, t)
        update(resumed, t)
    assert same(what_is(whole), what_is(resumed))


def test_torch_takes_its_parts_for_its_own():
    run = started()
    assert isinstance(run, Run)
    assert isinstance(run.optimizer, torch.optim.Optimizer)
    assert isinstance(run.scheduler, torch.optim.lr_scheduler.LRScheduler)


def test_two_phases_make_the_same_run_as_one():
    one, two = started(), started()
    two.close()
    run = Run(two.recipe, two.model)
    assert run.horizon is None
    with pytest.raises(ArgumentError, match=r"call run.schedule_over\(horizon\)"):
        run.scheduler  # noqa: B018
    run.schedule_over(HORIZON)
    for t in range(UPDATES):
        update(one, t)
        update(run, t)
    assert same(what_is(one), what_is(run))


def test_a_horizon_that_does_not_fit_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(RecipeError, match="longer than the run"):
        Recipe.load(RECIPE).start(model, Horizon(total_steps=2))
    assert all(p.requires_grad for p in model.parameters())


def test_another_optimizer_is_refused():
    run = started()
    before = what_is(run)
    stranger = torch.optim.SGD(run.model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match="must be the run's own"):
        run.schedule_over(HORIZON, stranger)
    assert same(before, what_is(run))


BAD_STATES = {
    "nothing": ({}, "the keys"),
    "no mapping": ([], "list"),
    "a part": ({"optimizer": {}}, "'optimizer'"),
    "no optimizer": (lambda s: {**s, "optimizer": {}}, "'state'"),
    "bad optimizer": (lambda s: {**s, "optimizer": 3}, "does not fit AdamW"),
    "no groups": (
        lambda s: {**s, "optimizer": {**s["optimizer"], "param_groups": []}},
        "different number of parameter groups",
    ),
    "bad schedule": (lambda s: {**s, "scheduler": 3}, "must be a dict"),
    "other schedule": (
        lambda s: {**s, "scheduler": {**s["scheduler"], "fingerprint": "x"}},
        "another schedule",
    ),
    "bad clock": (lambda s: {**s, "scheduler": {**s["scheduler"], "last_epoch": -5}}, "last_epoch"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_bad_state_changes_nothing(name):
    bad, message = BAD_STATES[name]
    run = started()
    for t in range(4):
        update(run, t)
    other = started()
    update(other, 0)
    before = what_is(other)
    with pytest.raises(StateError, match=message):
        other.load_state_dict(bad(run.state_dict()) if callable(bad) else bad)
    assert same(before, what_is(other))


def test_after_close_nothing_of_the_run_is_left():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    asks = [p.requires_grad for p in model.parameters()]
    bare = Recipe.load({**RECIPE, "groups": [], "schedule": []}).build_optimizer(model)
    with Recipe.load(RECIPE).start(model, HORIZON) as run:
        update(run, 0)
        assert [p.requires_grad for p in model.parameters()] != asks
    assert [p.requires_grad for p in model.parameters()] == asks
    assert vars(run.optimizer).keys() == vars(bare).keys()
    for hooks in (key for key in vars(run.optimizer) if key.endswith("_hooks")):
        assert not vars(run.optimizer)[hooks]
    run.close()
    with pytest.raises(ArgumentError, match="the run is closed"):
        run.step()
