"""Arithmetic with step counts that are numbers, or tensors where they stand on a device.

A step that a CUDA graph records must not read its count: the host would wait, and every replay
would go on from the count that was read. What a rule decides by its count, it decides by these; for
a number they are what Python says.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["Count", "at_least", "at_most", "either", "rate_at"]

Count: TypeAlias = "float | Tensor"
"""The number of an update, or those of several parameters."""


def either(condition: bool | Tensor, some: Any, other: Any) -> Any:
    """Return ``some`` where the condition holds, and ``other`` elsewhere.

    Example:
        >>> either(torch.tensor([1.0, 2.0]) <= 1, 0.5, 3.0).tolist(), either(True, 0.5, 3.0)
        ([0.5, 3.0], 0.5)
    """
    if not isinstance(condition, Tensor):
        return some if condition else other
    return torch.where(condition, *(_there(value, condition) for value in (some, other)))


def at_least(value: Count, least: float) -> Any:
    """Return the larger of the two.

    Example:
        >>> at_least(0.5, 1), at_least(torch.tensor([0.5, 2.0]), 1).tolist()
        (1, [1.0, 2.0])
    """
    return value.clamp(min=least) if isinstance(value, Tensor) else max(least, value)


def at_most(value: Count, most: Any) -> Any:
    """Return the smaller of the two, of which the second may be a tensor as well."""
    if isinstance(value, Tensor) and isinstance(most, Tensor):
        return torch.minimum(value, most)
    if isinstance(most, Tensor):
        return most.clamp(max=value)
    return value.clamp(max=most) if isinstance(value, Tensor) else min(most, value)


def rate_at(lr: Any, t: Count) -> Any:
    """Return a rate for arithmetic with a count: a number, but beside a tensor as it is."""
    return lr if isinstance(t, Tensor) else float(lr)


def _there(value: Any, like: Tensor) -> Tensor:
    # Filled in where it is needed: to copy it from the host is nothing that a graph could repeat.
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=torch.float64, device=like.device)
