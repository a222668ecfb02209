"""What the monitors of all trainers log, by its names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from optimplug.callbacks.lost_updates import Shares

__all__ = ["group_values", "lost_values"]


def group_values(
    optimizer: torch.optim.Optimizer, momentum: bool, weight_decay: bool, of: str = ""
) -> dict[str, float]:
    """Return the rate of every group, as ``lr/<group>``, and what else is asked for.

    Args:
        optimizer: whose groups.
        momentum: also ``momentum/<group>``: its momentum, or the first of its betas.
        weight_decay: also ``weight_decay/<group>``.
        of: what comes before the group's name, where there are several optimizers.
    """
    return {
        f"{what}{of}/{group.get('name', i)}": float(value)
        for i, group in enumerate(optimizer.param_groups)
        for what, value in _values(group, momentum, weight_decay)
    }


def _values(
    group: dict[str, Any], momentum: bool, weight_decay: bool
) -> Iterator[tuple[str, float]]:
    yield "lr", group["lr"]
    if momentum and ("momentum" in group or "betas" in group):
        yield "momentum", group["betas"][0] if "betas" in group else group["momentum"]
    if weight_decay and "weight_decay" in group:
        yield "weight_decay", group["weight_decay"]


def lost_values(shares: Shares, of: str = "") -> dict[str, float]:
    """Return what an update has lost: ``lost_updates``, and ``lost_updates/<group>``."""
    key = f"lost_updates{of}"
    groups = {f"{key}/{name}": share for name, share in shares.groups.items()}
    return {key: shares.together, **groups}
