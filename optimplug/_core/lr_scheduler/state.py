"""Whether a state fits the scheduler that it is loaded into."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from typing import Any

from optimplug._core.arguments import as_number
from optimplug.errors import StateError

__all__ = ["check_functions", "check_state", "completed", "function_state", "load_functions"]

State = Mapping[str, Any]
Names = Collection[str]

# What torch's state has alone: flags of its own, and what is told by the groups, min_lrs and mode.
_TORCHS = "_get_lr_called_within_step _is_initial verbose use_beta1 default_min_lr mode_worse"
# What ours has alone: torch's schedulers keep it elsewhere, or do not know it.
_OURS = "_class _last_momentum base_lrs _step_count nan_policy"


def completed(given: State, own: State, per_group: Names) -> dict[str, Any]:
    """Return a state, torch's included, with the keys and number types of our own.

    Args:
        given: the state to load.
        own: the state of the scheduler that it is for.
        per_group: keys of lists of numbers.
    """
    state = {key: value for key, value in given.items() if key not in _TORCHS.split()}
    for key in ("base_lrs", "_last_lr", *per_group):
        if isinstance(state.get(key), list):
            numbers = [(item, as_number(item)) for item in state[key]]
            state[key] = [item if number is None else number for item, number in numbers]
    if "_class" not in state:
        state = {k: own[k] for k in [*_OURS.split(), *per_group] if k in own} | state
        state["_last_momentum"] = []
    return state


def check_state(given: State, own: State, per_group: Names, apart: Names) -> None:
    """Raise unless a state has the keys, kinds and number of groups of our own.

    Args:
        given: the state to load, completed.
        own: the state of the scheduler that it is for.
        per_group: keys of lists of numbers whose last entry serves groups to come.
        apart: keys whose values are judged elsewhere.

    Raises:
        StateError: what does not fit.
    """
    name, other, groups = own["_class"], given["_class"], len(own["_last_lr"])
    if other != name or own.keys() != given.keys():
        raise StateError(
            f"this state is {f'of a {other}, ' if other != name else ''}not of a {name}: "
            f"missing {sorted(own.keys() - given.keys())}, "
            f"unexpected {sorted(map(str, given.keys() - own.keys()))}"
        )
    for key, value in own.items():
        if key not in apart and not _same_kind(value, given[key]):
            raise StateError(f"{key} must be of the kind of {value!r} (got {given[key]!r})")
    if type(given["last_epoch"]) is not int or given["last_epoch"] < -1:
        raise StateError(f"last_epoch must be an int >= -1 (got {given['last_epoch']!r})")
    for key in ("base_lrs", "_last_lr", "_last_momentum", *per_group):
        if not all(isinstance(value, float) for value in given[key] if value is not None):
            raise StateError(f"{key} must be a list of numbers (got {given[key]!r})")
    for key in ("base_lrs", "_last_lr", *per_group):
        held, least = len(given[key]), min(1, len(own[key])) if key in per_group else groups
        if not least <= held <= groups:
            raise StateError(f"the state holds {held} groups, but the optimizer has {groups}")


def _same_kind(own: Any, given: Any) -> bool:
    """Tell whether both are of one type; all numbers are one, and so are all items of a list."""
    if isinstance(own, dict) and isinstance(given, dict):
        return own.keys() == given.keys() and all(_same_kind(own[k], given[k]) for k in own)
    if isinstance(own, list) and isinstance(given, list):
        like = [item for item in own if item is not None][:1]
        return all(item is None or _same_kind(like[0], item) for item in given) if like else True
    kinds = [float if type(value) is int else type(value) for value in (own, given)]
    return kinds[0] is kinds[1]


def function_state(function: Any) -> Any:
    """Return what of a function, or of each in a list, can be saved: an object's attributes."""
    if isinstance(function, list):
        return [function_state(each) for each in function]
    plain = function is None or isinstance(function, types.FunctionType)
    return None if plain else dict(getattr(function, "__dict__", {}))


def check_functions(name: str, own: Any, saved: Any) -> None:
    """Raise a StateError unless what was saved of a function, or of a list, fits these."""
    if isinstance(own, list) and isinstance(saved, list) and 1 <= len(saved) <= len(own):
        for i, (function, state) in enumerate(zip(own, saved, strict=False)):
            check_functions(f"{name}[{i}]", function, state)
    elif isinstance(own, list) or type(function_state(own)) is not type(saved):
        raise StateError(
            f"{name} must be what it was as the state was saved: an object has its attributes in "
            f"it, a plain function nothing (got {saved!r} for {own!r})"
        )


def load_functions(own: Any, saved: Any) -> None:
    """Give objects the attributes that were saved of them."""
    pairs = zip(own, saved, strict=False) if isinstance(own, list) else [(own, saved)]
    for function, state in pairs:
        if state:
            function.__dict__.update(state)
