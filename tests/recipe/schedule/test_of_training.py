"""Plateaus that follow what the training reports, in the absence of validations."""

import copy
from contextlib import ExitStack

import jsonschema
import pytest
import torch
from torch import nn

from optimplug import ArgumentError, Horizon, Recipe, RecipeError, StateError
from optimplug.recipe import build_scheduler
from optimplug.recipe.json_schema import json_schema

HORIZON = Horizon(total_steps=12, steps_per_epoch=4)
OF_TRAINING = {
    "name": "ReduceLROnPlateau",
    "monitor": "loss",
    "of_training": True,
    "patience": 0,
    "factor": 0.5,
}
BY_VALIDATION = {**OF_TRAINING, "monitor": "eval_loss", "of_training": False}
WARM_UP = {"name": "ConstantLR", "factor": 0.1, "for": 2}


def recipe_of(*schedule, **more):
    optimizer = {"name": "AdamW", "lr": 1.0, "weight_decay": 0.1}
    return Recipe.load({"optimizer": optimizer, "schedule": list(schedule), **more})


def started(*schedule, **more):
    torch.manual_seed(0)
    return recipe_of(*schedule, **more).start(nn.Linear(2, 2), HORIZON)


def held(run, key="lr"):
    return [group[key] for group in run.optimizer.param_groups]


@pytest.mark.parametrize("name", ["loss", "train_loss"])
@pytest.mark.parametrize("monitor", ["loss", "train_loss", "eval_loss"])
def test_each_report_is_one_observation(name, monitor):
    run, seen = started({**OF_TRAINING, "monitor": monitor}), []
    for loss in (0.5, 0.6, 0.3, 0.3):
        run.step()
        run.trained({name: loss, "other": 9.0})
        seen += held(run)
    assert seen == [1.0, 0.5, 0.5, 0.25]


def test_validations_do_not_move_it_and_are_not_needed():
    run = started(OF_TRAINING)
    run.trained({"loss": 1.0})
    for _ in range(3):
        run.validated({"eval_f1": 1.0})
        run.validated({"eval_loss": 2.0})
    assert held(run) == [1.0]
    scheduler = run.scheduler
    assert (scheduler.counts_validations, scheduler.monitors) == (False, frozenset())
    assert scheduler.training_monitors == {"loss"}


def test_reports_move_nothing_else():
    every = {"name": "ExponentialLR", "gamma": 0.5, "every": "validation"}
    for schedule in ([BY_VALIDATION], [every], []):
        run = started(*schedule)
        for loss in (1.0, 2.0, 3.0):
            run.trained({"loss": loss})
        assert held(run) == [1.0]


def test_one_of_each_kind_go_by_their_own():
    run, seen = started({**OF_TRAINING, "for": 4}, {**BY_VALIDATION, "from": "previous"}), []
    for t in range(8):
        run.step()
        run.trained({"loss": float(t)})
        run.validated({"eval_loss": float(t)})
        seen += held(run)
    # What a phase hears first is its best so far; the last report of the first finds it over.
    assert seen == [1.0, 0.5, 0.25, 0.25, 0.125, 0.0625, 0.03125, 0.015625]


def test_both_together():
    run = started({"together": [OF_TRAINING, BY_VALIDATION]})
    run.trained({"loss": 1.0})
    run.validated({"eval_loss": 1.0})
    run.trained({"loss": 2.0})
    assert held(run) == [0.5]
    run.validated({"eval_loss": 2.0})
    assert held(run) == [0.25]


def test_another_hyperparameter_and_a_group_of_its_own():
    own = {"match": "bias", "schedule": {**OF_TRAINING, "factor": 0.1}}
    run = started({**OF_TRAINING, "of": "weight_decay"}, groups=[own])
    for loss in (1.0, 2.0):
        run.trained({"loss": loss})
    assert sorted(held(run)) == [0.1, 1.0]
    assert held(run, "weight_decay") == [0.05, 0.05]


def test_a_schedule_without_a_recipe():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build_scheduler(OF_TRAINING, optimizer, HORIZON)
    for loss in (1.0, 2.0):
        scheduler.step_metric({"loss": loss}, of_training=True)
    assert scheduler.get_last_lr() == [0.5]


@pytest.mark.parametrize("at", range(8))
def test_a_resumed_run_goes_on_from_what_it_remembers(at):
    schedule = WARM_UP, {**OF_TRAINING, "patience": 1}
    losses = [1.0, 2.0, 3.0, 3.0, 2.0, 5.0, 6.0, 7.0]

    def go_on(run, losses):
        seen = []
        for loss in losses:
            run.step()
            run.trained({"loss": loss})
            seen += held(run)
        return seen

    whole, first, second = (started(*schedule) for _ in range(3))
    seen = go_on(first, losses[:at])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert seen + go_on(second, losses[at:]) == go_on(whole, losses)
    assert second.scheduler.state_dict() == whole.scheduler.state_dict()


