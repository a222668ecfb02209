"""Callbacks for PyTorch Lightning."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from optimplug.callbacks.trace import LearningRateTrace as _Trace

__all__ = ["LearningRateTrace"]


class LearningRateTrace(_Trace, Callback):
    """:class:`optimplug.callbacks.trace.LearningRateTrace` over a whole ``fit``.

    Example:
        ``Trainer(callbacks=[LearningRateTrace()])``
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to every optimizer of the module."""
        for optimizer in trainer.optimizers:
            self.attach(optimizer)
