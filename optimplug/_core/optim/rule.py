"""What an update rule is: the state it keeps, its scalars, its math.

A rule is written once, in Tensor's own method names. What it is run on decides how it executes:
a Tensor is the reference, a TensorList maps the same names onto ``torch._foreach_*``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

__all__ = ["Hyper", "Operand", "Rule", "Scalar"]

Hyper: TypeAlias = Mapping[str, Any]
"""The hyperparameters of one group."""

Scalar: TypeAlias = "float | Sequence[float]"
"""One number for every tensor of an operand, or one number for each."""

Self = TypeVar("Self", bound="Operand")


class Operand(Protocol):
    """The methods that a rule may use, on a Tensor and on a TensorList alike.

    Scalar arguments are typed Any, because Tensor's own methods take no sequence.
    """

    def neg(self: Self) -> Self: ...
    def sqrt(self: Self) -> Self: ...
    def add_(self: Self, other: Any) -> Self: ...
    def mul_(self: Self, other: Any) -> Self: ...
    def div_(self: Self, other: Any) -> Self: ...
    def lerp_(self: Self, end: Self, weight: Any) -> Self: ...
    def clamp_min_(self: Self, other: Self) -> Self: ...
    def addcmul_(self: Self, tensor1: Self, tensor2: Self, *, value: Any) -> Self: ...
    def addcdiv_(self: Self, tensor1: Self, tensor2: Self, *, value: Any) -> Self: ...


T = TypeVar("T", bound=Operand)


class Rule(ABC):
    """An update rule, with its variants fixed.

    Rules are values: two groups whose rules are equal can share a batch.
    """

    @property
    @abstractmethod
    def state(self) -> tuple[str, ...]:
        """Names of the tensors kept per parameter, each starting as zeros of its shape and dtype.

        The step counter, ``step``, is kept beside them for every rule.
        """

    @abstractmethod
    def coefficients(self, hyper: Hyper, t: float) -> dict[str, float]:
        """Return the scalars of update number ``t`` (from 1) for a group's hyperparameters."""

    @abstractmethod
    def update(self, p: T, g: T, state: Mapping[str, T], k: Mapping[str, Scalar]) -> None:
        """Update ``p`` and ``state`` in place from the gradient ``g``; leave ``g`` as it is."""
