"""A program as the text of a Triton kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optimplug._core.optim.executions.ops import OPERATIONS
from optimplug._core.optim.executions.program import Argument, Program, Step
from optimplug._core.optim.executions.text import MAD, expression, fused_sums, indented, named

__all__ = ["BLOCK", "TYPES", "update_text", "work_type"]

TYPES = {
    torch.float32: ("number", "tl.float32"),
    torch.float64: ("number", "tl.float64"),
    torch.float16: ("number", "tl.float16"),
    torch.bfloat16: ("bfloat", "tl.uint16"),
    torch.int16: ("number", "tl.int16"),
}
"""What tensors may hold: the suffix of the functions that load and store it (:mod:`.device`), and
the type in memory. The arithmetic is in float32, or in float64 where any of them is float64."""

BLOCK = 1024
"""The elements that one program updates: eight for each of 128 threads, so that each reads 16 bytes
of the narrowest type at once."""

_TEXT = """\
@triton.jit
def elements({addresses}, {scalars}factor, keys, tensor, i, size, WHOLE: tl.constexpr):
{body}

@triton.jit(do_not_specialize_on_alignment=["scalars", "keys", "factor", "found_inf"])
def update(table, grads, chunks, scalars, keys, factor, found_inf, BLOCK: tl.constexpr):
    own = 2 * tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + own).to(tl.int64)
    start = tl.load(chunks + own + 1).to(tl.int64) * BLOCK
    row = table + tensor * {width}
    size = tl.load(row)
    at_g = tl.load(grads + tensor)
{pointers}
{numbers}
    scale = tl.full((), 1.0, {work})
    if factor is not None:
        scale = tl.load(factor).to({work})
    if found_inf is not None:
        size = tl.where(tl.load(found_inf) != 0, 0, size)
    i = start + tl.arange(0, BLOCK)
    if (start + BLOCK <= size) & ((({every}) & 15) == 0):
        elements({given}, scale, keys, tensor, i, size, True)
    else:
        elements({given}, scale, keys, tensor, i, size, False)
"""
"""Tensors that are not aligned, and what is left over at the end of one, take the second way. A
step that is skipped has no elements."""


def work_type(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """Return the type of the arithmetic over columns of these types."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def update_text(program: Program, dtypes: Sequence[torch.dtype], operands: Sequence[str]) -> str:
    """Return the text of ``update``, which runs the program over a table of tensors.

    A row of the table has the number of a tensor's elements, its cell, and the addresses of the
    parameter and of each state; those of the gradients, which change, are in a table of their own.

    Args:
        program: what it does to one element.
        dtypes: of the columns that stand in memory.
        operands: the names of the columns, in their order: ``p``, ``g``, then the states; the last
            of them, if it has no type, are random numbers.
    """
    work = f"tl.{work_type(dtypes)}".replace("torch.", "")
    kinds = dict(zip(operands, (TYPES[dtype] for dtype in dtypes), strict=False))
    rows = [name for name in kinds if name != "g"]
    addresses = [f"at_{name}" for name in kinds]
    scalars = [f"k_{name}" for name in program.coefficients]
    width = len(program.coefficients)
    numbers = [f"first = tl.load(row + 1) * {width}"] if width else []
    numbers += [f"{k} = tl.load(scalars + first + {i}).to({work})" for i, k in enumerate(scalars)]
    return _TEXT.format(
        addresses=", ".join(addresses),
        scalars="".join(f"{k}, " for k in scalars),
        body=indented(_body(program, kinds, operands, work), 4),
        width=2 + len(rows),
        pointers=indented((f"at_{n} = tl.load(row + {2 + i})" for i, n in enumerate(rows)), 4),
        numbers=indented(numbers, 4),
        every=" | ".join(addresses),
        given=", ".join([*addresses, *scalars]),
        work=work,
    )


def _body(
    program: Program, kinds: dict[str, tuple[str, str]], operands: Sequence[str], work: str
) -> list[str]:
    """Return the lines that update some elements: load, compute, store."""
    where = "size, WHOLE"
    lines = [
        f"x_{name} = load_{kind}(at_{name}, i, {where}, {memory}, {work})"
        for name, (kind, memory) in kinds.items()
    ]
    lines += [f"x_{n} = draw(keys, tensor, i, {work})" for n in operands if n not in kinds]
    lines += ["x_g = x_g * factor"]
    lines += [f"t{i} = {_expression(step, work)}" for i, step in fused_sums(program)]
    for name, end in program.outputs:
        kind, memory = kinds[name]
        lines.append(f"store_{kind}(at_{name}, i, {_name(end, work)}, {where}, {memory})")
    return lines


def _expression(step: Step, work: str) -> str:
    """Return a step as an expression."""
    form = OPERATIONS[step.operation].in_triton if step.operation != MAD else None
    return expression(step, form, lambda argument: _name(argument, work))


def _name(argument: Argument, work: str) -> str:
    """Return an argument as an expression."""
    return named(argument, f"tl.full((), {{!r}}, {work})")
