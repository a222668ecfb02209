"""Modules that optimize by themselves, and so step the recipe's scheduler by themselves."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from optimplug.errors import RecipeError
from optimplug.recipe import RecipeScheduler

__all__ = ["ManualCheck"]


class ManualCheck(Callback):
    """Raises where a module with ``automatic_optimization = False`` leaves the scheduler behind.

    :func:`optimplug.lightning.configure_optimizers` adds one for such a module: Lightning steps
    its schedulers no more than its optimizers, and says nothing.

    Args:
        optimizer: the recipe's.
        scheduler: the recipe's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: RecipeScheduler) -> None:
        self._scheduler = scheduler
        self._updates, self._first = 0, 0
        optimizer.register_step_post_hook(self._count)

    def _count(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._updates += 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where the run begins, which may be in the middle of the schedule."""
        self._updates, self._first = 0, self._scheduler.last_epoch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look back at the batches before, whose hooks are all over.

        Raises:
            RecipeError: there were more updates than steps of the scheduler.
        """
        self._compare(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look back at the last batch.

        Raises:
            RecipeError: there were more updates than steps of the scheduler.
        """
        self._compare(pl_module)

    def _compare(self, module: LightningModule) -> None:
        steps = self._scheduler.last_epoch - self._first
        if steps < self._updates and self._scheduler.changes:
            raise RecipeError.at(
                "schedule",
                f"took {steps} steps in {self._updates} updates: {type(module).__name__} optimizes "
                "by itself, so it must call self.lr_schedulers().step() after each update",
            )
