"""A state that nothing could have saved is refused, or loaded; there is no other error."""

import copy
import random

import pytest
import torch
from support.mutations import mutated
from support.resuming import RECIPE, changed, started, state_of, stopped

from optimplug import ArgumentError, StateError
from optimplug.recipe.checkpoint.file import read_file

RECIPES = {
    "ours": RECIPE,
    "torch's": changed(optimizer={"name": "torch.optim.AdamW"}),
    "schedule-free": {
        "optimizer": {"name": "ScheduleFreeAdamW", "lr": 0.1, "max_grad_norm": 1.0},
        "groups": [{"match": "head.*", "optimizer": {"name": "AdamW", "lr": 0.1}}],
    },
}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def count_refused(recipe, policy, count, seed):
    state = state_of(stopped(recipe))
    source, refused = random.Random(seed), 0  # noqa: S311 (no secret)
    run = started(recipe)
    for i in range(count):
        bad = mutated(state, source)
        before = copy.deepcopy(run.state_dict())
        try:
            run.load_state_dict(bad, resume=policy)
            run = started(recipe)
        except StateError:
            refused += 1
            assert same(run.state_dict(), before), i
    return refused


@pytest.mark.parametrize("policy", ["exact", "adapt"])
@pytest.mark.parametrize("name", RECIPES)
def test_mutations(name, policy):
    assert 10 < count_refused(RECIPES[name], policy, 60, 0) < 60


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["exact", "adapt"])
@pytest.mark.parametrize("name", RECIPES)
def test_many_mutations(name, policy):
    assert count_refused(RECIPES[name], policy, 1700, 1) > 400


@pytest.mark.parametrize("t", [False, -1, 1.5, "3"])
def test_a_schedule_is_nowhere_else_after_a_count_that_is_none(t):
    scheduler = started(RECIPE).scheduler
    before = copy.deepcopy(scheduler.state_dict())
    with pytest.raises(ArgumentError, match="t must be an int >= 0"):
        scheduler.adopt(t, was_told=True, was_told_of_training=True)
    assert same(scheduler.state_dict(), before)


def test_false_is_no_number_of_updates():
    state = state_of(stopped(RECIPE))
    state["scheduler"]["last_epoch"] = False
    run = started(RECIPE)
    run.load_state_dict(state, resume="adapt")
    assert run.scheduler.last_epoch == 0


def test_a_damaged_file_is_refused_or_read(tmp_path):
    file, source = tmp_path / "run.pt", random.Random(2)  # noqa: S311 (no secret)
    torch.save(stopped(RECIPE).state_dict(), file)
    good, refused = file.read_bytes(), 0
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(source.randint(1, 20)):
            bad[source.randrange(len(bad))] = source.randrange(256)
        file.write_bytes(bad[: source.choice([len(bad), source.randrange(len(bad))])])
        try:
            (saved,) = read_file(file).values()
            started(RECIPE).go_on_from(saved)
        except StateError:
            refused += 1
    assert 50 < refused < 150
