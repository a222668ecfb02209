"""Who tells a recipe's scheduler of validations."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from optimplug.lightning.pending_validation import note_pending_validation, run_pending_validation
from optimplug.recipe import RecipeScheduler

__all__ = ["MetricCallback", "agreed", "in_fit", "require_validations"]


class MetricCallback(Callback):
    """Tells the scheduler of a recipe of every validation that is completed in ``fit``.

    :func:`optimplug.lightning.configure_optimizers` adds one by itself. It keeps nothing: what has
    been told is in the scheduler's state. Checkpoints that follow a validation hold it already;
    where one was saved between an update and its validation, the resumed run validates first.
    """

    due: bool = False
    """Whether the run is resumed from such a checkpoint."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note in the checkpoint that a validation comes next, if it does."""
        note_pending_validation(trainer, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for the validation that the checkpoint came just before, if it did."""
        if self.due:
            self.due = False
            run_pending_validation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on the metrics that the module has logged, the same on every process.

        Raises:
            ArgumentError: a plateau is active and the module has not logged its metric.
        """
        if not in_fit(trainer):
            return
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if isinstance(scheduler, RecipeScheduler):
                scheduler.step_metric(agreed(trainer, scheduler.monitors))


def require_validations(trainer: Trainer, error: Callable[[str], Exception]) -> None:
    """Refuse a run that has no validations.

    Args:
        trainer: in ``fit``.
        error: makes the error from what is wrong.
    """
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    if not trainer.enable_validation:
        raise error(
            "counts validations or follows a metric, but this run has none: give the module a "
            "validation_step, and fit validation data"
        )


def in_fit(trainer: Trainer) -> bool:
    """Tell whether a validation is one of ``fit``, and not its sanity check."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def agreed(trainer: Trainer, followed: Set[str]) -> dict[str, Any]:
    """Return the metrics, those that are followed as their mean over all processes."""
    metrics: dict[str, Any] = dict(trainer.callback_metrics)
    for name in sorted(followed & metrics.keys()) if trainer.world_size > 1 else ():
        own = torch.as_tensor(metrics[name]).detach().clone()
        metrics[name] = trainer.strategy.reduce(own, reduce_op="mean")
    return metrics
