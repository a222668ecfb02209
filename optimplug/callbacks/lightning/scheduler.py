"""Any scheduler of torch, stepped after updates, epochs or validations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from optimplug.callbacks.step_interval import Interval, StepInterval
from optimplug.errors import ArgumentError, StateError
from optimplug.lightning.internals import callbacks_of
from optimplug.lightning.leaving import LeavesAfterFit
from optimplug.lightning.package import LightningModule, LRSchedulerConfig, Trainer
from optimplug.lightning.validations import (
    CompletesValidations,
    agreed,
    in_fit,
    require_validations,
)
from optimplug.recipe import RecipeScheduler
from optimplug.recipe.updates import Updates

__all__ = ["SchedulerCallback"]


class SchedulerCallback(CompletesValidations, LeavesAfterFit):
    """Steps any scheduler of torch after updates, epochs or validations.

    The module's ``configure_optimizers`` returns its optimizer without it. The scheduler is saved
    in checkpoints and shown to other callbacks as Lightning's own are, and a resumed run goes on
    where it was. After an update that AMP skipped it is not stepped.

    Args:
        scheduler_or_factory: a scheduler of torch or optimplug for one of the module's optimizers;
            or a function from the optimizer to one, for a module that has one optimizer.
        interval: what is counted: "step" (updates of the optimizer), "epoch" or "validation".
            An epoch that was broken off is none, nor is a validation outside of ``fit``.
        frequency: after every how many of them it is stepped.
        monitor: the metric that a plateau follows, as the validation logs it; its mean over all
            processes.

    Raises:
        ArgumentError: an argument breaks its rule; or, when the run starts, the scheduler does not
            fit the module or the other arguments; or the validation has not logged the metric.

    Example:
        ``SchedulerCallback(lambda optimizer: StepLR(optimizer, 30), interval="epoch")``
    """

    def __init__(
        self,
        scheduler_or_factory: LRScheduler | Callable[[torch.optim.Optimizer], LRScheduler],
        interval: Interval = "step",
        frequency: int = 1,
        monitor: str | None = None,
    ) -> None:
        self.step_interval = StepInterval(interval, frequency, monitor)
        self._given = scheduler_or_factory
        self._count = 0
        self._updates: Updates | None = None
        self.counts_validations = interval == "validation"
        if isinstance(scheduler_or_factory, LRScheduler):
            self.step_interval.check(scheduler_or_factory)
        elif not callable(scheduler_or_factory):
            given = type(scheduler_or_factory).__name__
            raise ArgumentError(
                f"scheduler_or_factory must be a scheduler, or a function to one (got {given})"
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to count."""
        super().setup(trainer, pl_module, stage)
        self._count = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the scheduler, and give it to the trainer, who saves and restores it."""
        if self.counts_validations:
            require_validations(trainer, lambda problem: ArgumentError(f"the callback {problem}"))
        self.scheduler = self._built(trainer)
        self._check(trainer)
        self._updates = Updates(self.scheduler.optimizer)
        # Lightning steps every frequency-th time that it would, so never.
        config = LRSchedulerConfig(self.scheduler, interval="step", frequency=sys.maxsize)
        trainer.strategy.lr_scheduler_configs.append(config)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Step after an update, or after the last one of an epoch: before checkpoints are saved."""
        if self.step_interval.interval == "step":
            self._counted(self._updates.take() if self._updates else 0)
        elif self.step_interval.interval == "epoch":
            self._counted(int(trainer.is_last_batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step after a validation in ``fit``; the sanity check is none."""
        if self.counts_validations and in_fit(trainer):
            monitor = self.step_interval.monitor
            self._counted(1, agreed(trainer, {monitor} if monitor else set()))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save how much was counted; the scheduler's state is with the trainer's."""
        checkpoint.setdefault(_SAVED, {})[self._place(trainer)] = {
            **self._kind(),
            "count": self._count,
        }
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on counting where the run was; one that had no such callback begins to count.

        Raises:
            StateError: the run had other callbacks of this class, or in another order.
        """
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        saved = checkpoint.get(_SAVED)
        if saved is None or not trainer.training:
            return
        here = saved.get(self._place(trainer), {})
        kind = {key: value for key, value in here.items() if key != "count"}
        if kind != self._kind() or len(saved) != len(_all_in(trainer)):
            raise StateError(
                f"the checkpoint's SchedulerCallbacks are {[*saved.values()]}, but number "
                f"{self._place(trainer)} here is {self._kind()}; give the same, in the same order"
            )
        self._count = here["count"]

    def leave(self) -> None:
        """Listen to the optimizer no longer."""
        if self._updates is not None:
            self._updates.close()

    def _built(self, trainer: Trainer) -> LRScheduler:
        if isinstance(self._given, LRScheduler):
            return self._given
        optimizers = trainer.optimizers
        if len(optimizers) != 1:
            raise ArgumentError(
                "scheduler_or_factory must be a scheduler, not a function to one, where the "
                f"module has {len(optimizers)} optimizers"
            )
        scheduler = self._given(optimizers[0])
        self.step_interval.check(scheduler)
        return scheduler

    def _check(self, trainer: Trainer) -> None:
        """Refuse a scheduler that acts on nothing here, or on what another one acts on."""
        own = self.scheduler.optimizer
        if not any(own is optimizer for optimizer in trainer.optimizers):
            raise ArgumentError(
                "scheduler_or_factory must be a scheduler of an optimizer that the module's "
                "configure_optimizers returns"
            )
        for other in (config.scheduler for config in trainer.lr_scheduler_configs):
            if other is self.scheduler:
                raise ArgumentError(
                    "scheduler_or_factory is stepped by Lightning already; let "
                    "configure_optimizers return the optimizer alone"
                )
            if isinstance(other, RecipeScheduler) and other.changes and other.optimizer is own:
                raise ArgumentError(
                    "the optimizer of scheduler_or_factory already follows a recipe's schedule; "
                    "leave out one of the two"
                )

    def _counted(self, new: int, metrics: Mapping[str, Any] | None = None) -> None:
        for _ in range(new):
            if self.step_interval.due(self._count + 1):
                self.step_interval.step(self.scheduler, metrics)
            self._count += 1

    def _place(self, trainer: Trainer) -> int:
        """Return which of the trainer's callbacks of this class it is."""
        return _all_in(trainer).index(self)

    def _kind(self) -> dict[str, Any]:
        return asdict(self.step_interval)


def _all_in(trainer: Trainer) -> list[SchedulerCallback]:
    return [c for c in callbacks_of(trainer) if isinstance(c, SchedulerCallback)]


_SAVED = "optimplug_scheduler_callbacks"
