"""What shows the rates and the gradients of a run."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from optimplug._core.optim.gradients import global_norm
from optimplug.callbacks.trace import LearningRateTrace as _Trace
from optimplug.lightning.internals import should_log, unscales_by_itself

__all__ = ["LearningRateTrace", "OptimizerMonitor"]


class LearningRateTrace(_Trace, Callback):
    """:class:`optimplug.callbacks.trace.LearningRateTrace` over a whole ``fit``.

    Example:
        ``Trainer(callbacks=[LearningRateTrace()])``
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to every optimizer of the module."""
        for optimizer in trainer.optimizers:
            self.attach(optimizer)


class OptimizerMonitor(Callback):
    """Logs the rate of every group by its name, and the norm of the gradients before clipping.

    Logged by the module, as ``lr/<group>`` and ``grad_norm``, at the trainer's own logging steps,
    just before an update: the rates are those that the update uses. (Lightning's
    LearningRateMonitor, which logs rates alone, knows the groups' names as well.) Of several
    optimizers, the keys have the number of each: ``lr/0/<group>``.

    Args:
        momentum: log ``momentum/<group>`` too: its momentum, or the first of its betas.
        weight_decay: log ``weight_decay/<group>`` too.
        grad_norm: log the norm.

    Example:
        ``Trainer(callbacks=[OptimizerMonitor(weight_decay=True)], logger=CSVLogger("logs"))``
    """

    def __init__(
        self, momentum: bool = False, weight_decay: bool = False, grad_norm: bool = True
    ) -> None:
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.grad_norm = grad_norm

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log, where it is time."""
        if not should_log(trainer):
            return
        of = f"/{trainer.optimizers.index(optimizer)}" if len(trainer.optimizers) > 1 else ""
        values: dict[str, float | torch.Tensor] = {}
        for i, group in enumerate(optimizer.param_groups):
            for what, value in self._values(group).items():
                values[f"{what}{of}/{group.get('name', i)}"] = value
        if self.grad_norm:
            values[f"grad_norm{of}"] = _norm(trainer, optimizer)
        pl_module.log_dict(values)

    def _values(self, group: dict[str, Any]) -> dict[str, float]:
        values = {"lr": group["lr"]}
        if self.momentum and ("momentum" in group or "betas" in group):
            values["momentum"] = group["betas"][0] if "betas" in group else group["momentum"]
        if self.weight_decay and "weight_decay" in group:
            values["weight_decay"] = group["weight_decay"]
        return {what: float(value) for what, value in values.items()}


def _norm(trainer: Trainer, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    found = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    grads = [g.coalesce().values() if g.is_sparse else g for g in found]
    norm = global_norm(grads) if grads else torch.zeros(())
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and unscales_by_itself(optimizer):
        norm = norm / float(scaler.get_scale())
    return norm
