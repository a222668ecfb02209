"""TensorList: many tensors under Tensor's method names, executed by ``torch._foreach_*``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optimplug._core.optim.rule import Scalar

__all__ = ["TensorList"]


class TensorList:
    """Tensors of one device and dtype that take each operation together.

    A scalar argument is one number for all tensors or a sequence with one number for each; a
    tensor argument is a TensorList of the same length.

    Example:
        >>> ones = TensorList([torch.ones(1), torch.ones(2)])
        >>> ones.mul_([2.0, 3.0]).tensors
        [tensor([2.]), tensor([3., 3.])]
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    def neg(self) -> TensorList:
        return TensorList(torch._foreach_neg(self.tensors))

    def sqrt(self) -> TensorList:
        return TensorList(torch._foreach_sqrt(self.tensors))

    def mul(self, other: Tensor) -> TensorList:
        """Multiply every tensor by the same zero-dimensional tensor."""
        return TensorList(torch._foreach_mul(self.tensors, other))

    def add(self, other: TensorList, *, alpha: Scalar) -> TensorList:
        if isinstance(alpha, Sequence):  # there is no overload with one alpha for each
            return TensorList(torch._foreach_mul(other.tensors, alpha)).add_(self)
        return TensorList(torch._foreach_add(self.tensors, other.tensors, alpha=alpha))

    def add_(self, other: TensorList | Scalar, *, alpha: Scalar = 1) -> TensorList:
        if not isinstance(other, TensorList):
            torch._foreach_add_(self.tensors, other)
        elif isinstance(alpha, Sequence):
            torch._foreach_add_(self.tensors, torch._foreach_mul(other.tensors, alpha))
        else:
            torch._foreach_add_(self.tensors, other.tensors, alpha=alpha)
        return self

    def mul_(self, other: Scalar) -> TensorList:
        torch._foreach_mul_(self.tensors, other)
        return self

    def div_(self, other: Scalar) -> TensorList:
        torch._foreach_div_(self.tensors, other)
        return self

    def lerp_(self, end: TensorList, weight: Scalar) -> TensorList:
        torch._foreach_lerp_(self.tensors, end.tensors, weight)
        return self

    def clamp_min_(self, other: TensorList) -> TensorList:
        torch._foreach_clamp_min_(self.tensors, other.tensors)
        return self

    def addcmul_(self, tensor1: TensorList, tensor2: TensorList, *, value: Scalar) -> TensorList:
        torch._foreach_addcmul_(self.tensors, tensor1.tensors, tensor2.tensors, value)
        return self

    def addcdiv_(self, tensor1: TensorList, tensor2: TensorList, *, value: Scalar) -> TensorList:
        torch._foreach_addcdiv_(self.tensors, tensor1.tensors, tensor2.tensors, value)
        return self
