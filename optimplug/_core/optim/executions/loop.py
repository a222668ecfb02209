"""The executions that go one tensor after the other: the reference, and what autograd needs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.execution import must_skip
from optimplug._core.optim.executions.operands import Functional
from optimplug._core.optim.rule import Rule

__all__ = ["Differentiable", "Loop", "ReadyDifferentiable", "ReadyLoop"]


class Loop:
    """One tensor after the other: bit for bit what torch's loop does. It takes every batch."""

    def prepare(self, batch: Batch) -> ReadyLoop:
        """Compute the scalars of the next update."""
        return ReadyLoop(batch, batch.numbers(ahead=1))


@dataclass
class ReadyLoop:
    """A batch to be updated tensor by tensor."""

    batch: Batch
    numbers: list[dict[str, float]]
    """The scalars of each cell."""

    def squares(self) -> None:
        """Leave the norm to torch's operators."""

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Update every tensor in place."""
        if must_skip(found_inf):
            return
        batch = self.batch
        for cell, k in zip(batch.cells, self.numbers, strict=True):
            for i in range(cell.part.start, cell.part.stop):
                p, g = batch.params[i], batch.grads[i]
                state = {name: tensors[i] for name, tensors in batch.states.items()}
                if batch.rule.only_sparse:
                    _update_where_given(batch.rule, p, g, state, k, scale)
                else:
                    if g.is_sparse and state:
                        g = g.to_dense()  # a state moves every row anyhow
                    _update(batch.rule, p, g, state, k, scale)


def _update(
    rule: Rule,
    p: Tensor,
    g: Tensor,
    state: dict[str, Tensor],
    k: dict[str, float],
    scale: Tensor | None,
) -> None:
    with _in_one_type(p, g, state) as (p, g, state):
        rule.update(p, g if scale is None else _scaled(g, scale), state, k)


def _update_where_given(
    rule: Rule,
    p: Tensor,
    g: Tensor,
    state: dict[str, Tensor],
    k: dict[str, float],
    scale: Tensor | None,
) -> None:
    """Update the elements that a sparse gradient holds, and no others."""
    g = g.coalesce()  # one may stand in it more than once
    if g.values().numel() == 0:
        return
    where = tuple(g.indices())
    # Of a tensor without dimensions, or with none that is sparse, this is the whole.
    given = g.values() if where else g.values()[0]
    value, rows = p[where], {name: tensor[where] for name, tensor in state.items()}
    _update(rule, value, given, rows, k, scale)
    p[where] = value
    for name, tensor in state.items():
        tensor[where] = rows[name]


class Differentiable:
    """One tensor after the other, with autograd flowing through. It takes every batch."""

    def prepare(self, batch: Batch) -> ReadyDifferentiable:
        """Compute the scalars of the next update, which may require gradients."""
        return ReadyDifferentiable(batch, batch.coefficients(ahead=1))


@dataclass
class ReadyDifferentiable:
    """A batch whose new values are computed aside and then written, as autograd asks."""

    batch: Batch
    coefficients: list[dict[str, Any]]

    def squares(self) -> None:
        """Leave the norm to torch's operators."""

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Update every tensor by one copy at the end."""
        if must_skip(found_inf):
            return
        batch = self.batch
        for cell, k in zip(batch.cells, self.coefficients, strict=True):
            for i in range(cell.part.start, cell.part.stop):
                p, g = batch.params[i], batch.grads[i]
                value = Functional(p.clone())
                state = {name: Functional(kept[i].clone()) for name, kept in batch.states.items()}
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
    # A gradient of no dimension would take the type of the scale.
    return g.mul(scale.to(g.device)).to(g.dtype)
