"""What of a run as a whole is otherwise: its schedule, its horizon, clipping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from optimplug.errors import StateError
from optimplug.recipe.checkpoint.differences import comparable
from optimplug.recipe.checkpoint.resumption import Change
from optimplug.recipe.checkpoint.saved import Saved
from optimplug.recipe.schedule.scheduler import RecipeScheduler
from optimplug.recipe.text.durations import Horizon

__all__ = ["horizon_in", "horizon_words", "horizons_differ", "schedule_changes", "whole_changes"]


def schedule_changes(saved: Saved, scheduler: RecipeScheduler) -> Iterator[Change]:
    """Walk what of the schedule and of timed freezing is otherwise."""
    if saved.schedule is None:
        return
    if not saved.is_ours:
        yield Change("schedule", "none of a recipe", scheduler.fingerprint, ())
        return
    there, here = (_parts(str(f)) for f in (saved.schedule["fingerprint"], scheduler.fingerprint))
    for key in dict.fromkeys([*there, *here]):
        if there.get(key) != here.get(key):
            yield Change(key, there.get(key), here.get(key), ())


def _parts(fingerprint: str) -> dict[str, str]:
    """Return what a schedule's text says of the recipe, and of each rule."""
    first, *others = fingerprint.split(" | ")
    found = {"schedule": first}
    for part in others:
        rule, _, text = part.partition(": ")
        freezes = text.startswith("frozen ")
        found[f"{'freeze' if freezes else 'schedule'} of {rule}"] = text.removeprefix("frozen ")
    return found


def whole_changes(saved: Saved, scheduler: RecipeScheduler) -> Iterator[Change]:
    """Walk the settings of the optimizer as a whole that are otherwise."""
    there, here = (p.get("whole") for p in (saved.provenance, scheduler.provenance))
    if not isinstance(there, Mapping) or not isinstance(here, Mapping):
        return
    for key in dict.fromkeys([*there, *here]):
        before, after = comparable(there.get(key)), comparable(here.get(key))
        if before != after:
            yield Change(str(key), before, after, ())


def horizon_in(saved: Saved) -> Horizon | None:
    """Return over how many updates the saved schedule was laid out, where it says so.

    Raises:
        StateError: what it says is no horizon.
    """
    found = saved.provenance.get("horizon")
    if not isinstance(found, Mapping):
        return None
    try:
        return Horizon(**found)
    except (TypeError, ValueError) as error:
        raise StateError(f"the checkpoint's horizon is none: {error} (got {found!r})") from error


def horizon_words(horizon: Horizon | None) -> str | None:
    """Return a horizon as messages have it."""
    if horizon is None:
        return None
    total, epoch = horizon.total_steps, horizon.steps_per_epoch
    words = f"{total:,} updates" if total is not None else "unknown"
    return words if epoch is None else f"{words}, {epoch:,} an epoch"


def horizons_differ(there: Horizon | None, here: Horizon | None) -> bool:
    """Tell whether a run is of another length, or its epochs are."""
    if there is None or here is None:
        return False
    epochs = (there.steps_per_epoch, here.steps_per_epoch)
    return there.total_steps != here.total_steps or (None not in epochs and len({*epochs}) > 1)
