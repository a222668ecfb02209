"""Groups and rates that others change while a recipe's schedule runs."""

import pytest
import torch

from optimplug import Horizon, Recipe

PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 0, "factor": 0.5}
COSINE = {"name": "CosineAnnealingLR"}


def build(*schedule):
    recipe = {"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": list(schedule)}
    return Recipe.load(recipe).build(torch.nn.Linear(2, 2), Horizon(total_steps=4))


def join(optimizer, lr):
    optimizer.add_param_group({"params": [("late", torch.nn.Parameter(torch.ones(2)))], "lr": lr})


def step(optimizer, scheduler):
    optimizer.step()
    scheduler.step()
    return [group["lr"] for group in optimizer.param_groups]


def test_a_group_joins_before_a_validation():
    optimizer, scheduler = build(PLATEAU)
    join(optimizer, 0.1)
    for loss in (1.0, 2.0):
        scheduler.step_metric({"loss": loss})
    assert scheduler.get_last_lr() == [0.5, 0.05]


def test_a_rate_that_somebody_has_set_keeps_its_ratio_over_a_validation():
    optimizer, scheduler = build(PLATEAU)
    optimizer.param_groups[0]["lr"] = 0.3
    scheduler.step_metric({"loss": 1.0})
    assert scheduler.get_last_lr() == [0.3]
    scheduler.step_metric({"loss": 2.0})
    assert scheduler.get_last_lr() == [0.15]


@pytest.mark.parametrize("admitted", [False, True])
def test_a_group_has_its_own_rate_or_that_of_the_moment(admitted):
    optimizer, scheduler = build(COSINE)
    for _ in range(2):
        step(optimizer, scheduler)
    join(optimizer, 0.1)
    if admitted:
        scheduler.admit()
    before = [group["lr"] for group in optimizer.param_groups]
    after = step(optimizer, scheduler)
    assert before == pytest.approx([0.5, 0.1])
    # Its own: it is what the schedule scales. That of the moment: it has been scaled already.
    assert after[1] / after[0] == pytest.approx(0.2 if admitted else 0.1)


def test_where_nothing_is_left_of_a_rate_a_group_comes_with_its_own():
    optimizer, scheduler = build({"preset": "linear", "warmup": 2})
    assert optimizer.param_groups[0]["lr"] == 0.0
    join(optimizer, 0.1)
    scheduler.admit()
    assert step(optimizer, scheduler) == pytest.approx([0.5, 0.05])
