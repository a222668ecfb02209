"""The execution that updates all tensors together, through ``torch._foreach_*``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.draws import are_in_order, draw, draw_keys
from optimplug._core.optim.executions.execution import must_skip
from optimplug._core.optim.executions.lending import CODING, lent
from optimplug._core.optim.executions.memory_layout import share_memory
from optimplug._core.optim.executions.operands import TensorList
from optimplug._core.optim.executions.whole import whole_operands
from optimplug._core.optim.rule import Rule
from optimplug._core.optim.step.totals import Measured, joined
from optimplug._core.optim.storage.codes import BLOCK

__all__ = ["SCRATCH_BYTES", "Foreach", "ReadyForeach"]

_DRAWING = 48
"""The bytes that it takes to draw a random number."""

SCRATCH_BYTES = 64 * 2**20
"""The temporaries of a step stay under this."""


class Foreach:
    """All tensors together, in parts that keep temporaries small."""

    def prepare(self, batch: Batch) -> ReadyForeach | None:
        """Compute the scalars of the next update; None where torch has no operator for these."""
        if not batch.is_plain or batch.has_sparse:
            return None
        # Torch's operators take one type: rules for whole tensors, and for narrow weights, work on
        # copies of the widest.
        rule = batch.rule
        if batch.is_mixed and rule.scope == "element" and not rule.widens:
            return None
        if rule.draws and not are_in_order(batch):
            return None
        if _are_copied(batch) and share_memory(batch.params):
            return None  # of two copies of one weight only the last would be written back
        return ReadyForeach(batch, batch.numbers(ahead=1))


@dataclass
class ReadyForeach:
    """A batch to be updated by one call for each operation."""

    batch: Batch
    numbers: list[dict[str, float]]
    """The scalars of each cell."""

    def __post_init__(self) -> None:
        self.keys = draw_keys(self.batch) if self.batch.rule.draws else None

    def squares(self) -> None:
        """Leave the norm to torch's operators."""

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> Measured | None:
        """Update all tensors in place."""
        if must_skip(found_inf):
            return None
        measured = []
        batch, per_cell = self.batch, self.numbers
        # A scalar that is the same for all goes in as one number, which is quicker than a list.
        shared = {n: all(k[n] == first for k in per_cell) for n, first in per_cell[0].items()}
        cell_of = [i for i, cell in enumerate(batch.cells) for _ in batch.params[cell.part]]
        limit = SCRATCH_BYTES * 15 // 16 // _operands_held(batch)  # the rest is for small things
        for pieces, owners in _parts(batch, limit):
            k = {
                name: per_cell[0][name] if same else [per_cell[cell_of[i]][name] for i in owners]
                for name, same in shared.items()
            }
            with lent(batch.rule, pieces, k) as columns:
                drawn = [] if self.keys is None else [draw(batch, self.keys, pieces[0], owners)]
                params, grads, *states = self._operands([*columns, *drawn], owners)
                if scale is not None:
                    grads = grads.scaled(scale.to(grads.tensors[0].device))
                state = dict(zip(batch.rule.operand_names, states, strict=True))
                found = batch.rule.update(params, grads, state, k)
            if batch.rule.measures:
                measured.append({name: numbers.values for name, numbers in found.items()})
        return joined(measured)

    def _operands(self, columns: list[list[Tensor]], owners: list[int]) -> Sequence[TensorList]:
        if self.batch.rule.scope == "element":
            return [TensorList(column) for column in columns]
        return whole_operands(self.batch, columns, owners)


def _are_copied(batch: Batch) -> bool:
    """Tell whether a part of a step works on copies of the parameters."""
    widened = batch.rule.widens and batch.params[0].dtype.itemsize < 4
    return widened or batch.is_mixed


def _operands_held(batch: Batch) -> int:
    """Return how many operands as large as the parameters a part of a step holds at once."""
    rule = batch.rule
    held = rule.temporaries + 1  # the scaled gradient
    if rule.widens or (rule.scope != "element" and batch.is_mixed):
        # Those, and a copy of each column, in float32.
        copies = len(batch.states) + 2
        held = -(-(held + copies) * 4 // batch.params[0].element_size())
    # To draw random numbers takes several of 64 bits.
    beside = (_DRAWING if rule.draws else 0) + (CODING if rule.codes else 0)
    return held + beside // batch.params[0].element_size()


def _parts(batch: Batch, limit: int) -> Iterator[tuple[list[list[Tensor]], list[int]]]:
    """Walk all columns (parameters, gradients, states) in parts of at most ``limit`` bytes.

    Yields:
        The columns of a part, and for each of its tensors the place that it has in the batch.
    """
    columns: Sequence[Sequence[Tensor]] = [batch.params, batch.grads, *batch.states.values()]
    if sum(p.nbytes for p in batch.owners) <= limit:
        yield list(map(list, columns)), list(range(len(batch.owners)))
        return
    part: list[list[Tensor]] = [[] for _ in columns]
    owners: list[int] = []
    size = 0
    whole = batch.rule.scope != "element"
    for i, row in enumerate(zip(*columns, strict=True)):
        for pieces in (row,) if whole else _split(row, limit, batch.rule):
            # By the whole tensor, where processes have shares of several sizes: each must do the
            # same reductions.
            weight = (batch.owners[i] if whole else pieces[0]).nbytes
            if owners and size + weight > limit:
                yield part, owners
                part, owners, size = [[] for _ in columns], [], 0
            for column, piece in zip(part, pieces, strict=True):
                column.append(piece)
            owners.append(i)
            size += weight
    yield part, owners


def _split(row: Sequence[Tensor], limit: int, rule: Rule) -> Iterator[Sequence[Any]]:
    """Cut a tensor and what belongs to it into flat views, if it is too large and they allow it."""
    if row[0].nbytes <= limit or not all(t.is_contiguous() for t in row):
        return iter([row])
    blocks = max(1, limit // row[0].element_size() // BLOCK)
    per_block = [False, False, *(spec.per_block for spec in rule.state)]
    return zip(
        *(
            torch.split(t.view(-1), blocks if counted else blocks * BLOCK)
            for t, counted in zip(row, per_block, strict=True)
        ),
        strict=True,
    )
