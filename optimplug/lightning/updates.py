"""Which updates really happened: under AMP, some are skipped."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule

from optimplug.recipe import RecipeScheduler

__all__ = ["Updates", "step_after_updates"]

_METHOD = "lr_scheduler_step"


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


def step_after_updates(module: LightningModule, scheduler: RecipeScheduler) -> None:
    """Let a recipe's scheduler be stepped only when its optimizer was.

    Lightning steps a scheduler also after an update that AMP skipped.
    """
    held = vars(module).get(_METHOD)
    if isinstance(held, partial) and held.func is _step:  # of another scheduler, or another run
        held.args[0][scheduler] = Updates(scheduler.optimizer)
        return
    own = getattr(type(module), _METHOD)
    if own is not getattr(LightningModule, _METHOD):
        warnings.warn(
            f"{type(module).__name__}.{_METHOD} is not called for the recipe's scheduler, which "
            "is stepped once per update",
            UserWarning,
            stacklevel=3,
        )
    updates = {scheduler: Updates(scheduler.optimizer)}
    setattr(module, _METHOD, partial(_step, updates, own.__get__(module)))


def _step(updates: dict[Any, Updates], others: Any, scheduler: Any, metric: Any) -> None:
    if scheduler not in updates:
        others(scheduler, metric)
    elif updates[scheduler].take():
        scheduler.step()
