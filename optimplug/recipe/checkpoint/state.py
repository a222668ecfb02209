"""The state dicts that an optimizer is given to go on from a checkpoint, by names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optimplug import optim
from optimplug._core.arguments import owner_of
from optimplug._core.optim.shards import is_sharded
from optimplug.errors import StateError
from optimplug.recipe.checkpoint.differences import Comparison, OwnGroup, comparable
from optimplug.recipe.checkpoint.kinds import is_bookkeeping
from optimplug.recipe.checkpoint.saved import SavedGroup
from optimplug.recipe.checkpoint.shards import parts_here

__all__ = ["adapted_state", "exact_schedule", "exact_state"]

_STORAGE = ("rounding", "state_dtype", "rounding_seed", "rounding_step")


def exact_state(comparison: Comparison, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the saved state, in the order that groups and parameters have here.

    Nothing may be otherwise but that order, and wrappers in names.
    """
    saved = comparison.saved
    _check_order(comparison)
    for group in comparison.own:
        _check_counted(group, comparison.donors(group))
    sharded = any(is_sharded(p) for group in comparison.own for p in group.group["params"])
    same = comparison.same_places() and all(n == s for n, s in comparison.names.items())
    if same and not sharded:
        return dict(saved.optimizer)
    own = optimizer.state_dict()
    settings = [comparison.donors(group)[0].settings for group in comparison.own]
    groups = _with_settings(own, comparison.own, settings)
    return {**own, "state": _state(own, comparison, comparison.names), "param_groups": groups}


def exact_schedule(comparison: Comparison) -> dict[str, Any] | None:
    """Return the saved state of the schedule, with its groups in the order that they have here."""
    saved = comparison.saved
    if saved.schedule is None:
        return None
    found = dict(saved.schedule)
    if comparison.same_places():
        return found
    order = [saved.groups.index(comparison.donors(group)[0]) for group in comparison.own]
    for key in ("base_lrs", "_last_lr", "_held_lr", "_last_momentum"):
        found[key] = _ordered(found.get(key), order)
    climbs = found.get("_climbs")
    if isinstance(climbs, list) and climbs:  # of groups that have joined since, there are none
        padded = [*climbs, *[None] * (len(order) - len(climbs))]
        found["_climbs"] = _ordered(padded, order)
    initial = found.get("_initial")
    if isinstance(initial, Mapping):
        found["_initial"] = {of: _ordered(values, order) for of, values in initial.items()}
    return found


def _ordered(values: Any, order: Sequence[int]) -> Any:
    if not isinstance(values, list) or len(values) != len(order):
        return values  # which is for the scheduler to refuse
    return [values[i] for i in order]


def adapted_state(
    comparison: Comparison,
    optimizer: torch.optim.Optimizer,
    taken: Mapping[str, str],
    notes: list[str],
) -> dict[str, Any]:
    """Return the states that go on, by name, under the settings that the optimizer has.

    Args:
        comparison: of the checkpoint and the optimizer.
        optimizer: that it is for.
        taken: the saved name of each parameter whose state goes on.
        notes: of what had to be chosen; more are put into it.

    Raises:
        StateError: torch's own class could not go on from what there is.
    """
    own = optimizer.state_dict()
    _check_order(comparison)
    _check_whole(comparison, owner_of(optimizer), taken)
    settings = [
        {**_own_settings(saved), **_progress(group, comparison.donors(group), taken, notes)}
        for group, saved in zip(comparison.own, own["param_groups"], strict=True)
    ]
    groups = _with_settings(own, comparison.own, settings)
    return {**own, "state": _state(own, comparison, taken), "param_groups": groups}


def _check_order(comparison: Comparison) -> None:
    """Refuse to give a state that belongs to no parameter to others than it was saved of.

    Raises:
        StateError: the parameters are others, or in another order.
    """
    whole = (torch.optim.LBFGS, optim.LBFGS)
    if any(issubclass(own.cls, whole) for own in comparison.own) and not comparison.same_places():
        raise StateError(
            "LBFGS keeps one state for all parameters, in their order, and they are others here, "
            "or in another order; give resume='weights' to begin anew"
        )


