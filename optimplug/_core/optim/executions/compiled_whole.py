"""The execution that compiles a rule for whole tensors: a few passes, all cells in one call.

Its program (:mod:`.program`) is cut into passes, and these are written as C (:mod:`.passes`). For
the rest it is :class:`.compiled.Compiled`.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from ctypes import c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.compiled import Compiled, ReadyCompiled
from optimplug._core.optim.executions.compiler import compile_library
from optimplug._core.optim.executions.execution import must_skip
from optimplug._core.optim.executions.known_memory import TURN, Memory, address, threads_for
from optimplug._core.optim.rule import Rule
from optimplug._core.optim.step.totals import Measured

if TYPE_CHECKING:
    from optimplug._core.optim.executions.program import Program

__all__ = ["CompiledWhole", "ReadyCompiledWhole"]

_SHARE = 8
"""A tensor that is more than this part of a thread's work is done by all of them together."""


class CompiledWhole(Compiled):
    """One call of a compiled library for all whole tensors of a batch, on the CPU."""

    scope: ClassVar = "tensor"

    def compiles(self, rule: Rule) -> bool:
        return super().compiles(rule) and not rule.codes

    def _takes(self, batch: Batch) -> bool:
        # Of what is sharded, norms and means are those of other processes too.
        return super()._takes(batch) and not batch.is_sharded

    def _reads(self, batch: Batch, memory: Memory) -> bool:
        # The loop refuses states of a shape that a parameter has no longer.
        shapes = [p.shape for p in batch.params]
        return super()._reads(batch, memory) and memory.contiguous and memory.shapes == shapes

    def library(
        self, program: Program, rule: Rule, dtypes: tuple[torch.dtype, ...]
    ) -> ctypes.CDLL | None:
        return _whole_library(program, rule, (*dtypes, torch.int64) if rule.draws else dtypes)

    def _ready(
        self,
        batch: Batch,
        memory: Memory,
        grads: array[int],
        numbers: array[float],
        library: ctypes.CDLL,
    ) -> ReadyCompiledWhole:
        plan: _Plan | None = batch.memo.get("plan")
        if plan is None or not plan.suits(memory, library):
            plan = batch.memo["plan"] = _plan(memory, library)
        found = batch, memory, grads, numbers, library
        ready: ReadyCompiledWhole = ReadyCompiledWhole.of(
            *found, plan=plan, names=batch.rule.measures
        )
        return ready


@dataclass
class _Plan:
    """How the tensors of a batch are shared out."""

    memory: Memory
    """Where these are."""
    library: ctypes.CDLL
    """What works on them: it says how much scratch memory it needs."""
    threads: int
    shapes: array[int]
    """For each tensor three numbers: planes, rows of each, elements of each row."""
    order: array[int]
    """The places of the tensors: first those that one thread works on, the largest first."""
    few: int
    """How many these are."""
    apart: int
    """How far from each other the threads have their scratch memory, in bytes."""
    scratch: int
    """How much of it is needed in all."""

    def suits(self, memory: Memory, library: ctypes.CDLL) -> bool:
        """Tell whether it is for these."""
        same = self.memory is memory and self.library is library
        return same and self.threads == threads_for(memory.starts[-1])


def _plan(memory: Memory, library: ctypes.CDLL) -> _Plan:
    threads, sizes = threads_for(memory.starts[-1]), memory.sizes
    shapes = array("q")
    for shape in memory.shapes:
        rows, length = (1, *shape)[-2:] if shape else (1, 1)
        shapes.extend((shape[:-2].numel(), rows, length))
    fair = memory.starts[-1] // threads
    limit = max(fair // _SHARE, TURN) if threads > 1 else fair
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i] > limit, -sizes[i]))
    few = sum(size <= limit for size in sizes)
    start, step = address(shapes), 3 * shapes.itemsize
    needed = [library.scratch_bytes(start + i * step) for i in order]
    apart = max(needed[:few], default=0)
    scratch = max(apart * threads, *needed[few:], 8)
    return _Plan(memory, library, threads, shapes, array("q", order), few, apart, scratch)


@dataclass
class ReadyCompiledWhole(ReadyCompiled):
    """A batch of whole tensors to be updated in place by a compiled library."""

    plan: _Plan = field(kw_only=True)
    names: tuple[str, ...] = field(kw_only=True)
    """Of what the rule measures."""

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> Measured | None:
        """Update the batch; return what the rule measures, if it does."""
        if must_skip(found_inf):
            return None
        plan, names = self.plan, self.names
        measured = torch.empty((len(self.grads), len(names)), dtype=torch.float64, device="cpu")
        scratch = torch.empty(plan.scratch, dtype=torch.uint8, device="cpu")
        columns = self.columns()
        self.library.update(
            *(len(self.grads), plan.few, address(plan.order), address(plan.shapes)),
            *(address(columns), address(self.numbers), address(self.cells)),
            1.0 if scale is None else float(scale),
            *(measured.data_ptr(), scratch.data_ptr(), plan.apart, plan.threads),
        )
        torch.autograd.graph.increment_version(self.params)
        return dict(zip(names, measured.unbind(1), strict=True)) if names else None


@functools.lru_cache
def _whole_library(
    program: Program, rule: Rule, dtypes: tuple[torch.dtype, ...]
) -> ctypes.CDLL | None:
    from optimplug._core.optim.executions.passes.cut import cut
    from optimplug._core.optim.executions.passes.source import whole_source

    library = compile_library(whole_source(cut(program, rule), dtypes))
    if library is not None:
        library.scratch_bytes.argtypes = [c_void_p]
        library.scratch_bytes.restype = c_int64
        where, aside = [c_void_p] * 5, [c_void_p] * 2
        library.update.argtypes = [c_int64, c_int64, *where, c_double, *aside, c_int64, c_int]
        library.update.restype = None
    return library
