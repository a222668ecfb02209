"""Functional: a tensor under Tensor's in-place names, through which autograd can flow."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["Functional"]


class Functional:
    """A value that an in-place operation replaces instead of overwriting.

    What autograd has saved for the backward pass so stays as it was. Scalars may be tensors that
    require gradients themselves.

    Example:
        >>> import torch
        >>> x = torch.tensor([2.0], requires_grad=True)
        >>> value = Functional(x)
        >>> value.mul_(3.0).add_(1.0).tensor
        tensor([7.], grad_fn=<AddBackward0>)
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def neg(self) -> Functional:
        return Functional(-self.tensor)

    def sqrt(self) -> Functional:
        return Functional(self.tensor.sqrt())

    def add(self, other: Functional, *, alpha: Any) -> Functional:
        return Functional(self.tensor + other.tensor * alpha)

    def add_(self, other: Any, *, alpha: Any = 1) -> Functional:
        return self._become(
            self.tensor + (other.tensor * alpha if isinstance(other, Functional) else other)
        )

    def mul_(self, other: Any) -> Functional:
        return self._become(self.tensor * other)

    def div_(self, other: Any) -> Functional:
        return self._become(self.tensor / other)

    def lerp_(self, end: Functional, weight: Any) -> Functional:
        if isinstance(weight, Tensor):
            weight = weight.to(end.tensor.dtype)
        return self._become(self.tensor.lerp(end.tensor, weight))

    def clamp_min_(self, other: Functional) -> Functional:
        return self._become(self.tensor.maximum(other.tensor))

    def addcmul_(self, tensor1: Functional, tensor2: Functional, *, value: Any) -> Functional:
        return self._become(self.tensor + tensor1.tensor * value * tensor2.tensor)

    def addcdiv_(self, tensor1: Functional, tensor2: Functional, *, value: Any) -> Functional:
        return self._become(self.tensor + tensor1.tensor * value / tensor2.tensor)

    def _become(self, tensor: Tensor) -> Functional:
        self.tensor = tensor
        return self
