"""What a checkpoint says of the groups otherwise than the recipe that resumes it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from optimplug._core.arguments import owner_of
from optimplug.errors import listed
from optimplug.recipe.clipped import class_of
from optimplug.recipe.keywords import NOT_SET, keywords_of

__all__ = ["settings_of", "tell_differences"]

Settings = Mapping[str, Mapping[str, Any]]
"""The hyperparameters of each group, as they are before any schedule."""


def settings_of(optimizer: torch.optim.Optimizer) -> Settings:
    """Return the own settings of every group, by its name.

    These are the arguments of its class. What else an optimizer keeps in its groups (the count and
    the highest rate of a schedule-free one, say) changes from step to step. How weights and moments
    are stored stays the optimizer's own, whatever a checkpoint says.
    """
    settable = keywords_of(class_of(owner_of(optimizer)), without=NOT_SET)
    return {
        str(group.get("name", i)): {
            key: group.get(f"initial_{key}", value)
            for key, value in group.items()
            if key in settable and key not in ("rounding", "state_dtype")
        }
        for i, group in enumerate(optimizer.param_groups)
    }


def tell_differences(ours: Settings, saved: Settings, checkpoint: str) -> None:
    """Warn, once, of settings that a checkpoint brought with it and the recipe has otherwise."""
    found = [
        f"{name}: {key} {saved[name][key]} (the recipe's is {value})"
        for name, settings in ours.items()
        for key, value in settings.items()
        if key in saved.get(name, {}) and saved[name][key] != value
    ]
    if found:
        warnings.warn(
            f"{checkpoint} was saved with other settings, which apply: {listed(found, most=5)}",
            UserWarning,
            stacklevel=3,
        )
