"""Callbacks for PyTorch Lightning."""

from __future__ import annotations

from typing import Any

import torch

from optimplug.callbacks.trace import LearningRateTrace as _Trace
from optimplug.errors import MissingExtraError
from optimplug.recipe import RecipeScheduler

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.trainer.states import TrainerFn
except ImportError:
    raise MissingExtraError("optimplug.callbacks.lightning", "lightning") from None

__all__ = ["LearningRateTrace", "MetricCallback"]


class LearningRateTrace(_Trace, Callback):
    """:class:`optimplug.callbacks.trace.LearningRateTrace` over a whole ``fit``.

    Example:
        ``Trainer(callbacks=[LearningRateTrace()])``
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to every optimizer of the module."""
        for optimizer in trainer.optimizers:
            self.attach(optimizer)


class MetricCallback(Callback):
    """Tells the scheduler of a recipe of every validation that is completed in ``fit``.

    :func:`optimplug.lightning.configure_optimizers` adds one by itself. It keeps nothing: what has
    been told is in the scheduler's state. Checkpoints that follow a validation hold it already.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on the metrics that the module has logged, the same on every process.

        Raises:
            ArgumentError: a plateau is active and the module has not logged its metric.
        """
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if isinstance(scheduler, RecipeScheduler):
                scheduler.step_metric(_agreed(trainer, scheduler.monitors))


def _agreed(trainer: Trainer, followed: frozenset[str]) -> dict[str, Any]:
    """Return the metrics, those that are followed as their mean over all processes."""
    metrics: dict[str, Any] = dict(trainer.callback_metrics)
    for name in sorted(followed & metrics.keys()) if trainer.world_size > 1 else ():
        own = torch.as_tensor(metrics[name]).detach().clone()
        metrics[name] = trainer.strategy.reduce(own, reduce_op="mean")
    return metrics
