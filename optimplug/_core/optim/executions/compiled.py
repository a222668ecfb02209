"""The execution that compiles a rule: one pass over the memory, all cells of a batch in one call.

The rule is written down as a program (:mod:`.program`), the program as C (:mod:`.c_source`), which
the machine's own compiler turns into a library when it is first needed, in a fraction of a second.
Where there is no compiler, and for a batch that the library could not read, there are other ways.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from ctypes import c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.internals import in_dispatch_mode
from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.compiler import compile_library, compiler
from optimplug._core.optim.executions.draws import are_in_order, draw_keys
from optimplug._core.optim.executions.execution import must_skip
from optimplug._core.optim.executions.known_memory import (
    Memory,
    address,
    current_memory,
    threads_for,
)
from optimplug._core.optim.executions.memory_layout import without_memory
from optimplug._core.optim.rule import Rule
from optimplug._core.optim.step.totals import Measured

if TYPE_CHECKING:
    from optimplug._core.optim.executions.program import Program

# What writes programs is imported where one is written: who only wants the names of optimplug.optim
# does not wait for it.

__all__ = ["Compiled", "ReadyCompiled", "program_for", "reads_in_order"]


class Compiled:
    """One call of a compiled library for the whole batch, on the CPU."""

    scope: ClassVar = "element"
    """That of the rules it compiles."""

    def compiles(self, rule: Rule) -> bool:
        """Tell whether this rule is compiled, where tensors and machine allow it."""
        return rule.scope == self.scope and not rule.only_sparse

    def prepare(self, batch: Batch) -> ReadyCompiled | None:
        """Compile the rule where that is still to be done, and find every tensor's address."""
        if not self.compiles(batch.rule):
            return None
        if not self._takes(batch) or in_dispatch_mode() or compiler() is None:
            batch.memo.clear()
            return None
        from optimplug._core.optim.executions.c_source import C_TYPES

        memory = current_memory(batch, C_TYPES)
        if memory is None or not self._reads(batch, memory):
            return None
        scalars = batch.coefficients(ahead=1)
        columns = (batch.params, batch.grads, *batch.states.values())
        dtypes = tuple(column[0].dtype for column in columns)
        library = self.library(program_for(batch.rule, scalars, dtypes), batch.rule, dtypes)
        if library is None:
            return None
        grads = array("Q", map(Tensor.data_ptr, batch.grads))
        if without_memory(batch.grads, grads):
            return None
        numbers = array("d", chain.from_iterable(k.values() for k in scalars))
        ready = self._ready(batch, memory, grads, numbers, library)
        if batch.rule.draws:
            keys = draw_keys(batch)
            ready.draws = keys, array("Q", [row.data_ptr() for row in keys])
        return ready

    def _takes(self, batch: Batch) -> bool:
        """Tell whether these tensors are of a kind whose elements a library can read."""
        return batch.params[0].is_cpu and batch.is_plain and not batch.has_sparse

    def _reads(self, batch: Batch, memory: Memory) -> bool:
        """Tell whether a library can read the elements as they stand there."""
        return reads_in_order(batch, memory)

    def library(
        self, program: Program, rule: Rule, dtypes: tuple[torch.dtype, ...]
    ) -> ctypes.CDLL | None:
        """Return what runs the program on tensors of these types."""
        return _update_library(program, rule, (*dtypes, torch.int64) if rule.draws else dtypes)

    def _ready(
        self,
        batch: Batch,
        memory: Memory,
        grads: array[int],
        numbers: array[float],
        library: ctypes.CDLL,
    ) -> ReadyCompiled:
        ready: ReadyCompiled = ReadyCompiled.of(batch, memory, grads, numbers, library)
        return ready


