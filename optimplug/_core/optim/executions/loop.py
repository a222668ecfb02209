"""The ways to run a rule over a batch. Each does the whole update, in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.functional import Functional
from optimplug._core.optim.executions.tensorlist import TensorList

__all__ = ["SCRATCH_BYTES", "Execution", "differentiable", "foreach", "single"]

SCRATCH_BYTES = 64 * 2**20
"""The temporaries of a foreach step stay under this."""

Execution: TypeAlias = Callable[[Batch, Tensor | None], None]
"""Update a batch; the second argument multiplies every gradient first."""


def single(batch: Batch, scale: Tensor | None) -> None:
    """One tensor after the other: the reference, bit for bit what torch's loop does."""
    for cell, k in zip(batch.cells, batch.numbers(), strict=True):
        for i in range(cell.part.start, cell.part.stop):
            p, g = batch.params[i], batch.grads[i]
            state = {name: tensors[i] for name, tensors in batch.states.items()}
            with _in_one_type(p, g, state) as (p, g, state):
                batch.rule.update(p, g if scale is None else _scaled(g, scale), state, k)


def foreach(batch: Batch, scale: Tensor | None) -> None:
    """All tensors together, through TensorList, in parts that keep temporaries small."""
    per_cell = batch.numbers()
    shared = {n: all(k[n] == first for k in per_cell) for n, first in per_cell[0].items()}
    cell_of = [i for i, cell in enumerate(batch.cells) for _ in batch.params[cell.part]]
    # One more than the rule's own is the scaled gradient; a sixteenth is left for small things.
    for pieces, owners in _parts(batch, SCRATCH_BYTES * 15 // 16 // (batch.rule.temporaries + 1)):
        k = {
            name: per_cell[0][name] if same else [per_cell[cell_of[i]][name] for i in owners]
            for name, same in shared.items()
        }
        params, grads, *states = (TensorList(column) for column in pieces)
        if scale is not None:
            grads = grads.mul(scale.to(grads.tensors[0].device))
        batch.rule.update(params, grads, dict(zip(batch.states, states, strict=True)), k)


def differentiable(batch: Batch, scale: Tensor | None) -> None:
    """One tensor after the other, with autograd flowing through."""
    for cell, k in zip(batch.cells, batch.coefficients(), strict=True):
        for i in range(cell.part.start, cell.part.stop):
            p, g = batch.params[i], batch.grads[i]
            value = Functional(p.clone())
            state = {name: Functional(tensors[i].clone()) for name, tensors in batch.states.items()}
            g = g if scale is None else _scaled(g, scale)
            batch.rule.update(value, Functional(g), state, k)
            p.copy_(value.tensor)
            for name, tensors in batch.states.items():
                tensors[i].copy_(state[name].tensor)


@contextmanager
def _in_one_type(
    p: Tensor, g: Tensor, state: dict[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Lend copies of the widest type where the types differ, and write them back after."""
    types = {tensor.dtype for tensor in (p, g, *state.values())}
    if len(types) == 1:
        yield p, g, state
        return
    wide = functools.reduce(torch.promote_types, types)
    copies = {name: tensor.to(wide) for name, tensor in state.items()}
    value = p.to(wide)
    yield value, g.to(wide), copies
    for lent, own in zip((value, *copies.values()), (p, *state.values()), strict=True):
        own.copy_(lent)  # nothing where they are one tensor


def _scaled(g: Tensor, scale: Tensor) -> Tensor:
    return g.mul(scale.to(g.device))


def _parts(batch: Batch, limit: int) -> Iterator[tuple[list[list[Tensor]], list[int]]]:
    """Walk all columns (parameters, gradients, states) in parts of at most ``limit`` bytes.

    Yields:
        The columns of a part, and for each of its tensors the place that it has in the batch.
    """
    columns: Sequence[Sequence[Tensor]] = [batch.params, batch.grads, *batch.states.values()]
    part: list[list[Tensor]] = [[] for _ in columns]
    owners: list[int] = []
    size = 0
    for i, row in enumerate(zip(*columns, strict=True)):
        for pieces in _split(row, limit):
            if owners and size + pieces[0].nbytes > limit:
                yield part, owners
                part, owners, size = [[] for _ in columns], [], 0
            for column, piece in zip(part, pieces, strict=True):
                column.append(piece)
            owners.append(i)
            size += pieces[0].nbytes
    yield part, owners


def _split(row: Sequence[Tensor], limit: int) -> Iterator[Sequence[Any]]:
    """Cut a tensor and what belongs to it into flat views, if it is too large and they allow it."""
    if row[0].nbytes <= limit or not all(t.is_contiguous() for t in row):
        return iter([row])
    length = max(1, limit // row[0].element_size())
    return zip(*(torch.split(t.view(-1), length) for t in row), strict=True)