@pytest.mark.parametrize("bad", [[], [0.0], ["x", 1], [0.0, -1], [1.0, 2.0]])
def test_a_bad_state_of_what_is_to_be_reported_changes_nothing(bad):
    run = started(OF_TRAINING)
    state = copy.deepcopy(run.state_dict())
    state["scheduler"]["unreported"] = bad
    with pytest.raises(StateError, match="unreported must be"):
        run.load_state_dict(state)
    assert run.scheduler.unreported == [0.0, 0]


def test_under_adapt_it_goes_on_too_and_a_new_one_is_asked_for_its_metric():
    run = started(OF_TRAINING)
    for loss in (1.0, 2.0):
        run.step()
        run.trained({"loss": loss})
    state = copy.deepcopy(run.state_dict())
    same = recipe_of(OF_TRAINING).start(nn.Linear(2, 2), Horizon(total_steps=20))
    same.load_state_dict(state, resume="adapt")
    assert held(same) == [0.5]
    same.trained({"loss": 2.0})
    assert held(same) == [0.25]
    other = started({**OF_TRAINING, "monitor": "perplexity"})
    assert "remembered is left out" in str(other.load_state_dict(state, resume="adapt"))
    with pytest.raises(ArgumentError, match="the metric 'perplexity' is missing"):
        other.trained({"loss": 2.0})


def test_the_first_report_must_have_all_that_are_followed_later():
    run = started({**OF_TRAINING, "for": 4}, {**OF_TRAINING, "monitor": "lose"})
    before = run.scheduler.state_dict()
    with pytest.raises(ArgumentError, match="'lose' is missing; there are: loss, acc"):
        run.trained({"loss": 1.0, "acc": 1.0})
    assert run.scheduler.state_dict() == before
    run.trained({"loss": 1.0, "lose": 1.0})
    run.trained({"loss": 1.0})
    assert held(run) == [0.5]


@pytest.mark.parametrize(
    ("phase", "line"),
    [
        ({"name": "StepLR", "step_size": 1, "of_training": True}, "StepLR follows no metric"),
        ({"preset": "linear", "of_training": False}, "linear follows no metric"),
        ({**OF_TRAINING, "every": "validation"}, "every: is for validations, and 'of_training"),
        ({**OF_TRAINING, "every": "epoch"}, "every: is for validations, and 'of_training"),
        ({**OF_TRAINING, "of_training": "yes"}, "of_training: .*valid boolean|of_training: must"),
        ({"together": [BY_VALIDATION, BY_VALIDATION], "of_training": True}, "of_training belongs"),
        ({**OF_TRAINING, "of_trainin": True}, "did you mean 'of_training'"),
    ],
)
def test_where_it_cannot_be_said(phase, line):
    with pytest.raises(RecipeError, match=line):
        recipe_of(phase)


def test_an_editor_and_the_plan_know_it():
    whole = {"optimizer": {"name": "SGD", "lr": 1.0}}
    schema = jsonschema.Draft202012Validator(json_schema())
    preset = {"preset": "reduce_lr_on_plateau", "monitor": "loss", "of_training": True}
    assert schema.is_valid({**whole, "schedule": [OF_TRAINING, preset]})
    step = {"name": "StepLR", "step_size": 1, "of_training": True}
    assert not schema.is_valid({**whole, "schedule": [step]})
    plan = recipe_of(OF_TRAINING).plan(nn.Linear(2, 2), HORIZON)
    assert "ReduceLROnPlateau of the training's loss" in str(plan)


class TestNeverTold:
    """What has waited in vain is told as a run is over."""

    WAITED = (
        "the run is over after 3 updates, and its schedule was told of {}: "
        "ReduceLROnPlateau.* has changed nothing"
    )
    KINDS = {
        "no validation": BY_VALIDATION,
        "no loss of the training": OF_TRAINING,
    }

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_is_told_once(self, kind):
        run = started(self.KINDS[kind])
        for _ in range(3):
            run.step()
        with pytest.warns(UserWarning, match=self.WAITED.format(kind)):
            run.close()
        run.close()

    @pytest.mark.parametrize("kind", KINDS)
    def test_not_where_it_was_told_or_its_phase_has_not_begun(self, kind):
        run = started(self.KINDS[kind])
        with run:
            run.step()
            run.validated({"eval_loss": 1.0})
            run.trained({"loss": 1.0})
        with started({**WARM_UP, "for": 6}, self.KINDS[kind]) as run:
            run.step()
        with started({"preset": "linear"}) as run:
            run.step()

    @pytest.mark.parametrize("kind", KINDS)
    def test_not_after_an_error(self, kind):
        def break_off(close):
            with ExitStack() as stack:
                run = started(self.KINDS[kind])
                stack.enter_context(run) if close == "with" else stack.callback(run.close)
                run.step()
                raise ZeroDivisionError

        for close in ("with", "finally"):
            with pytest.raises(ZeroDivisionError):
                break_off(close)
        run = started(self.KINDS[kind])
        run.step()
        run.close(interrupted=True)

    def test_a_resumed_run_remembers_that_it_was_told(self):
        first, second = started(BY_VALIDATION), started(BY_VALIDATION)
        first.step()
        first.validated({"eval_loss": 1.0})
        second.load_state_dict(first.state_dict())
        second.step()
        second.close()