def _own_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _with_settings(
    own: Mapping[str, Any], groups: Sequence[OwnGroup], settings: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    return [
        {**found, "params": saved["params"], "param_names": list(group.names)}
        for saved, group, found in zip(own["param_groups"], groups, settings, strict=True)
    ]


def _state(
    own: Mapping[str, Any], comparison: Comparison, taken: Mapping[str, str]
) -> dict[Any, Any]:
    saved = comparison.saved
    numbers, found = saved.numbers, {}
    for group, place in zip(comparison.own, own["param_groups"], strict=True):
        members = zip(group.names, group.group["params"], place["params"], strict=True)
        for name, p, number in members:
            kept = saved.state.get(numbers[taken[name]]) if name in taken else None
            if kept:
                found[number] = parts_here(p, kept, group)
    return found


def _progress(
    own: OwnGroup, donors: Sequence[SavedGroup], taken: Mapping[str, str], notes: list[str]
) -> dict[str, Any]:
    """Return what an optimizer counts in a group, from the groups that its parameters come from.

    So is how their state was stored: from that, loading converts it.
    """
    donors = [d for d in donors if {*(d.names or ())} & {taken[n] for n in own.names if n in taken}]
    if not donors:
        return {}
    _check_counted(own, donors)
    found = {}
    for key in _counted(own):
        values = [group.settings[key] for group in donors if key in group.settings]
        if values:
            found[key] = values[0]
            if any(comparable(value) != comparable(values[0]) for value in values[1:]):
                notes.append(
                    f"{key} of {own.label} is that of most of its parameters; others had another"
                )
    stored = [{k: d.settings[k] for k in _STORAGE if k in d.settings} for d in donors]
    here = {k: own.group[k] for k in _STORAGE[:2] if k in own.group}
    other = [s for s in stored if {k: s[k] for k in _STORAGE[:2] if k in s} != here]
    if issubclass(own.cls, optim.Optimizer):
        gone = dict.fromkeys(_STORAGE)
        found |= {key: (other or stored)[0].get(key, _STORED_AS[key]) for key in gone}
        found = {key: value for key, value in found.items() if value is not _ABSENT}
    return found


def _counted(own: OwnGroup) -> list[str]:
    """Return the keys of a group that are no settings: what its optimizer counts there."""
    return [key for key in own.group if key not in own.settable and not is_bookkeeping(key)]


def _check_counted(own: OwnGroup, donors: Sequence[SavedGroup]) -> None:
    """Refuse what is of another kind than the optimizer counts.

    Raises:
        StateError: something is.
    """
    for key in _counted(own):
        kind = _kind(own.group[key])
        for theirs in donors:
            there = theirs.settings.get(key, own.group[key])
            if own.group[key] is not None and _kind(there) != kind:
                raise StateError(f"{key} of {own.label} must be {kind} (got {str(there)[:100]})")


def _kind(value: Any) -> str:
    value = comparable(value)
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else f"like {type(value).__name__}"


_ABSENT = object()
_STORED_AS = {
    "rounding": "nearest",
    "state_dtype": None,
    "rounding_seed": 0,
    "rounding_step": _ABSENT,
}

# What torch's own classes make at a parameter's first step alone, and miss later.
_LATE = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg"}


def _check_whole(
    comparison: Comparison, owner: torch.optim.Optimizer, taken: Mapping[str, str]
) -> None:
    """Refuse a state without which a class of torch's cannot go on.

    Raises:
        StateError: it says which, and that ours can.
    """
    if isinstance(owner, optim.Optimizer):
        return
    saved = comparison.saved
    numbers = saved.numbers
    for own in comparison.own:
        for setting, key in _LATE.items():
            for name in own.names if own.group.get(setting) else ():
                kept = saved.state.get(numbers[taken[name]], {}) if name in taken else {}
                if kept and key not in kept:
                    raise StateError(
                        f"the checkpoint is of a run without {setting}: the state of {name} has no "
                        f"{key}, without which torch's optimizers cannot go on; use the one of "
                        f"optimplug, which starts it from zeros, or leave out {setting}"
                    )
