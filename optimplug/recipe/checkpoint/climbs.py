"""Rates that go from where a checkpoint had them to where the schedule has them now: rewarm."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from optimplug.recipe.checkpoint.differences import Comparison, OwnGroup, comparable
from optimplug.recipe.checkpoint.resumption import Rewarmed
from optimplug.recipe.checkpoint.saved import SavedGroup
from optimplug.recipe.schedule.rewarm import Climb, check_climbs, climbs_in
from optimplug.recipe.schedule.scheduler import RecipeScheduler

__all__ = ["climbs_notes", "climbs_under_way", "rewarmed", "where_rates_were"]


def climbs_under_way(comparison: Comparison) -> list[Climb | None]:
    """Return for each group here the climb that had not ended as the checkpoint was saved.

    Raises:
        StateError: what it holds of them is something else.
    """
    saved = comparison.saved
    values = (saved.schedule or {}).get("_climbs", []) if saved.is_ours else []
    check_climbs(values, len(saved.groups))
    climbs = climbs_in(values)
    climbs += [None] * (len(saved.groups) - len(climbs))
    places = [
        [saved.groups.index(theirs) for theirs in _before(comparison, own)]
        for own in comparison.own
    ]
    return [climbs[found[0]] if found else None for found in places]


def where_rates_were(comparison: Comparison) -> list[float]:
    """Return the rate of each group here as the checkpoint was saved.

    It is 0 of what nothing has moved until then, or another optimizer, whose rates mean something
    else.
    """
    return [
        next((float(r) for r in rates if isinstance(r, int | float)), 0.0)
        for rates in (
            [comparable(theirs.settings.get("lr")) for theirs in _before(comparison, own)]
            for own in comparison.own
        )
    ]


def _before(comparison: Comparison, own: OwnGroup) -> list[SavedGroup]:
    """Return the saved groups that a group here goes on from, those of most parameters first."""
    return [theirs for theirs in comparison.donors(own) if comparison.same_kind(theirs, own)]


def rewarmed(scheduler: RecipeScheduler, group: int, climb: Climb, label: str) -> Rewarmed:
    """Return what is said of a group whose rate climbs."""
    return Rewarmed(label, climb.start, scheduler.rates(climb.end)[group], climb.end)


def climbs_notes(scheduler: RecipeScheduler, new: Collection[int]) -> Iterator[str]:
    """Walk what else there is to know of climbs.

    Args:
        scheduler: that has them.
        new: the groups whose climb begins now.
    """
    ends = {i: climb.end for i, climb in enumerate(scheduler.climbs) if climb is not None}
    older = [end for i, end in ends.items() if i not in new]
    if older:
        yield f"rates still climb since an earlier resume, until update {max(older):,}"
    last, total = max(ends.values(), default=0), scheduler.total_steps
    if total is not None and last > total:
        yield (
            f"rates climb until update {last:,}, but the run ends after {total:,}, so that they do "
            "not get to where the schedule has them"
        )
