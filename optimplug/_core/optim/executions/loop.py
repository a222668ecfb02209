"""The executions that go one tensor after the other: the reference, and what autograd needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.draws import draw, draw_keys, draw_some
from optimplug._core.optim.executions.execution import must_skip
from optimplug._core.optim.executions.lending import lent
from optimplug._core.optim.executions.operands import Functional
from optimplug._core.optim.executions.whole import whole_operands
from optimplug._core.optim.step.totals import Measured, joined

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

    def __post_init__(self) -> None:
        self.keys = draw_keys(self.batch) if self.batch.rule.draws else None

    def squares(self) -> None:
        """Leave the norm to torch's operators."""

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> Measured | None:
        """Update every tensor in place."""
        if must_skip(found_inf):
            return None
        measured = []
        batch = self.batch
        for cell, k in zip(batch.cells, self.numbers, strict=True):
            for i in range(cell.part.start, cell.part.stop):
                p, g = batch.params[i], batch.grads[i]
                state = {name: tensors[i] for name, tensors in batch.states.items()}
                if batch.rule.only_sparse:
                    self._update_given(i, p, g, state, k, scale)
                    continue
                if g.is_sparse and state:
                    g = g.to_dense()  # a state moves every row anyhow
                found = self._update(i, p, g, state, k, scale)
                if batch.rule.measures:
                    measured.append({name: numbers.values for name, numbers in found.items()})
        return joined(measured)

    def _update(
        self,
        i: int,
        p: Tensor,
        g: Tensor,
        state: dict[str, Tensor],
        k: dict[str, float],
        scale: Tensor | None,
        drawn: Tensor | None = None,
    ) -> Any:
        rule = self.batch.rule
        own = [[p], [g], *([kept] for kept in state.values())]
        with lent(rule, own, k) as columns:
            if scale is not None:
                columns[1] = [_scaled(columns[1][0], scale)]
            random = [] if drawn is None else [[drawn]]
            if self.keys is not None and drawn is None:
                random = [draw(self.batch, self.keys, [p], [i])]
            value, grad, *kept = self._operands([*columns, *random], i)
            return rule.update(value, grad, dict(zip(rule.operand_names, kept, strict=True)), k)

    def _update_given(
        self,
        i: int,
        p: Tensor,
        g: Tensor,
        state: dict[str, Tensor],
        k: dict[str, float],
        scale: Tensor | None,
    ) -> None:
        """Update copies of the elements that a sparse gradient holds, and write them back."""
        g = g.to(torch.promote_types(g.dtype, torch.float32)) if self.batch.rule.widens else g
        g = g.coalesce()  # one may stand in it more than once
        # Where no dimension is sparse, all that is given is the whole: an element of one more.
        where = tuple(g.indices()) or (g.indices().new_zeros(len(g.values())),)
        wholes = [t if g.sparse_dim() else t.unsqueeze(0) for t in (p, *state.values())]
        found = [whole[where] for whole in wholes]
        drawn = None if self.keys is None else draw_some(self.keys[i], where, wholes[0])
        kept = dict(zip(state, found[1:], strict=True))
        self._update(i, found[0], g.values(), kept, k, scale, drawn)
        for whole, part in zip(wholes, found, strict=True):
            whole[where] = part

    def _operands(self, columns: list[list[Tensor]], i: int) -> Sequence[Any]:
        if self.batch.rule.scope == "element":
            return [tensor for (tensor,) in columns]
        return whole_operands(self.batch, columns, [i])


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


def _scaled(g: Tensor, scale: Tensor) -> Tensor:
    # A gradient of no dimension would take the type of the scale.
    return g.mul(scale.to(g.device)).to(g.dtype)
