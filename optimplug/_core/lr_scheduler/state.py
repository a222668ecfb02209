"""Whether a state fits the scheduler that it is loaded into."""

from __future__ import annotations

import functools
import math
import types
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from optimplug._core.arguments import (
    as_number,
    require_ascending,
    require_count,
    require_one_of,
)
from optimplug._core.lr_scheduler.groups import has_momentum
from optimplug.errors import ArgumentError, StateError

__all__ = [
    "check_functions",
    "check_state",
    "completed",
    "function_state",
    "load_functions",
    "momentums_by_group",
]

State = Mapping[str, Any]
Names = Collection[str]

# What torch's state has alone: flags of its own, and what is told by the groups, min_lrs and mode.
_TORCHS = "_get_lr_called_within_step _is_initial verbose use_beta1 default_min_lr mode_worse"
# What ours has alone: torch's schedulers keep it elsewhere, or do not know it.
_OURS = "_class _last_momentum _held_lr base_lrs _step_count nan_policy"

# The rates that the scheduler has set last, and those that the groups hold.
_RATES = ("_last_lr", "_held_lr")
_POSITIVE = ("T_max", "T_0", "T_mult", "step_size", "total_steps")
_COUNTS = ("total_iters", "patience", "cooldown", "cooldown_counter", "num_bad_epochs")
_CHOICES = {
    "threshold_mode": ("rel", "abs"),
    "nan_policy": ("bad", "ignore", "raise"),
    "scale_mode": ("cycle", "iterations"),
    "_anneal_func_type": ("cos", "linear"),
}
# What the constructors ask of the same arguments, by their names in a state.
_RULES: dict[str, Callable[[str, Any], Any]] = {
    "last_epoch": lambda name, value: require_count(name, value, least=-1),
    **{key: functools.partial(require_count, least=1) for key in _POSITIVE},
    **dict.fromkeys((*_COUNTS, "_step_count"), require_count),
    "_milestones": require_ascending,
    "milestones": lambda name, value: require_ascending(name, sorted(Counter(value).elements())),
    **{key: functools.partial(require_one_of, choices=way) for key, way in _CHOICES.items()},
}


def completed(given: State, own: State, per_group: Names) -> dict[str, Any]:
    """Return a state, torch's included, with the keys and number types of our own.

    Args:
        given: the state to load.
        own: the state of the scheduler that it is for.
        per_group: keys of lists of numbers.
    """
    if not isinstance(given, Mapping):
        raise StateError(f"a state must be a dict (got {given!r})")
    state = {key: value for key, value in given.items() if key not in _TORCHS.split()}
    # What a state is without that holds no more than what the scheduler has set last.
    state = {"_held_lr": state["_last_lr"]} | state if "_last_lr" in state else state
    for key in ("base_lrs", *_RATES, *per_group):
        if isinstance(state.get(key), list):
            numbers = [(item, as_number(item)) for item in state[key]]
            state[key] = [item if number is None else number for item, number in numbers]
    if "_class" not in state:
        state = {k: own[k] for k in [*_OURS.split(), *per_group] if k in own} | state
        state["_last_momentum"] = []
    return state


def check_state(
    given: State, own: State, per_group: Names, apart: Names, foreign: bool = False
) -> None:
    """Raise unless a state has the keys, kinds and number of groups of our own.

    Args:
        given: the state to load, completed.
        own: the state of the scheduler that it is for.
        per_group: keys of lists of numbers whose last entry serves groups to come.
        apart: keys whose values are judged elsewhere.
        foreign: whether the class is somebody else's: it may have gained attributes since it was
            built, where it had none as yet, and mean something else by a name.

    Raises:
        StateError: what does not fit.
    """
    name, other, groups = own["_class"], given["_class"], len(own["_held_lr"])
    missing, unexpected = own.keys() - given.keys(), given.keys() - own.keys()
    if other != name or missing or (unexpected and not foreign):
        raise StateError(
            f"this state is {f'of a {other}, ' if other != name else ''}not of a {name}: "
            f"missing {sorted(missing)}, unexpected {sorted(map(str, unexpected))}"
        )
    for key, value in own.items():
        fits = _same_kind(value, given[key]) or (foreign and value is None)
        if key not in apart and not fits:
            raise StateError(f"{key} must be of the kind of {value!r} (got {given[key]!r})")
    _check_rules(given, own if foreign else {})
    for key in ("base_lrs", *_RATES, "_last_momentum", *per_group):
        # A schedule may itself have come below 0. A base that is None is of a group to come, a
        # momentum of one whose momentum no scheduler moves.
        least = -math.inf if key in _RATES else 0.0
        values = _without_tail(given[key]) if key == "base_lrs" else given[key]
        if key == "_last_momentum":
            values = [value for value in values if value is not None]
        if not all(isinstance(v, float) and math.isfinite(v) and v >= least for v in values):
            raise StateError(
                f"{key} must be a list of finite numbers >= {least} (got {given[key]!r})"
            )
    for key in ("base_lrs", *_RATES, *per_group):
        held, least = len(given[key]), min(1, len(own[key])) if key in per_group else groups
        if not least <= held <= groups:
            raise StateError(f"the state holds {held} groups, but the optimizer has {groups}")


