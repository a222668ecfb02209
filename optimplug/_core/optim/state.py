"""Loading a state dict: checked whole before anything changes."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from optimplug._core.internals import WRAPPED_AS
from optimplug._core.optim.batch import is_expanded
from optimplug._core.optim.rule import Rule, StateSpec
from optimplug._core.optim.storage.arguments import STORAGE
from optimplug._core.optim.storage.change import converted, differs, own_storage, tell
from optimplug._core.optim.storage.coded_state import with_codes, with_numbers
from optimplug.errors import ArgumentError, StateError

__all__ = ["checked_state"]

_OF_STORAGE = (*STORAGE, "rounding_step")


def checked_state(
    state_dict: Mapping[str, Any],
    groups: Sequence[dict[str, Any]],
    rule_of: Callable[[Mapping[str, Any], Mapping[str, Any]], Rule],
    settings_of: Callable[[Mapping[str, Any]], Set[str]],
) -> tuple[defaultdict[Tensor, dict[str, Any]], list[dict[str, Any]]]:
    """Return the state by parameter and the groups that a state dict gives to these parameters.

    Tensors go to their parameter's device and keep their dtype, but where the rule says one;
    ``step`` becomes a tensor.

    Args:
        state_dict: a state of this package or of torch's.
        groups: the optimizer's own.
        rule_of: returns the rule that a loaded group asks for, given also the optimizer's own that
            it is for, or raises ArgumentError.
        settings_of: returns the names of a group's hyperparameters; those that a saved group lacks
            stay as they are.

    Raises:
        StateError: something does not fit; it says where and what is expected.
    """
    for key in ("state", "param_groups"):
        if key not in state_dict:
            there = sorted(map(str, state_dict))
            raise StateError(f"a state dict must have the key {key!r} (got {there})")
    if not isinstance(state_dict["state"], Mapping):
        given = type(state_dict["state"]).__name__
        raise StateError(f"'state' of a state dict must be a dict by parameter (got {given})")
    saved = state_dict["param_groups"]
    if not isinstance(saved, list | tuple) or not all(isinstance(g, Mapping) for g in saved):
        raise StateError(f"'param_groups' of a state dict must be a list of dicts (got {saved!r})")
    for i, group in enumerate(saved):
        if "params" not in group:
            raise StateError(f"param_groups[{i}] must have the key 'params' (got {sorted(group)})")
    if len(saved) != len(groups):
        raise StateError(
            "loaded state dict has a different number of parameter groups "
            f"(got {len(saved)}, the optimizer has {len(groups)})"
        )
    for i, (theirs, ours) in enumerate(zip(saved, groups, strict=True)):
        if len(theirs["params"]) != len(ours["params"]):
            raise StateError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                f"optimizer's group: param_groups[{i}] has {len(theirs['params'])} parameters, "
                f"the optimizer's has {len(ours['params'])}"
            )
        _check_names(i, theirs, ours)
    names = {
        p: _name(i, group, n)
        for i, group in enumerate(groups)
        for n, p in enumerate(group["params"])
    }
    owners = {
        number: p
        for theirs, ours in zip(saved, groups, strict=True)
        for number, p in zip(theirs["params"], ours["params"], strict=True)
    }
    loaded = [
        _group(theirs, ours, settings_of(ours)) for theirs, ours in zip(saved, groups, strict=True)
    ]
    rules = _rules(loaded, groups, rule_of)
    changed = [i for i, theirs in enumerate(saved) if differs(theirs, groups[i])]
    other = {p for i in changed for p in groups[i]["params"]}
    state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
    # One after the other up to its codes, so that no more than one is in float32 on its device.
    for number, kept in state_dict["state"].items():
        p = owners.get(number)
        if p is None:
            state[number] = kept
            continue
        if not isinstance(kept, Mapping):
            raise StateError(f"the state of {names[p]} must be a dict (got {kept!r})")
        state[p] = _state_of(p, kept, rules[p], names[p], p in other)
    for i in changed:
        tell(i, saved[i], groups[i])
    return state, loaded


def _state_of(
    p: Tensor, kept: Mapping[str, Any], rule: Rule, name: str, is_other: bool
) -> dict[str, Any]:
    """Return the state of a parameter, as the rule keeps it.

    Args:
        p: the parameter.
        kept: what was saved of it.
        rule: of the parameter.
        name: how errors name it.
        is_other: whether it was saved under another storage.
    """
    numbers = _without_rounded_bits(_numbers(kept, name), rule)
    found = {key: _fitted(value, p, key, name, rule) for key, value in numbers.items()}
    if is_other:
        found = converted(found, p, rule)
    _check_whole(found, rule, name)
    return _coded(found, rule, name) if rule.codes else found


def _rules(
    loaded: Sequence[dict[str, Any]],
    groups: Sequence[dict[str, Any]],
    rule_of: Callable[[Mapping[str, Any], Mapping[str, Any]], Rule],
) -> dict[Tensor, Rule]:
    """Return the rule of every parameter."""
    rules = {}
    for i, (group, own) in enumerate(zip(loaded, groups, strict=True)):
        try:
            rule = rule_of(group, own)
        except (ArgumentError, TypeError) as error:
            raise StateError(f"param_groups[{i}]: {error}") from error
        rules.update({p: rule.suited(p) for p in group["params"]})
        if "optimizer" in own:
            group["optimizer"] = own["optimizer"]  # one that means the same may have saved it
    return rules


def _check_whole(kept: Mapping[str, Any] | None, rule: Rule, name: str) -> None:
    """Refuse the state of a parameter that has stepped, if something of it is gone."""
    if not kept:
        return
    for key in rule.never_late:
        if key not in kept:
            raise StateError(f"the state of {name} must have {key} (got {sorted(kept)})")
    for key in (*rule.number_names, *rule.saved_as):
        if not isinstance(kept.get(key), Tensor | None):
            raise StateError(f"{key} of {name} must be a tensor (got {type(kept[key]).__name__})")


def _numbers(kept: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a state without codes, whatever it was saved as."""
    try:
        return with_numbers(kept)
    except StateError as error:
        raise StateError(f"the state of {name}: {error}") from None


