"""Where a checkpoint comes from: what a scheduler's state says of the recipe and the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optimplug import __version__
from optimplug.recipe.clipped import class_of
from optimplug.recipe.text.durations import Horizon

__all__ = ["class_path", "provenance"]


def provenance(
    recipe: str, optimizer: torch.optim.Optimizer, horizon: Horizon, whole: Mapping[str, Any]
) -> dict[str, Any]:
    """Return it as plain values.

    Args:
        recipe: as YAML.
        optimizer: that it has made.
        horizon: over which the schedule is laid out.
        whole: the settings that are the optimizer's as a whole, and in no group.
    """
    return {
        "recipe": recipe,
        "optimplug": __version__,
        "optimizer": class_path(class_of(optimizer)),
        "horizon": {
            "total_steps": horizon.total_steps,
            "steps_per_epoch": horizon.steps_per_epoch,
        },
        "whole": {name: value for name, value in whole.items() if value},
    }


def class_path(cls: type) -> str:
    """Return by which name a class is told from others: ours by its name, torch's as in torch.

    Example:
        >>> import optimplug.optim
        >>> class_path(optimplug.optim.AdamW), class_path(torch.optim.AdamW)
        ('AdamW', 'torch.optim.AdamW')
    """
    for module, start in (("torch.optim.", "torch.optim."), ("optimplug.", "")):
        if cls.__module__.startswith(module):
            return f"{start}{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"
