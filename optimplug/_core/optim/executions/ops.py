"""The operations that a rule may use: one row each, with every form that an execution needs.

A rule calls them by Tensor's own names, ``mul`` or, in place, ``mul_``. To add one, add a row:
the loop has it from Tensor, foreach from ``torch._foreach_*``, the compiled execution from its C,
a GPU's kernel from the same text or from its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimplug._core.internals import foreach_operator
from optimplug._core.optim.executions import bits

__all__ = ["OPERATIONS", "Operation", "apply"]

Lists = Callable[..., Any]
"""A function on lists of tensors."""


class Operation(NamedTuple):
    """What one operation is in each execution. In the loop it is Tensor's method of that name."""

    formula: Callable[..., Any] | None = None
    """What it returns for single values, in operators and other operations, which makes it
    differentiable and lets it be written down. None: it is a step of a program by itself."""
    c: str | None = None
    """The C expression of such a step. Its operands, ``{0}``, ``{1}``, are names or numbers of the
    type ``work``; ``root``, ``blend`` and the like are functions of :mod:`.c_source`."""
    triton: str | None = None
    """The same in Triton, where that is other text: its functions, of :mod:`.triton.device`, have
    the names of those in C."""
    foreach: tuple[Lists, Lists] | None = None
    """Its form on lists of tensors, and the same in place, where torch's would not do."""
    tensor: Callable[..., Tensor] | None = None
    """Its form on tensors, where Tensor has no method of that name; :func:`apply` knows it."""

    @property
    def in_triton(self) -> str | None:
        """The Triton expression of a step."""
        return self.triton or self.c

    def on_lists(self, name: str) -> tuple[Lists, Lists]:
        """Return its form on lists of tensors, and the same in place."""
        if self.tensor is not None:
            return _end_to_end(self.tensor)
        return self.foreach or (foreach_operator(name), foreach_operator(f"{name}_"))


def _add(x: Any, y: Any, *, alpha: Any = 1) -> Any:
    # A coefficient that is a symbol must not be compared: that would be taken for a branch.
    return x + (y if type(alpha) is int and alpha == 1 else y * alpha)


def _foreach_add(x: Sequence[Tensor], y: Any, alpha: Any = 1) -> list[Tensor]:
    if isinstance(alpha, Sequence):  # torch has no overload with one alpha for each tensor
        found: list[Tensor] = foreach_operator("mul")(y, alpha)
        foreach_operator("add_")(found, x)
        return found
    added: list[Tensor] = foreach_operator("add")(x, y, **_alpha(y, alpha))
    return added


def _foreach_add_(x: Sequence[Tensor], y: Any, alpha: Any = 1) -> None:
    if isinstance(alpha, Sequence) and x[0].is_cpu and not isinstance(alpha[0], Tensor):
        # There torch would go one by one as well, and this rounds once instead of twice.
        for tensor, other, factor in zip(x, y, alpha, strict=True):
            tensor.add_(other, alpha=factor)
    elif isinstance(alpha, Sequence):
        foreach_operator("add_")(x, foreach_operator("mul")(y, alpha))
    else:
        foreach_operator("add_")(x, y, **_alpha(y, alpha))


def _alpha(y: Any, alpha: Any) -> dict[str, Any]:
    """Return ``alpha`` where torch takes it: beside tensors, not beside numbers."""
    return {"alpha": alpha} if isinstance(y, list) and isinstance(y[0], Tensor) else {}


def _foreach_mul(x: Sequence[Tensor], y: Any) -> list[Tensor]:
    if _would_round(x, y):
        return [tensor.mul(factor) for tensor, factor in zip(x, _each(y, x), strict=True)]
    found: list[Tensor] = foreach_operator("mul")(x, y)
    return found


def _foreach_mul_(x: Sequence[Tensor], y: Any) -> None:
    if _would_round(x, y):
        for tensor, factor in zip(x, _each(y, x), strict=True):
            tensor.mul_(factor)
    else:
        foreach_operator("mul_")(x, y)


def _would_round(x: Sequence[Tensor], factor: Any) -> bool:
    """Tell whether torch would round a number to the tensors' narrow type first: 0.999 becomes 1.

    On the CPU alone, where it goes one by one too.
    """
    tensors = isinstance(factor, Sequence) and isinstance(factor[0], Tensor)
    return x[0].is_cpu and x[0].itemsize == 2 and not tensors


