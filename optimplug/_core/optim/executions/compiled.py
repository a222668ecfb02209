"""The execution that compiles a rule: one pass over the memory, all cells of a batch in one call.

The rule is written down as a program (:mod:`.program`), the program as C (:mod:`.c_source`), which
the machine's own compiler turns into a library when it is first needed, in a fraction of a second.
Where there is no compiler, and for a batch that the library could not read, there are other ways.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Mapping, Sequence
from ctypes import c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from itertools import accumulate, chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.internals import in_dispatch_mode
from optimplug._core.optim.batch import Batch, are_plain
from optimplug._core.optim.executions.compiler import compile_library, compiler
from optimplug._core.optim.executions.draws import are_in_order, draw_keys
from optimplug._core.optim.executions.execution import must_skip
from optimplug._core.optim.executions.memory_layout import overlap, same_strides, without_memory
from optimplug._core.optim.rule import Rule, StateSpec
from optimplug._core.optim.totals import Measured

if TYPE_CHECKING:
    from optimplug._core.optim.executions.program import Program

# What writes programs is imported where one is written: who only wants the names of optimplug.optim
# does not wait for it.

__all__ = ["TURN", "Compiled", "Memory", "ReadyCompiled", "address"]

_bytes = attrgetter("nbytes")

TURN = 32768
"""With fewer elements than this for each, threads cost more than they bring; torch's own number."""


