"""A program as the text of a Triton kernel."""

from __future__ import annotations

from optimplug._core.optim.executions.program import Program
from optimplug._core.optim.executions.text import fused_sums, indented
from optimplug._core.optim.executions.triton.columns import Columns, step_text, value_text

__all__ = ["BLOCK", "update_text"]

BLOCK = 1024
"""The elements that one program updates: eight for each of 128 threads, so that each reads 16 bytes
of a type of two bytes at once. They are whole blocks of codes, whose largest numbers it finds."""

_TEXT = """\
@triton.jit
def elements(
    {addresses}, {scalars}factor, keys, tensor, start, size,
    WHOLE: tl.constexpr, BLOCK: tl.constexpr
):
{places}
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
    if (start + BLOCK <= size) & ((({every}) & 15) == 0):
        elements({given}, scale, keys, tensor, start, size, True, BLOCK)
    else:
        elements({given}, scale, keys, tensor, start, size, False, BLOCK)
"""
"""Tensors that are not aligned, and what is left over at the end of one, take the second way. A
step that is skipped has no elements."""


def update_text(program: Program, columns: Columns) -> str:
    """Return the text of ``update``, which runs the program over a table of tensors.

    A row of the table has the number of a tensor's elements, its cell, and the addresses of the
    parameter and of each state; those of the gradients, which change, are in a table of their own.

    Args:
        program: what it does to one element.
        columns: of the tensors that it is run on.
    """
    rows = [name for name in columns.dtypes if name != "g"]
    scalars = [f"k_{name}" for name in program.coefficients]
    width = len(program.coefficients)
    numbers = [f"first = tl.load(row + 1) * {width}"] if width else []
    numbers += [
        f"{k} = tl.load(scalars + first + {i}).to({columns.work})" for i, k in enumerate(scalars)
    ]
    return _TEXT.format(
        addresses=", ".join(columns.addresses),
        scalars="".join(f"{k}, " for k in scalars),
        places=indented(columns.places(), 4),
        body=indented(_body(program, columns), 4),
        width=2 + len(rows),
        pointers=indented((f"at_{n} = tl.load(row + {2 + i})" for i, n in enumerate(rows)), 4),
        numbers=indented(numbers, 4),
        every=" | ".join(columns.aligned),
        given=", ".join([*columns.addresses, *scalars]),
        work=columns.work,
    )


def _body(program: Program, columns: Columns) -> list[str]:
    """Return the lines that update some elements: load, compute, store."""
    return [
        *map(columns.load, columns.operands),
        *(f"t{i} = {step_text(step, columns.work)}" for i, step in fused_sums(program)),
        *(columns.store(name, value_text(end, columns.work)) for name, end in program.outputs),
    ]
