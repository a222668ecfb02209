"""A scheduler is stepped after the updates that really happened."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule

from optimplug.recipe import RecipeScheduler
from optimplug.recipe.updates import Updates

__all__ = ["step_after_updates"]

_METHOD = "lr_scheduler_step"


def step_after_updates(module: LightningModule, scheduler: RecipeScheduler) -> None:
    """Let a recipe's scheduler be stepped only when its optimizer was.

    Lightning steps a scheduler also after an update that AMP skipped.
    """
    scheduler.updates = Updates(scheduler.optimizer)
    own = getattr(type(module), _METHOD)
    if own is not getattr(LightningModule, _METHOD):
        warnings.warn(
            f"{type(module).__name__}.{_METHOD} is not called for the recipe's scheduler, which "
            "is stepped once per update",
            UserWarning,
            stacklevel=3,
        )
    setattr(module, _METHOD, partial(_step, own.__get__(module)))


def _step(others: Any, scheduler: Any, metric: Any) -> None:
    if not isinstance(scheduler, RecipeScheduler) or scheduler.updates is None:
        others(scheduler, metric)
    elif scheduler.updates.take():
        scheduler.step()