@dataclass
class Memory:
    """Where the parameters and states of a batch stand in memory, and how tensors are numbered.

    It does not hold them: what the user lets go is free. An address may then be that of another
    tensor, so each is known by its address together with its bytes and its own number.
    """

    spans: list[list[list[int]]]
    """For the parameters, and for each kind of state: the addresses, the bytes, the numbers."""
    pointers: list[array[int]]
    contiguous: bool
    grad_dtype: torch.dtype
    narrow: dict[int, torch.dtype]
    """The types of two bytes: of the parameters under 0, of the kinds of state from 1 on."""
    sizes: list[int]
    shapes: list[torch.Size]
    singles: list[int]
    """Tensors of one element. A gradient whose sign autograd has yet to change is the imaginary
    part of complex numbers: with more elements than one it has gaps, and is not contiguous."""
    starts: array[int]
    cells: array[int]

    def threads(self) -> int:
        """Return how many threads the work is worth."""
        return max(1, min(torch.get_num_threads(), self.starts[-1] // TURN))


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
        memory = _current_memory(batch)
        if memory is None or not self._reads(batch, memory):
            return None
        scalars = batch.coefficients(ahead=1)
        columns = (batch.params, batch.grads, *batch.states.values())
        dtypes = tuple(column[0].dtype for column in columns)
        library = self._library(_program(batch.rule, scalars, dtypes), batch.rule, dtypes)
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
        """Tell whether a library can read the elements in their order."""
        if batch.rule.codes and not memory.contiguous:
            return False  # blocks follow the order of the elements in the shape
        return not batch.rule.draws or (memory.contiguous and are_in_order(batch))

    def _library(
        self, program: Program, rule: Rule, dtypes: tuple[torch.dtype, ...]
    ) -> ctypes.CDLL | None:
        return _update_library(program, rule, (*dtypes, torch.int64) if rule.draws else dtypes)

    def _ready(
        self,
        batch: Batch,
        memory: Memory,
        grads: array[int],
        numbers: array[float],
        library: ctypes.CDLL,
    ) -> ReadyCompiled:
        return ReadyCompiled(batch, memory, grads, numbers, library)


@dataclass
class ReadyCompiled:
    """A batch to be updated in place by a compiled library."""

    batch: Batch
    memory: Memory
    grads: array[int]
    """The address of each gradient."""
    numbers: array[float]
    """The scalars of each cell, for the next update."""
    library: ctypes.CDLL
    draws: tuple[Tensor, array[int]] | None = field(default=None, init=False)
    """Where the rule draws random numbers, the keys of each tensor, and their addresses."""

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> Measured | None:
        """Update the batch."""
        if must_skip(found_inf):
            return None
        memory = self.memory
        columns = self.columns()
        where = address(columns), address(self.numbers), address(memory.cells)
        factor = 1.0 if scale is None else float(scale)
        self.library.update(
            len(self.grads), address(memory.starts), *where, factor, memory.threads()
        )
        # What autograd has saved of a parameter for a backward pass is no longer true.
        torch.autograd.graph.increment_version(self.batch.params)
        return None

    def columns(self) -> array[int]:
        """Return the addresses of the addresses of parameters, gradients, and each state."""
        params, *states = self.memory.pointers
        drawn = [] if self.draws is None else [self.draws[1]]
        return array("Q", [address(column) for column in (params, self.grads, *states, *drawn)])

    def squares(self) -> float | None:
        """Return the sum of the squares of all gradients; None where that is not known here."""
        if self.batch.is_sharded:
            return None  # the rest of these gradients is with other processes
        kernel = _squares_kernel(self.batch.grads[0].dtype)
        if kernel is None:
            return None
        threads = self.memory.threads()
        sums = array("d", [0.0] * threads)
        starts = address(self.memory.starts)
        kernel(len(self.grads), starts, address(self.grads), address(sums), threads)
        return sum(sums)


def _current_memory(batch: Batch) -> Memory | None:
    """Return what is known of the batch's memory, looked at again where something has changed."""
    kept = _kept(batch)
    spans = [[list(map(of, column)) for of in (Tensor.data_ptr, _bytes, id)] for column in kept]
    memory: Memory | None = batch.memo.get("memory")
    if memory is None or memory.spans != spans or not _still_valid(batch, memory):
        # A parameter that has changed its type may need another variant of the rule.
        memory = _inspect(batch, spans) if batch.has_its_form else None
        batch.memo["memory"] = memory
    return memory


def _kept(batch: Batch) -> list[list[Tensor]]:
    return [batch.params, *batch.states.values()]


def _inspect(batch: Batch, spans: list[list[list[int]]]) -> Memory | None:
    """Look at every tensor of a batch; None where a library could not read them."""
    kept = _kept(batch)
    sizes = [p.numel() for p in batch.params]
    sizes_of = [_sizes(batch.params, spec, sizes) for spec in batch.rule.state]
    columns = zip((*kept, batch.grads), (sizes, *sizes_of, sizes), strict=True)
    readable = all(_uniform(column, own) for column, own in columns)
    if not readable or not same_strides(batch) or overlap(kept):
        return None
    return Memory(
        spans,
        [array("Q", addresses) for addresses, *_ in spans],
        all(t.is_contiguous() for column in kept for t in column),
        batch.grads[0].dtype,
        {i: column[0].dtype for i, column in enumerate(kept) if column[0].itemsize == 2},
        sizes,
        [p.shape for p in batch.params],
        [i for i, size in enumerate(sizes) if size == 1],
        array("q", accumulate(sizes, initial=0)),
        array("q", (i for i, cell in enumerate(batch.cells) for _ in batch.params[cell.part])),
    )


def _still_valid(batch: Batch, memory: Memory) -> bool:
    """Tell whether the gradients, other tensors at every step, fit what was found before."""
    grads, dtype = batch.grads, memory.grad_dtype
    grad_types = {g.dtype for g in grads}
    if not (are_plain(grads) and grad_types == {dtype}):
        return False
    kept = _kept(batch)
    if any({t.dtype for t in kept[i]} != {narrow} for i, narrow in memory.narrow.items()):
        return False  # there are two types of two bytes, and one may be in the other's place
    if [g.numel() for g in grads] != memory.sizes or any(grads[i].is_neg() for i in memory.singles):
        return False
    if not memory.contiguous:
        return same_strides(batch)
    return all(map(Tensor.is_contiguous, grads)) and all(map(Tensor.is_contiguous, batch.params))


def _sizes(params: Sequence[Tensor], spec: StateSpec, full: list[int]) -> list[int]:
    """Return how many elements a state should have for each parameter."""
    reduced = spec.per_block or spec.over is not None
    return [math.prod(spec.shape_for(p)) for p in params] if reduced else full


def _uniform(column: Sequence[Tensor], sizes: list[int]) -> bool:
    """Tell whether these are tensors of one known type and these sizes, none of them a wrapper."""
    from optimplug._core.optim.executions.c_source import C_TYPES

    dtype = column[0].dtype
    alike = dtype in C_TYPES and all(t.dtype is dtype and t.is_cpu for t in column)
    return alike and are_plain(column) and [t.numel() for t in column] == sizes


def address(numbers: array[Any]) -> int:
    """Return where these numbers stand in memory."""
    return numbers.buffer_info()[0]


_programs: dict[tuple[Rule, torch.dtype], list[Program]] = {}
"""Those of each rule and type, one for every set of branches that it has taken so far."""


def _program(
    rule: Rule, numbers: Sequence[Mapping[str, float]], dtypes: Sequence[torch.dtype]
) -> Program:
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
