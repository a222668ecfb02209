"""A schedule that moves on further than the run was said to be long, or faster than it updates."""

import warnings

import torch
from support.recipes import recipe_of
from torch import nn

from optimplug import Horizon

BEYOND = (
    "the schedule was laid out over 3 updates, and this is update 4: the phases are over, and the "
    "highest lr is now 0; give as Horizon.total_steps the updates of the whole run, those of all "
    "its epochs"
)
BESIDE = (
    "run.scheduler.step() is called beside run.step() or run.updated(), which move the schedule on "
    "by themselves: it has taken 1 steps more than there were updates, and ends too early; leave "
    "scheduler.step() out"
)
THREE = Horizon(total_steps=3)


def started(horizon=THREE, schedule="linear"):
    return recipe_of(schedule=[{"preset": schedule}] if schedule else []).start(
        nn.Linear(1, 1), horizon
    )


def backward(run):
    run.model(torch.ones(1, 1)).sum().backward()


def by_run(run):
    backward(run)
    run.step()


def by_both(run):
    by_run(run)
    run.scheduler.step()


def said(run, update, times):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            update(run)
    return [str(warning.message) for warning in caught]


def test_the_first_update_beyond_the_horizon_is_told():
    run = started()
    assert said(run, by_run, 3) == []
    assert said(run, by_run, 3) == [BEYOND]


def test_so_it_is_after_a_state_of_the_end_is_loaded():
    run, other = started(), started()
    said(run, by_run, 3)
    other.load_state_dict(run.state_dict())
    assert said(other, by_run, 1) == [BEYOND]


def test_a_rate_that_never_changes_has_no_end():
    assert said(started(schedule=None), by_run, 5) == []


def test_a_run_of_unknown_length_has_no_end():
    phase = {"name": "LinearLR", "start_factor": 0.5, "for": 2}
    run = recipe_of(schedule=[phase]).start(nn.Linear(1, 1), Horizon())
    assert said(run, by_run, 5) == []


def test_a_schedule_laid_anew_has_an_end_of_its_own():
    run = started()
    said(run, by_run, 3)
    run.schedule_over(THREE)
    assert said(run, by_run, 3) == []
    assert said(run, by_run, 1) == [BEYOND]


def test_steps_of_the_schedule_beside_the_runs_are_told_once():
    run = started(Horizon(total_steps=100))
    assert said(run, by_both, 4) == [BESIDE]


def test_a_state_that_is_loaded_is_no_step():
    run, other = started(Horizon(total_steps=100)), started(Horizon(total_steps=100))
    said(run, by_run, 4)
    state = run.state_dict()
    assert said(other, by_run, 1) == []
    other.load_state_dict(state)
    other.scheduler.go_to(5)
    assert said(other, by_run, 1) == []
