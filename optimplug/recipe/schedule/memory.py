"""What phases remember of metrics: saved by the phase that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from optimplug.errors import StateError
from optimplug.recipe.schedule.curves import Factor, PlateauFactor
from optimplug.recipe.schedule.timeline import RunSchedule

__all__ = ["Memory", "factor_keys", "memory_of", "paired", "remembered"]

Key = tuple[str, str, str]
"""Of a factor: the rule whose schedule it stands in, the hyperparameter, and its label."""


def factor_keys(schedule: RunSchedule) -> list[Key]:
    """Return what each factor is, in the order of :func:`remembered`."""
    return [key for key, _ in _factors(schedule)]


def remembered(schedule: RunSchedule) -> list[dict[str, Any]]:
    """Return what all factors remember, as plain values."""
    return [factor.state() for _, factor in _factors(schedule)]


def paired(schedule: RunSchedule, states: Any) -> Iterator[tuple[Factor, Any]]:
    """Walk all factors with what was saved of them under the same schedule.

    Raises:
        StateError: there are not as many.
    """
    factors = [factor for _, factor in _factors(schedule)]
    if not isinstance(states, list) or len(states) != len(factors):
        raise StateError(f"_remembered must hold {len(factors)} states (got {states!r})")
    yield from zip(factors, states, strict=True)


class Memory(NamedTuple):
    """What of another schedule's memory goes on here."""

    kept: list[tuple[Factor, Any]]
    """Factors that were there before, with what was saved of them."""
    lost: list[str]
    """The labels of those that have seen validations, or reports, and are gone."""
    begun: list[str]
    """The labels of those that follow a metric and are new."""


def memory_of(schedule: RunSchedule, state: Mapping[str, Any]) -> Memory:
    """Find the factors again that were there under another schedule.

    The same one is of the same hyperparameter, with the same arguments; in the same rule, or in
    another where that is gone, as a rule that is put before others moves them on.

    Args:
        schedule: whose factors they are now.
        state: the state of the other one's scheduler.

    Raises:
        StateError: it is none, or what it holds of a factor is no state of that.
    """
    states, keys = state.get("_remembered", []), _keys_in(state)
    if keys is None and state.get("fingerprint") == str(schedule):
        keys = factor_keys(schedule)  # it was saved before they were noted
    if not isinstance(states, list) or (keys is not None and len(keys) != len(states)):
        raise StateError(f"_remembered must hold a state for each factor (got {states!r})")
    left = dict(enumerate(keys or []))
    own = dict(enumerate(_factors(schedule)))
    kept = []
    for part in (slice(0, 3), slice(1, 3)):  # with the rule, then without
        for i, (key, factor) in list(own.items()):
            j = next((j for j, other in left.items() if other[part] == key[part]), None)
            if j is not None:
                factor.check_state(states[j])
                kept.append((factor, states[j]))
                del left[j], own[i]
    lost = [left[j][2] for j in left if _has_seen(left[j], states[j])]
    begun = [key[2] for key, factor in own.values() if isinstance(factor, PlateauFactor)]
    return Memory(kept, lost, begun)


def _keys_in(state_dict: Mapping[str, Any]) -> list[Key] | None:
    """Return them from a scheduler's state; None where it has none.

    Raises:
        StateError: what stands there is something else.
    """
    provenance = state_dict.get("provenance")
    if not isinstance(provenance, Mapping) or "factors" not in provenance:
        return None
    given = provenance["factors"]
    fits = isinstance(given, list) and all(
        isinstance(key, list | tuple) and len(key) == 3 and all(isinstance(k, str) for k in key)
        for key in given
    )
    if not fits:
        raise StateError(f"factors must be lists of rule, hyperparameter, label (got {given!r})")
    return [(key[0], key[1], key[2]) for key in given]


def _has_seen(key: Key, state: Any) -> bool:
    """Tell whether it would be another one without the metrics that there were."""
    # All are told of validations; those that count them say so at the end of their labels.
    counts = key[2].endswith((" every validation", " every report"))
    seen = ("validations", "reports")
    return counts and isinstance(state, dict) and any(state.get(count, 0) != 0 for count in seen)


def _factors(schedule: RunSchedule) -> Iterator[tuple[Key, Factor]]:
    """Walk all factors, each with what it is."""
    for rule, curves in ((None, schedule.shared), *schedule.own.items()):
        for of, curve in curves.items():
            for factor in curve.factors():
                yield ("" if rule is None else rule.path, of, factor.label), factor
