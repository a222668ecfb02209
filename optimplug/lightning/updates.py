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
