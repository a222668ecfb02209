"""The execution that compiles a rule: one pass over the memory, all cells of a batch in one call.

The rule is traced and its trace written out as C, which the machine's own compiler turns into a
library when it is first needed (a fraction of a second). Where there is no compiler, and for what
:func:`bind` finds unfit, the batch takes another way.
"""

from __future__ import annotations

import ctypes
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from array import array
from collections.abc import Iterator, Mapping, Sequence
from ctypes import c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch, are_plain
from optimplug._core.optim.executions.c_source import C_TYPES, squares_source, update_source
from optimplug._core.optim.executions.fused import same_strides
from optimplug._core.optim.executions.program import Program, trace
from optimplug._core.optim.rule import Rule

__all__ = ["Bound", "bind", "bound_norm", "compiler", "prefetch"]

_FLAGS = (
    *("-O3", "-march=native", "-fno-math-errno", "-ffp-contract=off"),
    *("-fopenmp", "-shared", "-fPIC"),
)

_TURN = 32768
"""With fewer elements than this for each, threads cost more than they bring; torch's own number."""


@dataclass
class _Memory:
    """Where the parameters and states of a batch lie, and how its tensors are numbered.

    It holds them: as long as it does, an address that is still theirs is still the same memory.
    """

    held: list[list[Tensor]]
    addresses: list[list[int]]
    pointers: list[array[int]]
    contiguous: bool
    grad_dtype: torch.dtype
    sizes: list[int]
    singles: list[int]
    """Tensors of one element. A gradient whose sign autograd has yet to change is the imaginary
    part of complex numbers: with more elements than one it has gaps, and is not contiguous."""
    starts: array[int]
    cells: array[int]
    hints: array[int]
    library: ctypes.CDLL | None = None

    def threads(self) -> int:
        """Return how many threads the work is worth."""
        return max(1, min(torch.get_num_threads(), self.starts[-1] // _TURN))

    def prefetch(self) -> None:
        """Fetch what Python is about to read of these tensors into the caches, all at once.

        One after the other, hundreds of small objects far apart take longer than the arithmetic.
        """
        if self.library is not None:
            self.library.prefetch(len(self.hints), _at(self.hints))


@dataclass
class Bound:
    """A batch whose tensors a compiled rule can work on as they lie."""

    batch: Batch
    memory: _Memory
    grads: array[int]
    numbers: array[float]
    """The scalars of each cell, for the next update."""
    library: ctypes.CDLL

    def run(self, scale: float) -> None:
        """Update the batch, every gradient times ``scale``."""
        memory = self.memory
        params, *states = memory.pointers
        lists = array("Q", [_at(column) for column in (params, self.grads, *states)])
        where = _at(memory.starts), _at(lists), _at(self.numbers), _at(memory.cells)
        self.library.update(len(self.grads), *where, scale, memory.threads())
        # What autograd has saved of a parameter for a backward pass is no longer true.
        torch.autograd.graph.increment_version(self.batch.params)

    def squares(self) -> float | None:
        """Return the sum of the squares of all gradients; None where there is no kernel."""
        kernel = _squares(self.batch.grads[0].dtype)
        if kernel is None:
            return None
        threads = self.memory.threads()
        sums = array("d", [0.0] * threads)
        kernel(len(self.grads), _at(self.memory.starts), _at(self.grads), _at(sums), threads)
        return sum(sums)


def bind(batch: Batch) -> Bound | None:
    """Make ready for the next update of a batch; None where it needs another way.

    All that can fail is done here, before anything has changed.
    """
    suits = batch.params[0].is_cpu and batch.is_plain and not batch.has_sparse
    if not suits or torch.compiler.is_compiling() or compiler() is None:
        batch.memo.clear()
        return None
    columns = [batch.params, *batch.states.values()]
    addresses = [list(map(Tensor.data_ptr, column)) for column in columns]
    memory: _Memory | None = batch.memo.get("memory")
    if memory is None or memory.addresses != addresses or not _still_valid(batch, memory):
        memory = batch.memo["memory"] = _inspect(batch, addresses)
    if memory is None:
        return None
    scalars = batch.coefficients(ahead=1)
    dtypes = tuple(column[0].dtype for column in (batch.params, batch.grads, *columns[1:]))
    memory.library = library = _update(_program(batch.rule, scalars), batch.rule, dtypes)
    if library is None:
        return None
    grads = array("Q", map(Tensor.data_ptr, batch.grads))
    numbers = array("d", chain.from_iterable(k.values() for k in scalars))
    return Bound(batch, memory, grads, numbers, library)


def bound_norm(bound: Sequence[Bound | None]) -> Tensor | None:
    """Return the norm of all gradients as one vector; None where it needs another way.

    That is for gradients that no kernel can read, that are of several types or narrow ones, or of
    which other processes have a part.
    """
    ready = [b for b in bound if b is not None and not b.batch.is_sharded]
    dtypes = {b.batch.grads[0].dtype for b in ready}
    if len(ready) < len(bound) or dtypes not in ({torch.float32}, {torch.float64}):
        return None
    sums = [b.squares() for b in ready]
    known = [s for s in sums if s is not None]
    if len(known) < len(sums):
        return None
    return torch.tensor(math.sqrt(sum(known)), dtype=dtypes.pop(), device="cpu")


def _inspect(batch: Batch, addresses: list[list[int]]) -> _Memory | None:
    kept = [batch.params, *batch.states.values()]
    sizes = [p.numel() for p in batch.params]
    alike = all(_uniform(column, sizes) for column in (*kept, batch.grads)) and same_strides(batch)
    if not alike or _overlap(kept):
        return None
    return _Memory(
        [[tensor.detach() for tensor in column] for column in kept],
        addresses,
        [array("Q", column) for column in addresses],
        all(p.is_contiguous() for p in batch.params),
        batch.grads[0].dtype,
        sizes,
        [i for i, size in enumerate(sizes) if size == 1],
        array("q", accumulate(sizes, initial=0)),
        array("q", (i for i, cell in enumerate(batch.cells) for _ in batch.params[cell.part])),
        array("Q", chain.from_iterable(map(_header_addresses, chain.from_iterable(kept)))),
    )


def _header_addresses(tensor: Tensor) -> Iterator[int]:
    """Return where the parts of a tensor lie that are read to learn where its elements do."""
    core: int = tensor._cdata  # three cache lines or four; a hint is for two
    return iter((id(tensor), core, core + 128, tensor.untyped_storage()._cdata))


def _overlap(columns: Sequence[Sequence[Tensor]]) -> bool:
    """Tell whether tensors share memory: threads would write there at the same time."""
    tensors = chain.from_iterable(columns)
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.nbytes)
    return any(start < stop for (_, stop), (start, _) in pairwise(spans))


def prefetch(memo: Mapping[str, Any]) -> None:
    """Make ready for :func:`bind`, if it has looked at this batch before."""
    memory: _Memory | None = memo.get("memory")
    if memory is not None:
        memory.prefetch()


def _still_valid(batch: Batch, memory: _Memory) -> bool:
    """Tell whether parameters and gradients, other tensors at every step, still lie alike."""
    grads, dtype = batch.grads, memory.grad_dtype
    grad_types = {g.dtype for g in grads}
    if not (are_plain(grads) and grad_types == {dtype}):
        return False
    if [g.numel() for g in grads] != memory.sizes or any(grads[i].is_neg() for i in memory.singles):
        return False
    if not memory.contiguous:
        return same_strides(batch)
    return all(map(Tensor.is_contiguous, grads)) and all(map(Tensor.is_contiguous, batch.params))


def _uniform(column: Sequence[Tensor], sizes: list[int]) -> bool:
    """Tell whether these are tensors of one known type and these sizes, none of them a wrapper."""
    dtype = column[0].dtype
    alike = dtype in C_TYPES and all(tensor.dtype is dtype for tensor in column)
    return alike and are_plain(column) and [t.numel() for t in column] == sizes


def _at(numbers: array[Any]) -> int:
    return numbers.buffer_info()[0]


_programs: dict[Rule, list[Program]] = {}


def _program(rule: Rule, numbers: Sequence[Mapping[str, float]]) -> Program:
    known = _programs.setdefault(rule, [])
    for program in known:
        if program.suits(numbers):
            return program
    known.append(trace(rule, numbers))
    return known[-1]


@lru_cache
def _update(program: Program, rule: Rule, dtypes: tuple[torch.dtype, ...]) -> ctypes.CDLL | None:
    library = _compile(update_source(program, dtypes, ("p", "g", *rule.state)))
    if library is None:
        return None
    library.update.argtypes = [c_int64, *[c_void_p] * 4, c_double, c_int]
    library.update.restype = None
    library.prefetch.argtypes = [c_int64, c_void_p]
    library.prefetch.restype = None
    return library


@lru_cache
def _squares(dtype: torch.dtype) -> Any:
    library = _compile(squares_source(dtype))
    if library is None:
        return None
    library.squares.argtypes = [c_int64, *[c_void_p] * 3, c_int]
    library.squares.restype = None
    return library.squares


@lru_cache
def compiler() -> tuple[str, ...] | None:
    """Return the command of the C compiler: that of ``CC``, or ``cc``; None where there is none.

    With ``CC`` empty there is none. It must serve torch's own threads: two pools of them in one
    process would wait for each other. So far that is known of Linux alone.
    """
    try:
        command = shlex.split(os.environ.get("CC", "cc"))
    except ValueError as error:
        warnings.warn(f"CC is no command: {error}", RuntimeWarning, stacklevel=2)
        return None
    usable = sys.platform == "linux" and torch.backends.openmp.is_available()  # type: ignore[no-untyped-call]
    if not (usable and command and shutil.which(command[0])):
        return None
    return tuple(command)


def _compile(source: str) -> ctypes.CDLL | None:
    """Compile into a folder that is gone as soon as the library is loaded; warn where it fails."""
    command = compiler()
    if command is None:
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="optimplug-") as folder:
            text, library = Path(folder, "rule.c"), Path(folder, "rule.so")
            text.write_text(source)
            call = [*command, *_FLAGS, str(text), "-o", str(library), *_threads_of_torch()]
            # The source is our own; the command is the user's, as it is for every build.
            subprocess.run(call, check=True, capture_output=True)  # noqa: S603
            return ctypes.CDLL(str(library))
    except (subprocess.CalledProcessError, OSError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip() or str(error)
        warnings.warn(
            f"{command[0]} could not compile an optimizer's rule, so torch's operators serve; "
            f"let CC name a C compiler with OpenMP, or be empty. It said: {said}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _threads_of_torch() -> list[str]:
    """Return the libraries to link so that the threads are those that torch has already."""
    folder = Path(torch.__file__).parent
    found = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    return ["-Wl,--as-needed", *map(str, found[:1])]
