"""The arguments of every rule that say how weights and moments are kept, and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch

from optimplug._core.arguments import require_count, require_one_of
from optimplug._core.optim.rule import Hyper, Rule
from optimplug.errors import ArgumentError

__all__ = [
    "DTYPES",
    "ROUNDINGS",
    "STORAGE",
    "Rounding",
    "StateDtype",
    "check_storage",
    "check_ways",
    "storage_settings",
]

Rounding: TypeAlias = Literal["nearest", "stochastic", "kahan", "exact"]
StateDtype: TypeAlias = Literal["float32", "bfloat16", "8bit"]

STORAGE: Mapping[str, Any] = {"rounding": "nearest", "rounding_seed": 0, "state_dtype": None}
"""The arguments, and what each is where a group does not have it."""

ROUNDINGS = ("nearest", "stochastic", "kahan", "exact")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "8bit": torch.float32}
"""What each is in where it is not in codes."""


def storage_settings(rounding: Any, rounding_seed: Any, state_dtype: Any) -> dict[str, Any]:
    """Return the arguments that differ from the defaults: groups have no others."""
    given = {"rounding": rounding, "rounding_seed": rounding_seed, "state_dtype": state_dtype}
    return {key: value for key, value in given.items() if value != STORAGE[key]}


def check_storage(rule: Rule, hyper: Hyper, name: str) -> None:
    """Raise ArgumentError unless the storage that a group asks for is one that there is for it.

    Args:
        rule: of the group, without storage.
        hyper: its hyperparameters.
        name: of the optimizer.
    """
    given = [key for key in STORAGE if key in hyper]
    if given and rule.storage_refusal is not None:
        raise ArgumentError(f"{name} has no {given[0]}: {rule.storage_refusal}")
    rounding, dtype = hyper.get("rounding", "nearest"), hyper.get("state_dtype")
    check_ways(rule, rounding, dtype, name)
    for key in ("rounding_seed", "rounding_step"):
        require_count(key, hyper.get(key, 0))
    stored_apart = rounding != "nearest" or dtype is not None
    for choice, why in _APART.items():
        if stored_apart and hyper.get(choice):
            key = "rounding" if rounding != "nearest" else "state_dtype"
            raise ArgumentError(f"{key} does not support {choice}=True: {why}; leave one out")


_APART = {
    "differentiable": "no gradient flows through rounding",
    "fused": "torch's operators write weights and states as they are",
    "capturable": "torch's operators write weights and states as they are",
}


def check_ways(rule: Rule, rounding: Any, kept: Any, name: str) -> None:
    """Raise ArgumentError unless a rule's weights and moments can be kept so.

    Args:
        rule: of a group, without storage.
        rounding: what the group asks for.
        kept: its ``state_dtype``.
        name: how the error calls the optimizer.
    """
    if (rounding != "nearest" or kept is not None) and rule.storage_refusal is not None:
        asked = "rounding" if rounding != "nearest" else "state_dtype"
        raise ArgumentError(f"{name} has no {asked}: {rule.storage_refusal}")
    require_one_of("rounding", rounding, ROUNDINGS)
    if kept is not None:
        require_one_of("state_dtype, if not None,", kept, tuple(DTYPES))
    if kept != "8bit":
        return
    if rule.only_sparse:
        raise ArgumentError(
            f"{name} has no state_dtype='8bit': it updates single rows, and codes are made of "
            "whole blocks; take 'float32' or 'bfloat16'"
        )
    names = {spec.name for spec in rule.state}
    if names and not any(spec.code for spec in rule.state):
        raise ArgumentError(
            f"{name} has nothing to keep in 8 bits: {', '.join(sorted(names))} must be exact; "
            "take state_dtype='float32', or leave it out"
        )
