"""Validations: whether there are any, what they found, and those a resume would leave out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

import torch

from optimplug._core.metrics import name_among, require_metric
from optimplug.errors import ArgumentError
from optimplug.lightning.internals import (
    loaded_checkpoint,
    run_validation,
    validated_metrics,
    validation_is_pending,
)
from optimplug.lightning.package import LightningModule, OwnCallback, Trainer, TrainerFn
from optimplug.recipe.schedule.scheduled import ScheduledOptimizer

__all__ = [
    "CompletesValidations",
    "TellsValidations",
    "agreed",
    "in_fit",
    "over_processes",
    "require_validations",
]

_KEY = "optimplug_validation_due"


class CompletesValidations(OwnCallback):
    """Sees to it that a resumed run has all validations of the uninterrupted one.

    Where a checkpoint is saved after an update that a validation follows, Lightning resumes after
    that validation and leaves it out. The checkpoint notes that it comes next, and the resumed run
    begins with it.
    """

    counts_validations = True
    """Whether a validation that is left out would be missed here."""
    _pending = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note in the checkpoint that a validation comes next, if it does."""
        if self.counts_validations and validation_is_pending(trainer):
            checkpoint[_KEY] = True

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look whether the checkpoint was saved just before a validation."""
        if self.counts_validations and trainer.training and checkpoint.pop(_KEY, False):
            self._pending = True  # the first who asks makes up for it, for all

    def look_back(self, trainer: Trainer) -> None:
        """Do the same where the checkpoint was loaded before this callback came."""
        self.on_load_checkpoint(trainer, trainer.lightning_module, loaded_checkpoint(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for the validation that the checkpoint came just before, if it did."""
        if self._pending:
            self._pending = False
            run_validation(trainer)


class TellsValidations(CompletesValidations):
    """Tells a run of every completed validation, and puts the weights in place for it.

    Args:
        run: what is told.
    """

    def __init__(self, run: ScheduledOptimizer) -> None:
        self.run = run
        self.counts_validations = run.scheduler.counts_validations

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights in place that are validated."""
        self.run.eval()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on the metrics that this validation has logged, the same on every process.

        Raises:
            ArgumentError: a plateau is active and the validation has not logged its metric; or, at
                the first validation of the fit, one that a later phase follows.
        """
        scheduler = self.run.scheduler
        # Stochastic weight averaging and the learning rate finder put a scheduler of theirs there.
        followed = any(config.scheduler is scheduler for config in trainer.lr_scheduler_configs)
        if in_fit(trainer) and followed:
            self.run.validated(agreed(trainer, scheduler.monitors, scheduler.awaited))


def require_validations(trainer: Trainer, error: Callable[[str], Exception]) -> None:
    """Refuse a run that has no validations.

    Args:
        trainer: in ``fit``.
        error: makes the error from what is wrong.
    """
    if trainer.enable_validation:  # without any data at all, Lightning has an error of its own
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
    if not trainer.enable_validation:
        raise error(
            "counts validations or follows a metric, but this run has none: give the module a "
            "validation_step, and fit validation data"
        )


def in_fit(trainer: Trainer) -> bool:
    """Tell whether a validation is one of ``fit``, and not its sanity check."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def agreed(trainer: Trainer, followed: Set[str], awaited: Set[str] = frozenset()) -> dict[str, Any]:
    """Return the metrics of a validation, those that are followed as their mean over processes.

    Args:
        trainer: at the end of a validation.
        followed: the metrics that are of interest.
        awaited: those among them that must be there.

    Raises:
        ArgumentError: one that must is not there; it says if somebody else has logged it.
    """
    metrics = validated_metrics(trainer)
    found = {found for name in followed if (found := name_among(name, metrics))}
    metrics = over_processes(trainer, metrics, found)
    for name in sorted(awaited):
        _require(name, metrics, name_among(name, trainer.callback_metrics))
    return metrics


def over_processes(trainer: Trainer, metrics: dict[str, Any], names: Set[str]) -> dict[str, Any]:
    """Return metrics, those of these names as their mean over processes."""
    if trainer.world_size == 1:
        return metrics
    own = {name: torch.as_tensor(metrics[name]).detach().clone() for name in sorted(names)}
    means = {name: trainer.strategy.reduce(value, reduce_op="mean") for name, value in own.items()}
    return {**metrics, **means}


def _require(name: str, metrics: Mapping[str, Any], elsewhere: str | None) -> None:
    try:
        require_metric(name, metrics)
    except ArgumentError as error:
        if elsewhere is None:
            raise
        raise ArgumentError(
            f"{error}; {elsewhere!r} is of the training, or of an earlier validation, and only "
            "what a validation has logged itself counts: log it in validation_step"
        ) from None
