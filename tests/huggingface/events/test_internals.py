"""The steps of a Trainer that are events of the adapter come as they came.

When a new release breaks the adapter, look here first: a failure names what broke, and the release.
"""

import ast
import inspect

import pytest
import torch
import transformers
from support.sources import sources
from support.trainers import Lines, SaveAfter, arguments, check_inside, points
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from optimplug import Horizon
from optimplug.huggingface.events.internals import NEEDED, TrainerEvents, require_methods
from optimplug.huggingface.internals import (
    give_back_unlogged,
    unlogged_loss,
)

PARAMETERS = {
    "get_decay_parameter_names": ["model"],
    "set_initial_training_values": ["args", "dataloader"],
    "_inner_training_loop": [
        "batch_size",
        "args",
        "resume_from_checkpoint",
        "trial",
        "ignore_keys_for_eval",
    ],
    "_load_best_model": [],
    "_maybe_log_save_evaluate": [
        "tr_loss",
        "grad_norm",
        "model",
        "trial",
        "epoch",
        "ignore_keys_for_eval",
        "start_time",
        "learning_rate",
    ],
    "_clip_grad_norm": ["model"],
    "_finalize_training": ["trial", "num_train_samples", "start_time"],
    "_evaluate": ["trial", "ignore_keys_for_eval", "skip_scheduler"],
    "_get_grad_norm": ["model", "grad_norm"],
    "_get_learning_rate": [],
    "_save_checkpoint": ["model", "trial"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
}


if "_inner_training_loop" in NEEDED:  # before 5.3
    PARAMETERS["set_initial_training_values"].append("total_train_batch_size")


@pytest.mark.parametrize("name", NEEDED)
def test_a_method_takes_what_it_took(name):
    require_methods(Trainer)
    parameters = [*inspect.signature(getattr(Trainer, name)).parameters][1:]
    check_inside(
        parameters == PARAMETERS[name], f"Trainer.{name} takes {PARAMETERS[name]}, not {parameters}"
    )


class Noting(TrainerEvents, Trainer):
    """Notes its events, and says that some updates were skipped."""

    def __init__(self, folder, skipped=(), **changes):
        self.events, self.skipped, self.updates, self.made = [], skipped, 0, []
        super().__init__(
            Lines(),
            arguments(folder, num_train_epochs=1, **changes),
            train_dataset=points(),
            eval_dataset={"a": points(4), "b": points(4)},
            callbacks=[Hooks(self.events), SaveAfter([3])],
        )

    def planned(self, horizon):
        self.events.append(horizon)

    def create_scheduler(self, num_training_steps, optimizer=None):
        super().create_scheduler(num_training_steps, optimizer)
        self._created_lr_scheduler = False  # as if it had been given
        self.made.append(self.lr_scheduler)
        self.renew_schedule()

    def gradients_ready(self, model):
        self.gradients = [p.grad.clone() for p in model.parameters()]
        self.events.append("gradients ready")
        return torch.tensor(7.0)

    def update_done(self):
        self.events.append("update done")
        self.updates += 1
        self.stepped = self.lr_scheduler.last_epoch
        return self.updates not in self.skipped

    def evaluated(self, metrics):
        self.events.append("evaluated")
        self.metrics = metrics

    def trained(self):
        self.events.append("trained")

    def saving(self, save):
        self.events.append("saving")
        self.unlogged = unlogged_loss(self)
        save()

    def loading(self, checkpoint, load):
        self.events.append("loading")
        self.loaded_from, before = checkpoint, self.lr_scheduler.last_epoch
        load()
        self.went = (before, self.lr_scheduler.last_epoch)


class Hooks(TrainerCallback):
    """Notes the public hooks among the events, and whether the schedule was stepped."""

    def __init__(self, events):
        self.events = events

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.events.append("optimizer step")

    def on_step_end(self, args, state, control, lr_scheduler, **kwargs):
        self.events.append(f"schedule at {lr_scheduler.last_epoch}")

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append("train begins")

    def on_evaluate(self, args, state, control, **kwargs):
        self.events.append("on_evaluate")

    def on_save(self, args, state, control, **kwargs):
        self.events.append("saved")


EVALUATED = {"eval_strategy": "steps", "eval_steps": 3}


def update(number):
    return ["gradients ready", "optimizer step", "update done", f"schedule at {number}"]


def test_events_come_in_their_order(tmp_path):
    trainer = Noting(tmp_path, **EVALUATED, eval_on_start=True)
    trainer.train()
    evaluation = ["on_evaluate", "on_evaluate"]
    third = [*update(3), *evaluation, "evaluated", "saving", "saved"]
    last = [*update(6), *evaluation, "evaluated"]
    expected = [
        *(Horizon(6, 6), "train begins", *evaluation),
        *(*update(1), *update(2), *third, *update(4), *update(5), *last, "trained"),
    ]
    check_inside(
        trainer.events == expected, f"the events come as {expected}, not as {trainer.events}"
    )
    check_inside(trainer.stepped == 5, "the schedule is stepped after _get_learning_rate")
    check_inside(
        {"eval_a_loss", "eval_b_loss"} <= trainer.metrics.keys(), "_evaluate has all data sets"
    )


def test_a_run_that_goes_on_loads_before_it_begins(tmp_path):
    Noting(tmp_path).train()
    trainer = Noting(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    found = trainer.events[:3]
    check_inside(
        found == [Horizon(6, 6), "loading", "train begins"], f"loading comes second ({found})"
    )
    check_inside(trainer.went == (0, 3), "_load_optimizer_and_scheduler loads the schedule")
    check_inside((trainer.loaded_from / TRAINER_STATE_NAME).is_file(), "it is given the folder")


class GivesBack(TrainerCallback):
    """Gives back losses of updates before the first."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            give_back_unlogged(self.trainer, 700.0, 7)


def test_what_is_not_logged_yet_can_be_read_and_given_back(tmp_path):
    logged = {"logging_strategy": "steps", "logging_steps": 2, "report_to": "none"}
    trainer = Noting(tmp_path, **logged)
    trainer.train()
    first = trainer.state.log_history[0]["loss"]
    total, updates = trainer.unlogged
    check_inside(
        updates == 1 and 0 < total < 2 * first, "_tr_loss has what came since the last log"
    )
    again, gives = Noting(tmp_path, **logged), GivesBack()
    again.add_callback(gives)
    gives.trainer = again
    found = again.train().training_loss
    check_inside(
        again.state.log_history[0]["loss"] == pytest.approx((700 + 2 * first) / 9),
        "what is given back goes into the next log",
    )
    check_inside(
        found == pytest.approx(trainer.state.log_history[-1]["train_loss"]), "and no further"
    )


def test_the_trainer_does_not_clip(tmp_path):
    trainer = Noting(tmp_path, max_grad_norm=1e-6, logging_strategy="steps", logging_steps=1)
    trainer.train()
    norm = torch.stack([g.norm() for g in trainer.gradients]).norm()
    check_inside(norm > 1e-3, "an overridden _clip_grad_norm keeps the Trainer from clipping")
    logged = {entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry}
    check_inside(logged == {7.0}, "what _get_grad_norm returns is logged")


@pytest.mark.parametrize("scaled", [True, False])
def test_a_skipped_update_steps_no_schedule_under_amp(tmp_path, scaled):
    trainer = Noting(tmp_path, skipped=(2, 5))
    if scaled:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.train()
    steps = trainer.lr_scheduler.last_epoch
    check_inside(
        steps == (4 if scaled else 6), "optimizer._is_overflow keeps the schedule where it is"
    )
    check_inside(trainer.state.global_step == 6, "a skipped update is a step of the Trainer's")


def test_the_trainer_asks_for_a_schedule_at_each_train(tmp_path):
    trainer = Noting(tmp_path)
    trainer.train()
    trainer.train()
    first, second = trainer.made
    check_inside(first is not second, "_created_lr_scheduler has the Trainer make a new schedule")


def test_our_names_are_none_of_the_trainers():
    """A private name of ours that the Trainer has as well would be overwritten in silence."""
    theirs = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(transformers.trainer)))
        if isinstance(node, ast.Attribute)
    } | set(dir(Trainer))
    touched = {
        node.attr
        for source in sources()
        if source.path.startswith("huggingface/") and not source.path.endswith("/internals.py")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr[-2:] != "__"
    }
    both = touched & theirs
    check_inside(
        "_created_lr_scheduler" in theirs and not both, f"the Trainer has no names {both or ''}"
    )
    events = {name for name in vars(TrainerEvents) if not name.startswith("_")} - {*NEEDED}
    both = events & theirs
    check_inside(not both, f"the Trainer has no methods called as the events {both or ''}")
