"""Which updates really happened: under AMP, some are skipped."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule

from optimplug.recipe import RecipeScheduler

__all__ = ["Updates", "step_after_updates"]


class Updates:
    """Counts the updates of an optimizer, without those that a GradScaler skipped.

    Args:
        optimizer: what is listened to.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._done = self._taken = 0
        optimizer.register_step_post_hook(self._count)

    def _count(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # Where the optimizer unscales by itself, it is called for a skipped update as well.
        skipped = getattr(optimizer, "found_inf", None)
        self._done += skipped is None or not skipped

    def take(self) -> int:
        """Return how many there were since the last call."""
        new, self._taken = self._done - self._taken, self._done
        return new


def step_after_updates(module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
    """Let a recipe's scheduler be stepped only when its optimizer was.

    Lightning steps a scheduler also after an update that AMP skipped.
    """
    own = getattr(type(module), "lr_scheduler_step").__get__(module)  # noqa: B009 (a patched one would nest)
    setattr(module, "lr_scheduler_step", partial(_step, Updates(optimizer), own))  # noqa: B010


def _step(updates: Updates, others: Any, scheduler: Any, metric: Any) -> None:
    if not isinstance(scheduler, RecipeScheduler):
        others(scheduler, metric)
    elif updates.take():
        scheduler.step()
