"""What an argument must be, and the error or the warning that says so."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optimplug._core.internals import inside_wrapper
from optimplug.errors import ArgumentError

__all__ = [
    "are_floats",
    "as_number",
    "owner_of",
    "per_group",
    "require_ascending",
    "require_count",
    "require_number",
    "require_one_of",
    "require_rates",
    "warn",
]


def owner_of(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that owns the groups: accelerate and Fabric wrap it."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
    return inside_wrapper(optimizer)


def require_count(name: str, value: Any, least: int = 0) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``least``, also a float."""
    whole = isinstance(value, float) and value.is_integer()
    try:
        count = None if isinstance(value, bool) else operator.index(int(value) if whole else value)
    except TypeError:
        count = None
    if count is None or count < least:
        raise ArgumentError(f"{name} must be an int >= {least} (got {value!r})")
    return count


def require_ascending(name: str, counts: Iterable[int]) -> list[int]:
    """Return the counts as a list if none is below the one before it."""
    milestones = [require_count(f"each of {name}", count) for count in counts]
    if milestones != sorted(milestones):
        raise ArgumentError(f"{name} must ascend (got {milestones})")
    return milestones


def require_number(
    name: str,
    value: Any,
    rule: str = "a finite number",
    holds: Callable[[float], bool] = math.isfinite,
) -> float:
    """Return ``value`` as a float if it is a finite number for which the rule holds."""
    number = as_number(value)
    if number is None or not math.isfinite(number) or not holds(number):
        raise ArgumentError(f"{name} must be {rule} (got {value!r})")
    return number


def require_one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of the choices."""
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(choices)} (got {value!r})")
    return value


def require_rates(name: str, value: Any, optimizer: Optimizer) -> list[float]:
    """Return a number >= 0 for each group, from one for all or a list of them."""
    values = per_group(name, value, optimizer)
    return [require_number(name, v, "a finite number >= 0", lambda v: v >= 0) for v in values]


def per_group(name: str, value: Any, optimizer: Optimizer) -> list[Any]:
    """Return an entry for each group: those given in a list, or the one given for all."""
    groups = len(owner_of(optimizer).param_groups)
    if not isinstance(value, list | tuple):
        return [value] * groups
    if len(value) != groups:
        raise ArgumentError(
            f"{name} must be one value, or one for each of the {groups} groups (got {len(value)})"
        )
    return list(value)


def as_number(value: Any) -> float | None:
    """Return a number, or a tensor's only one, as a float; None for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # an int larger than any float
        return None


def are_floats(values: Sequence[Any]) -> bool:
    """Tell whether there are floats alone, and no tensor among them, as quickly as can be told."""
    # The first is looked at because tensors on several devices have no sum.
    return type(values[0]) is float and type(sum(values)) is float


def warn(message: str, frames: int = 3) -> None:
    """Warn where step is called, so many frames further out."""
    warnings.warn(message, UserWarning, stacklevel=frames + 1)
