"""The execution that runs a rule as a Triton kernel: one launch for all tensors of a batch.

The kernel is made of the same program as the library for the CPU (:mod:`..compiled`), and the
memory is looked at in the same way. A step uploads the scalars of each cell, and whatever else has
changed; it waits for nothing.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.internals import in_dispatch_mode
from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.capture import is_capturing, refuse_in_capture
from optimplug._core.optim.executions.compiled import program_for, reads_in_order
from optimplug._core.optim.executions.draws import draw_keys
from optimplug._core.optim.executions.known_memory import Memory, current_memory
from optimplug._core.optim.executions.memory_layout import without_memory
from optimplug._core.optim.executions.triton import kernels
from optimplug._core.optim.executions.triton.counted import CountedScalars
from optimplug._core.optim.executions.triton.scalars import Scalars
from optimplug._core.optim.executions.triton.tables import Tables, tables_of, upload
from optimplug._core.optim.executions.triton.there import triton_serves
from optimplug._core.optim.rule import Rule
from optimplug._core.optim.step.totals import Measured
from optimplug.errors import ArgumentError

if TYPE_CHECKING:
    from optimplug._core.optim.executions.program import Program

__all__ = ["ReadyTriton", "Triton"]


class Triton:
    """One launch of a kernel for the whole batch, on a GPU.

    Args:
        capturable: whether a CUDA graph may record the step: counts stand on the device, and what
            follows from them is computed there.
    """

    scope: ClassVar = "element"
    """That of the rules that it takes."""

    def __init__(self, capturable: bool = False) -> None:
        self.capturable = capturable

    def compiles(self, rule: Rule) -> bool:
        """Tell whether this rule is such a kernel, where tensors and machine allow it."""
        return rule.scope == self.scope and not rule.only_sparse

    def prepare(self, batch: Batch) -> ReadyTriton | None:
        """Make the kernel where that is still to be done, and the tables that it reads."""
        device = batch.params[0].device
        if not (self.compiles(batch.rule) and triton_serves(device)):
            return None
        if not self._takes(batch) or in_dispatch_mode():
            batch.memo.clear()
            return None
        if not self._counts_where_it_should(batch, device):
            return None
        memory = current_memory(batch, kernels.TYPES)
        if memory is None or not self._reads(batch, memory):
            return None
        grads = array("Q", map(Tensor.data_ptr, batch.grads))
        if without_memory(batch.grads, grads):
            return None
        dtypes = tuple(c[0].dtype for c in (batch.params, batch.grads, *batch.states.values()))
        found = self._found(batch, memory, grads)
        return self._with_kernels(
            found, program_for(batch.rule, found.scalars.cells, dtypes), dtypes
        )

    def _counts_where_it_should(self, batch: Batch, device: torch.device) -> bool:
        """Tell whether the scalars can be computed without a wait for the device."""
        rule = batch.rule
        if self.capturable:
            there = not batch.steps or batch.steps[0].device == device
            return there and not (rule.draws or rule.counts_in_groups)
        if batch.steps and not batch.steps[0].is_cpu:
            return False  # to read the counts would wait for the device
        _refuse_capture(device)
        return True

    def _found(self, batch: Batch, memory: Memory, grads: array[int]) -> ReadyTriton:
        """Return a batch with what its kernels will read."""
        device = batch.params[0].device
        if not self.capturable:
            scalars = Scalars.of(batch.coefficients(ahead=1), device)
            tables = _tables(batch, memory, batch.cell_of, device)
            return ReadyTriton(batch, tables, grads, scalars)
        held: list[Any] = []
        counted = CountedScalars.of(batch, device, held)
        batch.after_each = counted.after
        tables = _tables(batch, memory, counted.rows, device)
        there = tables.grads.recorded(grads, held)
        held += [tables.rows, tables.chunks]
        return ReadyTriton(batch, tables, grads, counted, grads_there=there, held=held)

    def _takes(self, batch: Batch) -> bool:
        """Tell whether these tensors are of a kind whose elements a kernel can read."""
        return batch.is_plain and not batch.has_sparse

    def _reads(self, batch: Batch, memory: Memory) -> bool:
        """Tell whether a kernel can read the elements as they stand there."""
        return reads_in_order(batch, memory)

    def _with_kernels(
        self, found: ReadyTriton, program: Program, dtypes: tuple[torch.dtype, ...]
    ) -> ReadyTriton | None:
        """Return a batch with what updates it, made where that is still to be done."""
        batch = found.batch
        found.kernel = kernels.update_kernel(program, batch.rule, dtypes)
        if self.capturable and batch.memo.get("kernel") is not found.kernel:
            # The first launch loads it, which the driver may refuse while a graph is captured.
            refuse_in_capture("the kernel that it needs")
            batch.memo["kernel"] = found.kernel
        return found


def _refuse_capture(device: torch.device) -> None:
    """Refuse to be recorded in a graph: it would do this very step again each time.

    Raises:
        ArgumentError: a graph is being captured.
    """
    if device.type == "cuda" and is_capturing():
        raise ArgumentError(
            "a step inside a CUDA graph needs an optimizer with capturable=True: rates and step "
            "counts are otherwise taken from the host, and every replay would repeat this one's"
        )


def _tables(batch: Batch, memory: Memory, cells: array[int], device: torch.device) -> Tables:
    tables: Tables | None = batch.memo.get("tables")
    if tables is None or tables.memory is not memory or tables.cells != cells:
        refuse_in_capture("parameters and states where they stand")
        tables = batch.memo["tables"] = tables_of(memory, cells, device, kernels.BLOCK)
    return tables


@dataclass
class ReadyTriton:
    """A batch to be updated in place by a kernel."""

    batch: Batch
    tables: Tables
    grads: array[int]
    """The address of each gradient."""
    scalars: Scalars | CountedScalars
    """Those of each cell, for the next update."""
    kernel: Any = None
    grads_there: Tensor | None = None
    """The addresses on the device, where a graph may record the step."""
    held: list[Any] = field(default_factory=list)
    """What a graph that records it reads beside parameters, gradients and states."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.batch.params[0].device

    def squares(self) -> None:
        """Leave the norm to a kernel for all batches; see :mod:`.norm`."""

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> Measured | None:
        """Update the batch; the kernel itself looks at ``scale`` and ``found_inf``."""
        tables = self.tables
        blocks = len(tables.chunks)
        if blocks:
            there = self.addresses()
            tensors = tables.rows, there, tables.chunks, *self.uploaded(scale, found_inf)
            kernels.launch(self.kernel, blocks, self.device, *tensors, BLOCK=kernels.BLOCK)
        # What autograd has saved of a parameter for a backward pass is no longer true.
        torch.autograd.graph.increment_version(self.batch.params)
        return None

    def addresses(self) -> Tensor:
        """Return those of the gradients on the device."""
        there = self.grads_there
        return self.tables.grads.uploaded(self.grads) if there is None else there

    @property
    def is_capturable(self) -> bool:
        """Whether a graph may record it; then nothing is counted on the host."""
        return isinstance(self.scalars, CountedScalars)

    def uploaded(self, scale: Tensor | None, found_inf: Tensor | None) -> list[Tensor | None]:
        """Return scalars, keys of random numbers, and these two, on the device."""
        keys = draw_keys(self.batch) if self.batch.rule.draws else None
        given = keys, scale, found_inf
        there = [None if each is None else upload(each, self.device) for each in given]
        return [self.scalars.uploaded(self.device), *there]
