"""What a rule is run on beside tensors: many tensors at once, and values that autograd may keep.

Their methods are the rows of :data:`.ops.OPERATIONS`, each once under its name, and once with a
``_`` for the form in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from optimplug._core.internals import foreach_operator
from optimplug._core.optim.executions.numbers import Numbers
from optimplug._core.optim.executions.ops import OPERATIONS, Operation

__all__ = ["Functional", "TensorList"]

Method = Callable[..., Any]


class TensorList:
    """Tensors of one device and dtype that take each operation together.

    A scalar argument is one number for all tensors or a sequence with one number for each; a
    tensor argument is a TensorList of the same length.

    Example:
        >>> import torch
        >>> ones = TensorList([torch.ones(1), torch.ones(2)])
        >>> ones.mul_([2.0, 3.0]).tensors
        [tensor([2.]), tensor([3., 3.])]
    """

    __slots__ = ("tensors",)

    mul_: Method

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    def like(self, tensors: Sequence[Tensor], *others: object) -> TensorList:
        """Return what an operation on this and others has resulted in."""
        return TensorList(tensors)

    def scaled(self, factor: Tensor) -> TensorList:
        """Return every tensor times the same zero-dimensional tensor."""
        scaled = foreach_operator("mul")(self.tensors, factor)
        # One of no dimension has taken the type of the factor.
        pairs = zip(scaled, self.tensors, strict=True)
        return self.like([s if s.dtype is t.dtype else s.to(t.dtype) for s, t in pairs])


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

    mul_: Method

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def like(self, value: Any) -> Functional:
        """Return what an operation on this has resulted in."""
        return Functional(value)


def _tensors(arguments: Sequence[Any]) -> list[Any]:
    """Return arguments as torch's functions on lists take them."""
    return [
        a.tensors if isinstance(a, TensorList) else a.each() if isinstance(a, Numbers) else a
        for a in arguments
    ]


def _values(arguments: Sequence[Any]) -> list[Any]:
    return [a.tensor if isinstance(a, Functional) else a for a in arguments]


def _list_methods(name: str, operation: Operation) -> tuple[Method, Method]:
    """Return an operation's method of TensorList, and that of its form in place."""
    operator, operator_in_place = operation.on_lists(name)

    # Scalars by position: torch calls them value for one number and scalars for several.
    def method(self: TensorList, *others: Any, **scalars: Any) -> TensorList:
        given = _tensors([*others, *scalars.values()])
        return self.like(operator(self.tensors, *given), *others)

    def in_place(self: TensorList, *others: Any, **scalars: Any) -> TensorList:
        operator_in_place(self.tensors, *_tensors([*others, *scalars.values()]))
        return self

    return method, in_place


def _functional_methods(name: str, operation: Operation) -> tuple[Method, Method]:
    """Return an operation's method of Functional, and that of its form in place."""

    def compute(x: Any, others: Sequence[Any], scalars: dict[str, Any]) -> Any:
        if operation.formula is None:
            return getattr(x, name)(*_values(others), **scalars)
        return operation.formula(x, *_values(others), **scalars)

    def method(self: Functional, *others: Any, **scalars: Any) -> Functional:
        return self.like(compute(self.tensor, others, scalars))

    def in_place(self: Functional, *others: Any, **scalars: Any) -> Functional:
        self.tensor = compute(self.tensor, others, scalars)
        return self

    return method, in_place


for _name, _operation in OPERATIONS.items():
    for _cls, _methods in ((TensorList, _list_methods), (Functional, _functional_methods)):
        for _suffix, _method in zip(("", "_"), _methods(_name, _operation), strict=True):
            setattr(_cls, _name + _suffix, _method)
