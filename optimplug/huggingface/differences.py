"""What a checkpoint says of the groups otherwise than the recipe that resumes it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["settings_of", "tell_differences"]

_NOT_SET = ("params", "param_names", "name", "schedule", "freeze")

Settings = Mapping[str, Mapping[str, Any]]
"""The hyperparameters of each group, as they are before any schedule."""


def settings_of(optimizer: torch.optim.Optimizer) -> Settings:
    """Return the own settings of every group, by its name."""
    return {
        str(group.get("name", i)): {
            key: group.get(f"initial_{key}", value)
            for key, value in group.items()
            if key not in _NOT_SET and not key.startswith("initial_")
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
        shown = ", ".join(found[:5]) + (f", and {len(found) - 5} more" if found[5:] else "")
        warnings.warn(
            f"{checkpoint} was saved with other settings, which apply: {shown}",
            UserWarning,
            stacklevel=3,
        )
