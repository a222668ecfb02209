"""Modules that optimize by themselves, and so step the recipe's scheduler by themselves."""

from __future__ import annotations

from typing import Any

from optimplug.errors import RecipeError
from optimplug.lightning.package import Callback, LightningModule, Trainer
from optimplug.recipe.schedule.scheduled import ScheduledOptimizer

__all__ = ["ManualCheck"]


class ManualCheck(Callback):
    """Raises where a module with ``automatic_optimization = False`` leaves the scheduler behind.

    :func:`optimplug.lightning.configure_optimizers` adds one for such a module: Lightning steps
    its schedulers no more than its optimizers, and says nothing.

    Args:
        run: whose updates and whose schedule are compared.
    """

    def __init__(self, run: ScheduledOptimizer) -> None:
        self._run = run
        self._done = self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where the run begins, which may be in the middle of the schedule.

        Raises:
            RecipeError: the run's length is in updates, of which each of several optimizers makes
                only a part.
        """
        if len(trainer.optimizers) > 1 and trainer.max_steps != -1:
            raise RecipeError.at(
                "schedule",
                f"would be laid out over max_steps={trainer.max_steps}, but Lightning counts the "
                f"updates of all {len(trainer.optimizers)} optimizers together; give max_epochs",
            )
        self._done, self._first = 0, self._run.scheduler.last_epoch

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
        self._done += self._run.updates.take()
        scheduler = self._run.scheduler
        steps = scheduler.last_epoch - self._first
        if steps < self._done and scheduler.changes:
            raise RecipeError.at(
                "schedule",
                f"took {steps} steps in {self._done} updates: {type(module).__name__} optimizes "
                "by itself, so it must call self.lr_schedulers().step() after each update",
            )
