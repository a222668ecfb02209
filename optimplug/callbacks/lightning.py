"""Callbacks for PyTorch Lightning."""

from __future__ import annotations

from optimplug.callbacks.trace import LearningRateTrace as _Trace
from optimplug.errors import MissingExtraError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    raise MissingExtraError("optimplug.callbacks.lightning", "lightning") from None

from optimplug.lightning.metric import MetricCallback

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
