"""What shows the rates and the gradients of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from optimplug._core.optim.gradients import global_norm
from optimplug.callbacks.lost_updates import LostUpdates
from optimplug.callbacks.monitored import lost_values
from optimplug.callbacks.trace import LearningRateTrace as _Trace
from optimplug.lightning.internals import should_log, unscales_by_itself
from optimplug.lightning.package import LightningModule, OwnCallback, Trainer
from optimplug.recipe.logged import LoggedGroups, group_values

__all__ = ["LearningRateTrace", "OptimizerMonitor"]


class LearningRateTrace(_Trace, OwnCallback):
    """:class:`optimplug.callbacks.trace.LearningRateTrace` over a whole ``fit``.

    Example:
        ``Trainer(callbacks=[LearningRateTrace()])``
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to every optimizer of the module."""
        for optimizer in trainer.optimizers:
            self.attach(optimizer)


class OptimizerMonitor(OwnCallback):
    """Logs the rate of every group by its name, and the norm of the gradients before clipping.

    Logged by the module, as ``lr/<group>`` and ``grad_norm``, at the trainer's own logging steps:
    the rates are those that the update uses. (Lightning's LearningRateMonitor, which logs rates
    alone, knows the groups' names as well.) Of several optimizers, the keys have the number of
    each: ``lr/0/<group>``.

    Args:
        momentum: log ``momentum/<group>`` too: its momentum, or the first of its betas.
        weight_decay: log ``weight_decay/<group>`` too.
        grad_norm: log the norm.
        lost_updates: log ``lost_updates/<group>`` too, and ``lost_updates`` for all groups: the
            share of bfloat16 and float16 weights that the update has left as they were, as it was
            too small. See :mod:`optimplug.callbacks.lost_updates` for what counts, and what it
            costs. An update that is skipped has none.
        log_groups: globs on the names of the groups that are logged; None for all. Whatever it
            says, no group is shown in the progress bar.

    Raises:
        ArgumentError: ``log_groups`` holds what is no text; or, as the fit begins, what matches no
            group of any optimizer.

    Example:
        ``Trainer(callbacks=[OptimizerMonitor(weight_decay=True)], logger=CSVLogger("logs"))``
    """

    def __init__(
        self,
        momentum: bool = False,
        weight_decay: bool = False,
        grad_norm: bool = True,
        lost_updates: bool = False,
        log_groups: str | Sequence[str] | None = None,
    ) -> None:
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.grad_norm = grad_norm
        self.lost_updates = lost_updates
        self._logged = LoggedGroups(log_groups)
        self._lost: dict[str, LostUpdates] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to log groups that there are not."""
        self._logged.check(trainer.optimizers)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log, where it is time, and see what the update does."""
        if not should_log(trainer):
            return
        of = f"/{trainer.optimizers.index(optimizer)}" if len(trainer.optimizers) > 1 else ""
        values: dict[str, float | torch.Tensor] = {
            **group_values(optimizer, self.momentum, self.weight_decay, of, self._logged)
        }
        if self.grad_norm:
            values[f"grad_norm{of}"] = _norm(trainer, optimizer)
        pl_module.log_dict(values)
        if self.lost_updates:
            self._lost.setdefault(of, LostUpdates()).watch(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Log what the update has lost."""
        for of, lost in self._lost.items():
            shares = lost.take()
            if shares is not None:
                pl_module.log_dict(lost_values(shares, self._logged, of))

    def on_exception(self, *args: Any) -> None:
        """Leave the optimizers as they were."""
        self._forget()

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Leave the optimizers as they were."""
        self._forget()

    def _forget(self) -> None:
        for lost in self._lost.values():
            lost.take()
        self._lost.clear()


def _norm(trainer: Trainer, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    found = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    grads = [g.coalesce().values() if g.is_sparse else g for g in found]
    norm = global_norm(grads) if grads else torch.zeros(())
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and unscales_by_itself(optimizer):
        norm = norm / float(scaler.get_scale())
    return norm