def _without_rounded_bits(kept: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    """Leave out bits of weights that are floating point: another optimizer has had them.

    Torch's turns all that it loads into its parameter's type, where they become other bits. What
    they were for it has moved on without them.
    """
    bits = {s.name for s in rule.saved if s.is_weight and s.dtype == torch.int16}
    if not bits & kept.keys():
        return dict(kept)
    return {
        key: value
        for key, value in kept.items()
        if key not in bits or not isinstance(value, Tensor) or not value.is_floating_point()
    }


def _coded(kept: Mapping[str, Any], rule: Rule, name: str) -> dict[str, Any]:
    try:
        return with_codes(kept, rule)
    except StateError as error:
        raise StateError(f"the state of {name}: {error}") from None


def _check_names(i: int, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse moments that would go to other parameters than they were computed for."""
    if "param_names" not in theirs or "param_names" not in ours:
        return
    for saved, own in zip(theirs["param_names"], ours["param_names"], strict=False):
        if _bare(saved) != _bare(own):
            raise StateError(
                f"param_groups[{i}] has {own!r} where the state has {saved!r}: the groups are not "
                "those that were saved"
            )


def _bare(name: str) -> str:
    for wrapper in WRAPPED_AS:
        name = name.replace(f"{wrapper}.", "")
    return name.removeprefix("module.")  # of DataParallel and its kin, outermost


def _fitted(value: Any, p: Tensor, key: str, name: str, rule: Rule) -> Any:
    """Return a state's value as the parameter needs it."""
    if key == "step" or key in rule.number_names:
        if isinstance(value, Tensor) and value.numel() == 1:
            return value.detach().clone()
        if isinstance(value, int | float):
            return torch.tensor(float(value), device="cpu")
        raise StateError(f"{key} of {name} must be a number (got {value!r})")
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    spec = rule.saved_as.get(key)
    if spec is not None or key in rule.variant_state:
        value = _own_state(value, p, f"{key} of {name}", spec)
    # Where the rule says a type, it computes in it, whatever somebody has rounded the state to.
    return value.to(device=p.device, dtype=None if spec is None else spec.dtype)


def _own_state(value: Tensor, p: Tensor, what: str, spec: StateSpec | None) -> Tensor:
    """Return a tensor that the rule will work on, if it has the shape and the kind for it."""
    shape = tuple(p.shape) if spec is None else spec.shape_for(p)
    if spec is not None and spec.may_be_flat and value.numel() in (1, math.prod(shape)):
        same_size = value.numel() == math.prod(shape)
        value = value.reshape(shape) if same_size else value.reshape(()).expand(shape)
    if tuple(value.shape) != shape:
        raise StateError(f"{what} must have the shape {shape} (got {tuple(value.shape)})")
    if value.is_floating_point() and not (p.is_floating_point() or p.is_complex()):
        raise StateError(f"{what} must be of a type like {p.dtype} (got {value.dtype})")
    # torch keeps the momentum of sparse gradients sparse; one that is expanded has one memory for
    # several elements.
    if value.is_sparse:
        return value.to_dense()
    return value.contiguous() if is_expanded(value) else value


def _group(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], settings: Set[str]
) -> dict[str, Any]:
    group = copy.deepcopy({key: value for key, value in theirs.items() if key != "params"})
    if "param_names" in ours:
        group.setdefault("param_names", ours["param_names"])
    group = {key: value for key, value in group.items() if key not in _OF_STORAGE}
    group.update(own_storage(theirs, ours))
    for key in settings & ours.keys():
        group.setdefault(
            key, ours[key]
        )  # an older state, or torch's, lacks what it knows nothing of
    group["params"] = ours["params"]
    # In the order of the optimizer's own, so that what is saved next has its keys where they were.
    return {key: group[key] for key in {**ours, **group} if key in group}


def _name(i: int, group: Mapping[str, Any], n: int) -> str:
    return group["param_names"][n] if "param_names" in group else f"param_groups[{i}] parameter {n}"
