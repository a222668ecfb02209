"""Schedules that follow a Trainer's updates, epochs and evaluations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args
from transformers.trainer_utils import has_length

from optimplug._core.metrics import bare_name, name_among
from optimplug.callbacks.interval_scheduler import Factory, IntervalScheduler
from optimplug.callbacks.step_interval import Interval, StepInterval
from optimplug.errors import ArgumentError
from optimplug.huggingface.evaluations import check_evaluations, of_main_process
from optimplug.huggingface.internals import unwrapped
from optimplug.huggingface.reports import check_logs, is_report
from optimplug.recipe import RecipeScheduler

__all__ = ["MetricCallback", "SchedulerCallback"]


class _EvaluationCallback(TrainerCallback):
    """Acts once on each evaluation that belongs to an update of a training run.

    The Trainer calls ``on_evaluate`` for each of several data sets. Together they are one
    evaluation, which is complete as soon as all metrics are there that are followed. An evaluation
    before the first update, or after the run, does not count.
    """

    _metrics: dict[str, Any] | None = None
    """Those seen since the last update; None while no evaluation is waited for."""

    def _followed(self) -> Collection[str]:
        """Return the metrics that an evaluation must have to be complete."""
        raise NotImplementedError

    def _evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Act on an evaluation."""
        raise NotImplementedError

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Wait for the first update."""
        self._metrics = None

    def on_step_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Act on an evaluation that has not become complete."""
        self._act_on_incomplete()

    def on_step_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Wait for the evaluation of this update, if there is one."""
        self._metrics = {}

    def on_evaluate(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Act on the evaluation once it is complete: what is saved next holds it already."""
        if self._metrics is not None:
            self._metrics |= of_main_process(kwargs["metrics"])
            if all(name_among(name, self._metrics) for name in self._followed()):
                self._act(self._metrics)

    def on_train_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Act on an evaluation that has not become complete, and on no other from now on."""
        self._act_on_incomplete()
        self._metrics = None

    def _act_on_incomplete(self) -> None:
        if self._metrics:
            self._act(self._metrics)

    def _act(self, metrics: Mapping[str, Any]) -> None:
        self._metrics = None
        self._evaluated(metrics)


class MetricCallback(_EvaluationCallback):
    """Tells the scheduler of a recipe of every evaluation, in a Trainer that knows no recipes.

    And of every log of the training's loss, where a plateau has ``of_training: true``. A run that
    goes on from a checkpoint that was saved between two logs has the mean of the updates since, as
    the Trainer logs it.

    ``RecipeTrainer`` does so by itself; if it is given one as well, it leaves that to it.

    Example::

        optimizer, scheduler = recipe.build(model, Horizon(total_steps=300, steps_per_epoch=100))
        Trainer(
            model,
            TrainingArguments(..., eval_strategy="epoch", max_grad_norm=0.0),  # the recipe clips
            optimizers=(optimizer, scheduler),
            callbacks=[MetricCallback()],
        )

    A metric has the name that the Trainer gives it (``eval_loss``), or that it has elsewhere
    (``val_loss``, ``loss``). One that the schedule follows, in whatever phase, and that the first
    evaluation lacks is an ``ArgumentError`` that lists those that there are, the nearest first.
    """

    tells_recipes = True
    """What a ``RecipeTrainer`` goes by."""
    _scheduler: RecipeScheduler

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Find the recipe's scheduler.

        Raises:
            ArgumentError: the Trainer's is none, or waits for evaluations in vain.
        """
        super().on_train_begin(args, state, control, **kwargs)
        scheduler = unwrapped(kwargs["lr_scheduler"])
        if not isinstance(scheduler, RecipeScheduler):
            raise ArgumentError(
                "MetricCallback tells a recipe's scheduler, but the Trainer's is a "
                f"{type(scheduler).__name__}; give it the recipe's, "
                "optimizers=recipe.build(model, horizon), or use a SchedulerCallback"
            )
        self._scheduler = scheduler
        if scheduler.counts_validations:
            check_evaluations(args, _refused)
        if monitors := scheduler.training_monitors:
            check_logs(args, state.max_steps, monitors, _refused, keeps_loss=False)

    def on_log(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Tell of what the training reports, where the schedule follows that."""
        if is_report(kwargs["logs"]) and self._scheduler.training_monitors:
            self._scheduler.step_metric(of_main_process(kwargs["logs"]), of_training=True)

    def on_train_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Say so, if the schedule has waited in vain."""
        super().on_train_end(args, state, control, **kwargs)
        self._scheduler.tell_if_never_told()

    def _followed(self) -> Collection[str]:
        return self._scheduler.awaited

    def _evaluated(self, metrics: Mapping[str, Any]) -> None:
        self._scheduler.step_metric(metrics)


class SchedulerCallback(_EvaluationCallback):
    """Steps any scheduler per update, per epoch or per evaluation, in any Trainer.

    The Trainer saves and restores :attr:`scheduler`, so a run resumes exactly. It has to be given
    both::

        callback = SchedulerCallback(StepLR(optimizer, step_size=1), interval="epoch")
        Trainer(..., optimizers=(optimizer, callback.scheduler), callbacks=[callback])

    Where the Trainer makes the optimizer, a function builds the scheduler for it::

        callback = SchedulerCallback(
            lambda optimizer: ReduceLROnPlateau(optimizer, patience=2),
            interval="validation",
            monitor="eval_loss",
        )
        Trainer(..., optimizers=(None, callback.scheduler), callbacks=[callback])

    An update that was skipped under mixed precision is no step. An epoch ends with its last update;
    one that is broken off is none. Several data sets are one validation, and so are several
    evaluations after one update; evaluating before or after training is none. A second ``train``
    goes on where the first ended, as the Trainer does with whatever scheduler it is given.

    Args:
        scheduler_or_factory: a scheduler of torch or optimplug; or a function that builds one,
            given the optimizer.
        interval: what is counted: "step" (updates), "epoch" or "validation".
        frequency: after every how many of them the scheduler is stepped.
        monitor: the name of the metric that a plateau follows, as in ``metric_for_best_model``: the
            prefix ``eval_`` may be left out, or be ``val_``.

    Attributes:
        scheduler: what the Trainer is to be given.

    Raises:
        ArgumentError: a value breaks its rule, or there is no monitor for a plateau, or one for
            anything else. As training begins: the Trainer was not given :attr:`scheduler`, or it
            has no epochs or no evaluations to count. During it: a metric is missing.
    """

    def __init__(
        self,
        scheduler_or_factory: LRScheduler | Factory,
        interval: Interval = "step",
        frequency: int = 1,
        monitor: str | None = None,
    ) -> None:
        self._step_interval = StepInterval(interval, frequency, _prefixed(monitor))
        self.scheduler = IntervalScheduler(scheduler_or_factory, self._step_interval)

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Build the scheduler if that is still to be done.

        Raises:
            ArgumentError: it cannot be stepped so in this run.
        """
        super().on_train_begin(args, state, control, **kwargs)
        if unwrapped(kwargs["lr_scheduler"]) is not self.scheduler:
            raise ArgumentError(
                "the Trainer must be given the callback's scheduler, which it saves and restores: "
                "Trainer(..., optimizers=(optimizer, callback.scheduler), callbacks=[callback]), "
                "with None in the optimizer's place where the Trainer is to make it"
            )
        if self._step_interval.interval == "epoch" and not has_length(kwargs["train_dataloader"]):
            raise ArgumentError(
                "the training data has no length, so its epochs cannot be told: give data with "
                "__len__, or interval='step' and the updates of an epoch as frequency"
            )
        if self._step_interval.interval == "validation":
            check_evaluations(args, _refused)
        self.scheduler.bind(kwargs["optimizer"])

    def on_step_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Count an epoch with its last update, so that whatever is saved after it holds it."""
        super().on_step_end(args, state, control, **kwargs)
        if float(state.epoch or 0.0).is_integer():
            self.scheduler.happened("epoch")

    def _followed(self) -> Collection[str]:
        return () if self._step_interval.monitor is None else (self._step_interval.monitor,)

    def _evaluated(self, metrics: Mapping[str, Any]) -> None:
        self.scheduler.happened("validation", metrics)


def _refused(problem: str) -> ArgumentError:
    return ArgumentError(f"the scheduler {problem}")


def _prefixed(monitor: Any) -> Any:
    """Return the name that the Trainer gives to a metric."""
    named = isinstance(monitor, str) and monitor
    return f"eval_{bare_name(monitor)}" if named else monitor
