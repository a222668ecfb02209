"""What an update rule is: the state it keeps, its scalars, its math.

A rule is written once, in Tensor's own method names. What it is run on decides how it executes: a
Tensor is the reference, a TensorList maps the same names onto ``torch._foreach_*``, a Functional
lets autograd flow through.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

__all__ = ["FusedCall", "Hyper", "Operand", "Rule", "Scalar"]

Hyper: TypeAlias = Mapping[str, Any]
"""The hyperparameters of one group."""

Scalar: TypeAlias = "float | Sequence[float]"
"""One number for every tensor of an operand, or one number for each."""

Self = TypeVar("Self", bound="Operand")


class Operand(Protocol):
    """The methods that a rule may use, on a Tensor, a TensorList and a Functional alike.

    Scalar arguments are typed Any, because Tensor's own methods take no sequence.
    """

    def neg(self: Self) -> Self: ...
    def sqrt(self: Self) -> Self: ...
    def add(self: Self, other: Self, *, alpha: Any) -> Self: ...
    def add_(self: Self, other: Any, *, alpha: Any = 1) -> Self: ...
    def mul_(self: Self, other: Any) -> Self: ...
    def div_(self: Self, other: Any) -> Self: ...
    def lerp_(self: Self, end: Self, weight: Any) -> Self: ...
    def clamp_min_(self: Self, other: Self) -> Self: ...
    def addcmul_(self: Self, tensor1: Self, tensor2: Self, *, value: Any) -> Self: ...
    def addcdiv_(self: Self, tensor1: Self, tensor2: Self, *, value: Any) -> Self: ...


T = TypeVar("T", bound=Operand)


class FusedCall(NamedTuple):
    """What a fused operator works on: tensors that share their hyperparameters."""

    params: list[Tensor]
    """Updated in place."""
    grads: list[Tensor]
    """Overwritten with their quotient by ``grad_scale``, where that is given."""
    state: Mapping[str, list[Tensor]]
    """For each name in :attr:`Rule.state`, one tensor per parameter."""
    hyper: Hyper
    steps: list[Tensor]
    """For each parameter the number of this update; empty where the rule does not count."""
    first: bool
    """Whether this is the first update of these parameters."""
    grad_scale: Tensor | None
    """What the gradients are too large by."""
    found_inf: Tensor | None
    """Where it holds 1, nothing is changed."""


class Rule(ABC):
    """An update rule, with its variants fixed.

    Rules are values: two groups whose rules are equal can share a batch.
    """

    counts_steps: ClassVar[bool] = True
    """Whether the state has torch's ``step``, and ``t`` is its count.

    Where not, ``t`` only tells a parameter's first update (1) from its later ones (2).
    """

    takes_sparse: ClassVar[bool] = False
    """Whether gradients may be sparse."""

    late_state: ClassVar[tuple[str, ...]] = ()
    """What of the state may be missing in one that is loaded, and then starts from zeros."""

    temporaries: ClassVar[int] = 2
    """How many operands as large as the parameters an update holds at once, at the most."""

    fused_dtypes: ClassVar[tuple[torch.dtype, ...]] = ()
    """For which types :meth:`fused` is right; none where the rule has no such operator."""

    @property
    @abstractmethod
    def state(self) -> tuple[str, ...]:
        """Names of the tensors kept per parameter; each starts as zeros of its shape and dtype."""

    @abstractmethod
    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        """Return the scalars of update number ``t`` (from 1) for a group's hyperparameters.

        They are numbers, or tensors where a hyperparameter is one.
        """

    @abstractmethod
    def update(self, p: T, g: T, state: Mapping[str, T], k: Mapping[str, Any]) -> None:
        """Update ``p`` and ``state`` in place from the gradient ``g``; leave ``g`` as it is."""

    def fused(self, call: FusedCall) -> None:
        """Do the whole update of tensors that share their hyperparameters in one pass."""
        raise NotImplementedError(f"{type(self).__name__} has no fused operator")
