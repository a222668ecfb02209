"""What the monitors of all trainers log of lost updates, by its names."""

from __future__ import annotations

from optimplug.callbacks.lost_updates import Shares
from optimplug.recipe.logged import LoggedGroups

__all__ = ["lost_values"]


def lost_values(shares: Shares, logged: LoggedGroups, of: str = "") -> dict[str, float]:
    """Return what an update has lost: ``lost_updates``, and ``lost_updates/<group>``."""
    key = f"lost_updates{of}"
    groups = {f"{key}/{name}": share for name, share in shares.groups.items() if name in logged}
    return {key: shares.together, **groups}