def _check_rules(given: State, own: State) -> None:
    """Raise where a value breaks the rule of its name; not if that is already broken by our own."""
    for key in ("last_epoch", "_step_count"):  # they go on being counted
        if type(given[key]) is not int:
            raise StateError(f"{key} must be an int (got {given[key]!r})")
    for key, rule in _RULES.items():
        problem = _problem(key, rule, given)
        if problem is not None and _problem(key, rule, own) is None:
            raise StateError(f"a state that nothing could have saved: {problem}")


def _problem(key: str, rule: Callable[[str, Any], Any], state: State) -> Exception | None:
    try:
        if key in state:
            rule(key, state[key])
    except (ArgumentError, TypeError) as error:
        return error
    return None


def _without_tail(bases: list[Any]) -> list[Any]:
    known = next((i for i, base in enumerate(bases) if i and base is None), len(bases))
    return bases if any(base is not None for base in bases[known:]) else bases[:known]


def momentums_by_group(
    momentums: list[float | None], groups: list[dict[str, Any]]
) -> list[float | None]:
    """Return what a state holds as the momentum of each group; None where it holds none.

    An older state has one only for each group whose momentum was moved, and does not say which.

    Raises:
        StateError: a momentum has no group that has one.
    """
    fitting = [i for i, group in enumerate(groups) if has_momentum(group)]
    by_place = len(momentums) == len(groups)
    held = sum(each is not None for each in momentums) if by_place else len(momentums)
    if held > len(fitting):
        raise StateError(
            f"the state holds {held} in _last_momentum, but there are {len(fitting)} groups "
            "with momentum or betas"
        )
    if not by_place:
        moved = [i for i in fitting if "initial_momentum" in groups[i]]
        places = moved if len(moved) == held else fitting
        found = dict(zip(places, momentums, strict=False))
        return [found.get(i) for i in range(len(groups))]
    for i, each in enumerate(momentums):
        if each is not None and i not in fitting:
            raise StateError(
                f"the state holds a momentum of group {i} in _last_momentum, which has neither "
                "momentum nor betas: the groups of the state are in another order"
            )
    return momentums


def _same_kind(own: Any, given: Any) -> bool:
    """Tell whether both are of one type; all numbers are one, and so are all items of a list.

    What a Counter counts is for its rule to judge.
    """
    if isinstance(own, Counter):
        return isinstance(given, Counter)
    if isinstance(own, dict) and isinstance(given, dict):
        return own.keys() == given.keys() and all(_same_kind(own[k], given[k]) for k in own)
    if isinstance(own, list) and isinstance(given, list):
        like = [item for item in own if item is not None][:1]
        return all(item is None or _same_kind(like[0], item) for item in given) if like else True
    kinds = [float if type(value) is int else type(value) for value in (own, given)]
    return kinds[0] is kinds[1]


# These have a __dict__ as well, but nothing of their own in it.
_PLAIN = (types.FunctionType, types.MethodType, functools.partial, type)


def function_state(function: Any) -> Any:
    """Return what of a function, or of each in a list, can be saved: an object's attributes."""
    if isinstance(function, list):
        return [function_state(each) for each in function]
    plain = isinstance(function, _PLAIN) or not hasattr(function, "__dict__")
    return None if plain else dict(function.__dict__)


def check_functions(name: str, own: Any, saved: Any) -> None:
    """Raise a StateError unless what was saved of a function, or of a list, fits these."""
    if isinstance(own, list) and isinstance(saved, list) and 1 <= len(saved) <= len(own):
        for i, (function, state) in enumerate(zip(own, saved, strict=False)):
            check_functions(f"{name}[{i}]", function, state)
    elif isinstance(own, list) or not _fits(function_state(own), saved):
        raise StateError(
            f"{name} must be what it was as the state was saved: an object has its attributes in "
            f"it, a plain function nothing (got {saved!r} for {own!r})"
        )


def _fits(own: dict[str, Any] | None, saved: Any) -> bool:
    """Tell whether this can be what was saved of it; it may have had more attributes by then."""
    if own is None:
        return saved is None or saved == {}  # what torch saves of a partial
    return isinstance(saved, dict) and own.keys() <= saved.keys()


def load_functions(own: Any, saved: Any) -> None:
    """Give objects the attributes that were saved of them."""
    pairs = zip(own, saved, strict=False) if isinstance(own, list) else [(own, saved)]
    for function, state in pairs:
        if state:
            function.__dict__.update(state)
