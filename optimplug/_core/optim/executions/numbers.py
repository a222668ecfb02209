"""One number for each tensor of a list, known without a wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimplug._core.internals import in_dispatch_mode

__all__ = ["Numbers"]

Given: TypeAlias = "Numbers | float | Sequence[float]"


class Numbers:
    """Such numbers as the norms of tensors, to compute with.

    The other operand of an operation is of this kind too, one number, or one for each tensor.

    Args:
        values: the numbers, in one dimension; computed with as float64.

    Example:
        >>> (Numbers(torch.tensor([3.0, 8.0])) / 4).clamp_min(1.0).each()
        [1.0, 2.0]
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values.double()

    def each(self) -> list[Any]:
        """Return for each tensor a factor: a number where that costs no wait, else a tensor."""
        if self.values.is_cpu and not in_dispatch_mode():
            return self.values.tolist()
        return list(self.values.float().unbind())

    def __add__(self, other: Given) -> Numbers:
        return Numbers(self.values + self._values(other))

    def __mul__(self, other: Given) -> Numbers:
        return Numbers(self.values * self._values(other))

    def __truediv__(self, other: Given) -> Numbers:
        return Numbers(self.values / self._values(other))

    def __neg__(self) -> Numbers:
        return Numbers(-self.values)

    def reciprocal(self) -> Numbers:
        """Return one divided by each."""
        return Numbers(self.values.reciprocal())

    def sqrt(self) -> Numbers:
        """Return the root of each."""
        return Numbers(self.values.sqrt())

    def clamp_min(self, least: Given) -> Numbers:
        """Return each, but at least this."""
        return Numbers(torch.maximum(self.values, self._values(least)))

    def clamp_max(self, most: Given) -> Numbers:
        """Return each, but at most this."""
        return Numbers(torch.minimum(self.values, self._values(most)))

    def where_positive(self, other: Given) -> Numbers:
        """Return each that is more than 0, and ``other`` for those that are not."""
        return Numbers(torch.where(self.values > 0, self.values, self._values(other)))

    def _values(self, other: Given) -> Tensor:
        if isinstance(other, Numbers):
            return other.values
        return torch.as_tensor(other, dtype=torch.float64, device=self.values.device)
