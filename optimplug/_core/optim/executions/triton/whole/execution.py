"""The execution that runs a rule for whole tensors as Triton kernels: a few launches for all.

How many there are depends on the rule alone, not on the number of tensors or groups: see
:mod:`.text`. For the rest it is :class:`..execution.Triton`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.capture import refuse_in_capture
from optimplug._core.optim.executions.known_memory import Memory
from optimplug._core.optim.executions.triton import kernels
from optimplug._core.optim.executions.triton.execution import ReadyTriton, Triton
from optimplug._core.optim.executions.triton.whole.tables import (
    DEPTH,
    RESULTS,
    WholeTables,
    whole_tables,
)
from optimplug._core.optim.executions.triton.whole.text import ROWS, WIDTH
from optimplug._core.optim.step.totals import Measured

if TYPE_CHECKING:
    from optimplug._core.optim.executions.program import Program

__all__ = ["ReadyTritonWhole", "TritonWhole"]


class TritonWhole(Triton):
    """A few launches of kernels for all whole tensors of a batch, on a GPU."""

    scope: ClassVar = "tensor"

    def _takes(self, batch: Batch) -> bool:
        # Of what is sharded, norms and means are those of other processes too.
        return super()._takes(batch) and not batch.is_sharded

    def _reads(self, batch: Batch, memory: Memory) -> bool:
        # The loop refuses states of a shape that a parameter has no longer.
        shapes = [p.shape for p in batch.params]
        return super()._reads(batch, memory) and memory.contiguous and memory.shapes == shapes

    def _with_kernels(
        self, found: ReadyTriton, program: Program, dtypes: tuple[torch.dtype, ...]
    ) -> ReadyTriton | None:
        batch, memory = found.batch, found.tables.memory
        text = kernels.whole_text(program, batch.rule, dtypes)
        if batch.rule.codes and text.cut.has_axes:
            return None  # blocks of codes are no rows and columns
        known: WholeTables | None = batch.memo.get("whole")
        if known is None or known.memory is not memory or known.text is not text:
            if self.capturable:
                refuse_in_capture("how whole tensors are shared out")
            known = batch.memo["whole"] = whole_tables(text, memory, found.device)
        made = kernels.whole_kernels(program, batch.rule, dtypes)
        given = {**vars(found), "held": [*found.held, known]}
        return ReadyTritonWhole(**given, whole=known, made=made)


@dataclass
class ReadyTritonWhole(ReadyTriton):
    """A batch of whole tensors to be updated in place by kernels."""

    whole: WholeTables = field(kw_only=True)
    made: dict[str, Any] = field(kw_only=True)
    """The kernels by their names."""

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> Measured | None:
        """Update the batch; return what the rule measures, if it does."""
        whole, text, names = self.whole, self.whole.text, self.batch.rule.measures
        scratch, measured = (
            torch.empty(size, dtype=torch.float64, device=self.device)
            for size in (whole.scratch, (len(self.grads), len(names)))
        )
        there = self.addresses()
        beside = whole.shapes, whole.spots, *self.uploaded(scale, found_inf), scratch, measured
        shape = {"ROWS": ROWS, "WIDTH": WIDTH} if text.cut.has_axes else {"BLOCK": kernels.BLOCK}

        def launch(name: str, chunks: Tensor, **constants: int) -> None:
            if len(chunks):
                given = self.tables.rows, there, chunks, *beside
                kernels.launch(self.made[name], len(chunks), self.device, *given, **constants)

        for level in range(text.cut.passes + 1):
            if level in text.plane_levels:
                launch(f"planes{level}", whole.planes, BLOCK=kernels.BLOCK)
            if level == text.cut.passes:
                break
            launch(f"pass{level}", whole.parts, **shape)
            items = whole.items[level]
            if len(items):
                given = {"DEPTH": DEPTH, "WIDTH": RESULTS}
                kernels.launch(
                    kernels.add_kernel(), len(items), self.device, items, scratch, **given
                )
        if text.has_last:
            launch("last", whole.blocks, BLOCK=kernels.BLOCK)
        torch.autograd.graph.increment_version(self.batch.params)
        return dict(zip(names, measured.unbind(1), strict=True)) if names else None
