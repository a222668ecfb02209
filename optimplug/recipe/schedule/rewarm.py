"""Rates that climb again: from the one that a run had to the one that its schedule has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from optimplug.errors import StateError

__all__ = ["Climb", "added_to", "check_climbs", "climbs_from", "climbs_in", "over", "under_way"]


class Climb(NamedTuple):
    """How the rate of a group goes, over some updates, to where its schedule has it.

    It goes down where the rate was higher. Whatever the schedule does meanwhile, the rate lies
    between where it began and that, so that it is never below 0.
    """

    begin: int
    """The update after which it begins."""
    steps: int
    """How many updates it takes; at least one."""
    start: float
    """The rate where it begins."""

    def __call__(self, t: int, rate: float) -> float:
        """Return the rate after ``t`` updates, where the schedule's is ``rate``."""
        share = (t - self.begin) / self.steps
        return self.start + (rate - self.start) * share if 0 <= share < 1 else rate

    @property
    def end(self) -> int:
        """The update after which the schedule alone sets the rate."""
        return self.begin + self.steps


Climbs = Sequence[Climb | None]
"""That of each group, in the optimizer's order; groups beyond its end have none."""


def over(climbs: Climbs, t: int, rates: Sequence[float]) -> list[float]:
    """Return the rates of all groups after ``t`` updates, where the schedule has these."""
    pairs = zip_longest(rates, climbs[: len(rates)])
    return [rate if climb is None else climb(t, rate) for rate, climb in pairs]


def climbs_from(
    starts: Sequence[float], rates: Sequence[float], t: int, steps: int
) -> dict[int, Climb]:
    """Return, by group, how the rates go from what they were to what they are.

    Args:
        starts: what the rate of each group was.
        rates: what it is.
        t: after how many updates.
        steps: how many updates it takes.

    Returns:
        The climbs of the groups of which it was another one.
    """
    pairs = enumerate(zip(starts, rates, strict=True))
    # A rate that somebody keeps in a tensor has fewer digits.
    return {
        i: Climb(t, steps, float(was))
        for i, (was, new) in pairs
        if not math.isclose(was, new, rel_tol=1e-6)
    }


def added_to(climbs: Climbs, new: Mapping[int, Climb], groups: int) -> list[Climb | None]:
    """Return the climb of each of so many groups, where new ones stand for those there were."""
    padded = [*climbs, *[None] * (groups - len(climbs))]
    return [new.get(i, climb) for i, climb in enumerate(padded)]


def under_way(climbs: Climbs, t: int) -> list[list[Any] | None]:
    """Return those that have not ended after ``t`` updates, as plain values; none if all have."""
    found = [[*climb] if climb and t < climb.end else None for climb in climbs]
    return found if any(found) else []


def climbs_in(values: Sequence[Any]) -> list[Climb | None]:
    """Return what :func:`check_climbs` has let pass."""
    return [None if value is None else Climb(*value) for value in values]


def check_climbs(values: object, groups: int) -> None:
    """Check what a state holds of them.

    Raises:
        StateError: it is not for each of so many groups, or the first of them, None or a climb.
    """
    fits = isinstance(values, list) and len(values) <= groups and all(map(_is_climb, values))
    if not fits:
        raise StateError(
            f"_climbs must hold, for each of at most {groups} groups, None or the update, the "
            f"number of updates and the rate with which a climb begins (got {str(values)[:200]})"
        )


def _is_climb(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    begin, steps, start = value
    counts = type(begin) is int and type(steps) is int and begin >= 0 and steps >= 1
    return counts and type(start) is float and math.isfinite(start) and start >= 0
