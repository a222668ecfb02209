"""Whether a state fits the scheduler that it is loaded into."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from optimplug._core.lr_scheduler.arguments import as_number
from optimplug.errors import StateError

__all__ = ["check_state", "completed"]

# torch saves these of its own; they say nothing about the schedule.
_TORCH_FLAGS = frozenset(
    {
        *("_get_lr_called_within_step", "_is_initial", "verbose"),
        *("use_beta1", "default_min_lr", "mode_worse"),  # told by the groups, min_lrs and mode
    }
)


def completed(
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    rates: Collection[str],
    ours_alone: Collection[str],
) -> dict[str, Any]:
    """Return a state, torch's included, with the keys and number types of our own.

    Args:
        given: the state to load.
        own: the state of the scheduler that it is for.
        rates: keys of lists that hold numbers.
        ours_alone: keys that torch's state lacks; they stay as they are.
    """
    state = {key: value for key, value in given.items() if key not in _TORCH_FLAGS}
    for key in rates:
        if isinstance(state.get(key), list):
            state[key] = [_as_float(value) for value in state[key]]
    if "_class" not in state:
        state |= {key: own[key] for key in ("_class", *ours_alone) if key not in state}
    return state


def check_state(
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    whole: Collection[str],
    per_group: Collection[str],
) -> None:
    """Raise unless a state has the keys, kinds and number of groups of our own.

    Args:
        given: the state to load, completed.
        own: the state of the scheduler that it is for.
        whole: keys of lists with a number for every group.
        per_group: keys of lists whose last entry serves groups to come.

    Raises:
        StateError: what does not fit.
    """
    name = own["_class"]
    if given["_class"] != name or own.keys() != given.keys():
        other = given["_class"]
        raise StateError(
            f"this state is {f'of a {other}, ' if other != name else ''}not of a {name}: "
            f"missing {sorted(own.keys() - given.keys())}, "
            f"unexpected {sorted(map(str, given.keys() - own.keys()))}"
        )
    for key, value in own.items():
        if not _same_kind(value, given[key]):
            kind = type(value).__name__
            raise StateError(
                f"{key} must be of the kind {kind}, like {value!r} (got {given[key]!r})"
            )
    if type(given["last_epoch"]) is not int or given["last_epoch"] < -1:
        raise StateError(f"last_epoch must be an int >= -1 (got {given['last_epoch']!r})")
    for key in whole:
        _check_numbers(key, given[key])
        if len(given[key]) != len(own[key]):
            raise StateError(
                f"the state holds {len(given[key])} groups, but the optimizer has {len(own[key])}"
            )
    for key in per_group:
        _check_numbers(key, given[key])
        most = len(own["_last_lr"])
        if bool(given[key]) != bool(own[key]) or len(given[key]) > most:
            raise StateError(
                f"{key} must have an entry for each of {most} groups (got {given[key]!r})"
            )


def _check_numbers(key: str, values: list[Any]) -> None:
    if not all(isinstance(value, float) for value in values if value is not None):
        raise StateError(f"{key} must be a list of numbers (got {values!r})")


def _same_kind(own: Any, given: Any) -> bool:
    """Tell whether both are of one type; all numbers are one, and so are all items of a list."""
    if isinstance(own, dict) and isinstance(given, dict):
        return own.keys() == given.keys() and all(_same_kind(own[k], given[k]) for k in own)
    if isinstance(own, list) and isinstance(given, list):
        kinds = {_kind(item) for item in own if item is not None}
        return not kinds or all(item is None or _kind(item) in kinds for item in given)
    return _kind(given) is _kind(own)


def _kind(value: object) -> type:
    """Return the type of a value, one for all numbers."""
    return float if type(value) is int else type(value)


def _as_float(value: Any) -> Any:
    """Turn an int or a tensor of one element into a float; leave anything else to be refused."""
    number = as_number(value)
    return value if number is None else number
