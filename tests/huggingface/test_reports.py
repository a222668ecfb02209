"""A plateau with ``of_training: true`` goes by what the Trainer logs of its training."""

import functools

import pytest
import torch
from support.tensors import same_weights
from support.trainers import Lines, SaveAfter, arguments, points, recipe_trainer, run
from transformers import Trainer, TrainerCallback

from optimplug import ArgumentError, RecipeError
from optimplug.callbacks.huggingface import LearningRateTrace, MetricCallback
from optimplug.huggingface import RecipeTrainer, build

WARM = {"name": "LinearLR", "start_factor": 0.1, "for": 4}
# So strict a threshold that none of the losses is an improvement.
FOLLOWING = {
    "name": "ReduceLROnPlateau",
    "monitor": "loss",
    "of_training": True,
    "patience": 0,
    "threshold": 0.99,
    "factor": 0.5,
}
LOGGED = {"logging_strategy": "steps", "logging_steps": 3}


def maker(*schedule, **changes):
    settings = {**LOGGED, **changes}
    return functools.partial(recipe_trainer, schedule=[*schedule] or [WARM, FOLLOWING], **settings)


def reported(trainer):
    return [logs["loss"] for logs in trainer.state.log_history if "learning_rate" in logs]


def plateau_of(trainer):
    return trainer.lr_scheduler.state_dict()["_remembered"][-1]


@pytest.mark.parametrize("monitor", ["loss", "train_loss"])
def test_each_log_is_one_observation_and_no_evaluation_is_needed(tmp_path, monitor):
    trainer = maker(WARM, {**FOLLOWING, "monitor": monitor})(tmp_path)
    rates = run(trainer)
    held = plateau_of(trainer)
    logs = reported(trainer)
    assert len(logs) == len(next(iter(rates.values()))) // 3
    assert held["reports"] == len(logs) - 1  # the first came in the warm-up
    assert held["plateau"]["best"] in logs
    assert len(set(next(iter(rates.values()))[4:])) > 1


def test_an_evaluation_does_not_move_it(tmp_path):
    alone = run(maker()(tmp_path / "alone"))
    both = run(maker(eval_strategy="steps", eval_steps=1)(tmp_path / "both"))
    assert alone == both


@pytest.mark.parametrize(
    ("every", "stops"),
    [
        (LOGGED, (5, 6)),
        ({"logging_strategy": "epoch"}, (5, 6)),
        pytest.param({**LOGGED, "gradient_accumulation_steps": 2}, (4, 5), marks=pytest.mark.slow),
    ],
)
def test_from_what_was_saved_between_two_logs(tmp_path, every, stops):
    make = maker(**every, num_train_epochs=4)
    whole = make(tmp_path, callbacks=[SaveAfter(stops)])
    rates = run(whole)
    for stop in stops:
        resumed = make(tmp_path / f"from-{stop}")
        rest = run(resumed, str(tmp_path / f"checkpoint-{stop}"))
        assert rest == {name: held[stop:] for name, held in rates.items()}, stop
        assert same_weights(resumed.model, whole.model)
        assert plateau_of(resumed) == plateau_of(whole), stop
        logs = [log for log in resumed.state.log_history if "learning_rate" in log]
        # What an epoch ended with is not logged again, but the schedule has heard of it.
        assert [log["loss"] for log in logs][-2:] == reported(whole)[-2:]
        torch.load(tmp_path / f"checkpoint-{stop}" / "scheduler.pt", weights_only=True)


def test_the_loss_that_is_returned_is_of_the_updates_after_a_resume(tmp_path):
    make = maker({**FOLLOWING, "patience": 99}, logging_steps=4)
    make(tmp_path, callbacks=[SaveAfter([5])]).train()
    resumed = make(tmp_path)
    found = resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5")).training_loss
    plain = maker({"preset": "constant"}, logging_steps=4)(tmp_path / "plain")
    plain.add_callback(SaveAfter([5]))
    plain.train()
    again = maker({"preset": "constant"}, logging_steps=4)(tmp_path / "again")
    other = again.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-5"))
    assert found == pytest.approx(other.training_loss)


def test_a_monitor_that_is_not_logged_is_an_error_at_the_first(tmp_path):
    with pytest.raises(ArgumentError, match=r"'lose' is missing; there are: loss, epoch"):
        maker({"name": "LinearLR", "for": 9}, {**FOLLOWING, "monitor": "lose"})(tmp_path).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logging_strategy": "no"}, "schedule: .* logging_strategy is 'no'"),
        ({"logging_steps": 999}, "schedule: .* logged every 999 updates, and the run has 18"),
    ],
)
def test_a_run_that_never_logs_is_refused(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        maker(**changes)(tmp_path).train()


def test_what_the_trainer_does_not_keep_for_a_resume_is_told(tmp_path):
    grad_norm = {**FOLLOWING, "monitor": "grad_norm"}
    saves = {"save_strategy": "steps", "save_steps": 4}
    with pytest.warns(UserWarning, match="follows grad_norm .* saved between two logs"):
        maker(grad_norm, **saves)(tmp_path).train()
    maker(grad_norm, **saves, logging_steps=2)(tmp_path).train()
    maker(**saves)(tmp_path).train()


@pytest.mark.parametrize("missing", ["evaluations", "logs"])
def test_what_never_came_is_told_at_the_end(tmp_path, missing):
    if missing == "logs":
        trainer = maker(logging_steps=18)(tmp_path)
    else:
        by_validation = {**FOLLOWING, "monitor": "eval_loss", "of_training": False}
        trainer = maker(by_validation, eval_strategy="steps", eval_steps=18)(tmp_path)
    trainer.add_callback(EndsAt10())
    with pytest.warns(UserWarning, match="the run is over after .* has changed nothing"):
        trainer.train()


class EndsAt10(TrainerCallback):
    """Ends a run before anything is logged or evaluated; but not by an error."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 10


def test_a_metric_callback_tells_in_a_trainer_without_recipes(tmp_path):
    recipe = {"optimizer": {"name": "AdamW", "lr": 0.1}, "schedule": [WARM, FOLLOWING]}
    rates = []
    for cls in (RecipeTrainer, Trainer):
        args = arguments(tmp_path, **LOGGED, max_grad_norm=0)
        model, trace = Lines(), LearningRateTrace()
        more = {"recipe": recipe}
        if cls is Trainer:
            with pytest.warns(UserWarning, match="give it one, or use RecipeTrainer"):
                more = {"optimizers": build(model, recipe, args, points())}
        callbacks = [trace, MetricCallback()]
        cls(model, args, train_dataset=points(), callbacks=callbacks, **more).train()
        rates.append(trace.rates)
    assert rates[0] == rates[1]
    assert len(set(next(iter(rates[0].values()))[4:])) > 1
