"""Hyperparameters other than the rate that follow curves, and their own values in the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimplug.errors import StateError
from optimplug.recipe.schedule.timeline import RunSchedule

__all__ = ["check_own_values", "own_values", "restore_own_values", "set_scheduled"]

Groups = Sequence[dict[str, Any]]
Values = Mapping[str, Sequence[Any]]
"""By hyperparameter, the own value of each group; None in a group that has none."""


def set_scheduled(groups: Groups, run_schedule: RunSchedule, t: int) -> None:
    """Set what the curves have after ``t`` updates, and keep the own values beside it."""
    for group in groups:
        for of, curve in run_schedule.curves_in(group).items():
            if of != "lr" and of in group:  # of several optimizers, not each has it
                own = group.setdefault(f"initial_{of}", group[of])
                group[of] = _scaled(own, curve(t))


def own_values(groups: Groups, run_schedule: RunSchedule) -> dict[str, list[Any]]:
    """Return the own values of all that is scheduled, for a state to hold."""
    names = sorted(run_schedule.scheduled() - {"lr"})
    return {of: [group.get(f"initial_{of}") for group in groups] for of in names}


def check_own_values(values: Values, groups: int) -> None:
    """Check what a state holds of own values.

    Raises:
        StateError: it is not of so many groups.
    """
    for of, each in values.items():
        if len(each) != groups:
            raise StateError(
                f"_initial[{of!r}] must hold {groups} values, one for each group (got {each!r})"
            )


def restore_own_values(values: Values, groups: Groups) -> None:
    """Give groups the own values that :func:`check_own_values` has let pass."""
    for of, each in values.items():
        for group, own in zip(groups, each, strict=True):
            if own is not None:
                group[f"initial_{of}"] = tuple(own) if isinstance(own, list) else own


def _scaled(own: Any, factor: float) -> Any:
    return tuple(v * factor for v in own) if isinstance(own, tuple | list) else own * factor