def _each(number: Any, x: Sequence[Tensor]) -> Sequence[Any]:
    return number if isinstance(number, Sequence) else [number] * len(x)


def _end_to_end(function: Callable[..., Tensor]) -> tuple[Lists, Lists]:
    """Return a function of tensors as one of lists, in which it is called once for all."""

    def on_lists(x: Sequence[Tensor], *others: Any) -> list[Tensor]:
        sizes = [tensor.numel() for tensor in x]
        flat = function(*(_flat(operand, sizes, x) for operand in (x, *others)))
        return [_like(t, part) for part, t in zip(torch.split(flat, sizes), x, strict=True)]

    def in_place(x: Sequence[Tensor], *others: Any) -> None:
        foreach_operator("copy_")(x, on_lists(x, *others))

    return on_lists, in_place


def _like(x: Tensor, values: Tensor) -> Tensor:
    """Return values in the shape and the order in memory of a tensor: sums over both are alike."""
    shaped = values.view(x.shape)
    return shaped if x.is_contiguous() else torch.empty_like(x, dtype=values.dtype).copy_(shaped)


def _flat(operand: Any, sizes: Sequence[int], x: Sequence[Tensor]) -> Any:
    if not isinstance(operand, Sequence):
        return operand
    if isinstance(operand[0], Tensor):
        return torch.cat([tensor.reshape(-1) for tensor in operand])
    each = torch.tensor(operand, dtype=x[0].dtype, device=x[0].device)
    counts = torch.tensor(sizes, device=x[0].device)
    return each.repeat_interleave(counts, output_size=sum(sizes))


def _foreach_copy(x: Sequence[Tensor], y: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in y]


def _lerp(x: Any, end: Any, weight: Any) -> Any:
    if isinstance(weight, Tensor):
        weight = weight.to(end.dtype)
    return x.lerp(end, weight)


def _clamp_min(x: Any, least: Any) -> Any:
    return x.clamp_min(least) if isinstance(x, Tensor) else x.maximum(least)


def _clamp_max(x: Any, most: Any) -> Any:
    return x.clamp_max(most) if isinstance(x, Tensor) else x.minimum(most)


OPERATIONS: Mapping[str, Operation] = {
    "copy": Operation(lambda x, y: y, foreach=(_foreach_copy, foreach_operator("copy_"))),
    "neg": Operation(operator.neg, c="-{0}"),
    "abs": Operation(c="magnitude({0})"),
    "sqrt": Operation(c="root({0})"),
    "rsqrt": Operation(c="1 / root({0})", triton="inverse(root({0}))"),
    "reciprocal": Operation(c="1 / {0}", triton="inverse({0})"),
    "sign": Operation(c="(work)(({0} > 0) - ({0} < 0))", triton="sign_of({0})"),
    "add": Operation(_add, c="{0} + {1}", foreach=(_foreach_add, _foreach_add_)),
    "mul": Operation(operator.mul, c="{0} * {1}", foreach=(_foreach_mul, _foreach_mul_)),
    "div": Operation(operator.truediv, c="{0} / {1}", triton="quotient({0}, {1})"),
    "lerp": Operation(_lerp, c="blend({0}, {1}, {2})"),
    "maximum": Operation(c="larger({0}, {1})"),
    "minimum": Operation(c="smaller({0}, {1})"),
    "clamp_min": Operation(_clamp_min),
    "clamp_max": Operation(_clamp_max),
    "addcmul": Operation(lambda x, a, b, *, value: x + a * value * b),
    "addcdiv": Operation(lambda x, a, b, *, value: x + a * value / b),
    "finite_or": Operation(c="finite_or({0}, {1})", tensor=bits.finite_or),
    "narrowed": Operation(c="narrowed({0})", tensor=bits.narrowed),
    "visible": Operation(c="visible({0})", tensor=bits.visible),
    "hidden": Operation(c="hidden({0})", tensor=bits.hidden),
    "joined": Operation(c="joined({0}, {1})", tensor=bits.joined),
    "drawn": Operation(c="drawn({0}, {1})", tensor=bits.drawn),
}
"""By Tensor's name, without the ``_`` of the form in place."""


def apply(name: str, x: Any, *others: Any) -> Any:
    """Return an operation's result where Tensor may have no method of that name.

    Example:
        >>> apply("narrowed", torch.tensor([1.001]))
        tensor([1.])
    """
    form = OPERATIONS[name].tensor
    if form is not None and isinstance(x, Tensor):
        return form(x, *others)
    return getattr(x, name)(*others)