@dataclass
class ReadyCompiled:
    """A batch to be updated in place by a compiled library."""

    params: list[Tensor]
    """Those that are updated."""
    memory: Memory
    starts: array[int]
    """Where each tensor begins among all elements; nothing is done to one that ends there too."""
    grads: array[int]
    """The address of each gradient."""
    cells: array[int]
    """The number of each tensor's cell."""
    numbers: array[float]
    """The scalars of each cell, for the next update."""
    library: ctypes.CDLL
    is_sharded: bool = False
    draws: tuple[Tensor, array[int]] | None = None
    """Where the rule draws random numbers, the keys of each tensor, and their addresses."""

    @classmethod
    def of(
        cls,
        batch: Batch,
        memory: Memory,
        grads: array[int],
        numbers: array[float],
        library: ctypes.CDLL,
        **more: Any,
    ) -> Any:
        """Gather what was found of a batch."""
        where = batch.params, memory, memory.starts, grads
        what = batch.cell_of, numbers, library, batch.is_sharded
        return cls(*where, *what, **more)

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> Measured | None:
        """Update the batch."""
        if must_skip(found_inf):
            return None
        starts, columns = self.starts, self.columns()
        where = address(columns), address(self.numbers), address(self.cells)
        factor = 1.0 if scale is None else float(scale)
        self.library.update(
            len(self.grads), address(starts), *where, factor, threads_for(starts[-1])
        )
        # What autograd has saved of a parameter for a backward pass is no longer true.
        torch.autograd.graph.increment_version(self.params)
        return None

    def columns(self) -> array[int]:
        """Return the addresses of the addresses of parameters, gradients, and each state."""
        found = self.memory.columns(self.grads)
        if self.draws is not None:
            found.append(address(self.draws[1]))
        return found

    def squares(self) -> float | None:
        """Return the sum of the squares of all gradients; None where that is not known here."""
        if self.is_sharded:
            return None  # the rest of these gradients is with other processes
        kernel = _squares_kernel(self.memory.grad_dtype)
        if kernel is None:
            return None
        threads = threads_for(self.starts[-1])
        sums = array("d", [0.0] * threads)
        kernel(len(self.grads), address(self.starts), address(self.grads), address(sums), threads)
        return sum(sums)


def reads_in_order(batch: Batch, memory: Memory) -> bool:
    """Tell whether the elements are in that order in which the rule needs them, if in any."""
    if batch.rule.codes and not memory.contiguous:
        return False  # blocks follow the order of the elements in the shape
    return not batch.rule.draws or (memory.contiguous and are_in_order(batch))


_programs: dict[tuple[Rule, torch.dtype], list[Program]] = {}
"""Those of each rule and type, one for every set of branches that it has taken so far."""


def program_for(
    rule: Rule, numbers: Sequence[Mapping[str, float]], dtypes: Sequence[torch.dtype]
) -> Program:
    """Return the program of a rule with these scalars, traced where it is not known yet."""
    wide = reduce(torch.promote_types, dtypes)
    known = _programs.setdefault((rule, wide), [])
    for program in known:
        if program.suits(numbers):
            return program
    from optimplug._core.optim.executions.program import trace

    known.append(trace(rule, numbers, wide))
    return known[-1]


@lru_cache
def _update_library(
    program: Program, rule: Rule, dtypes: tuple[torch.dtype, ...]
) -> ctypes.CDLL | None:
    from optimplug._core.optim.executions.c_source import update_source

    names = ("p", "g", *rule.state_names, *(["random"] if rule.draws else []))
    library = compile_library(update_source(program, dict(zip(names, dtypes, strict=True)), rule))
    if library is not None:
        library.update.argtypes = [c_int64, *[c_void_p] * 4, c_double, c_int]
        library.update.restype = None
    return library


@lru_cache
def _squares_kernel(dtype: torch.dtype) -> Any:
    from optimplug._core.optim.executions.c_source import squares_source

    library = compile_library(squares_source(dtype))
    if library is None:
        return None
    library.squares.argtypes = [c_int64, *[c_void_p] * 3, c_int]
    library.squares.restype = None
    return library.squares
