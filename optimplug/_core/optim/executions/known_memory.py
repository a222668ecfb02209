"""Where the tensors of a batch stand in memory: looked at once, and again where something differs.

It does not hold them: what the user lets go is free. An address may then be that of another tensor,
so each is known by its address together with its bytes and its own number.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch, are_plain
from optimplug._core.optim.executions.memory_layout import overlap, same_strides
from optimplug._core.optim.rule import StateSpec

__all__ = ["FACTS", "TURN", "Memory", "address", "current_memory", "fit", "threads_for"]

FACTS: tuple[Callable[[Tensor], int], ...] = (Tensor.data_ptr, attrgetter("nbytes"), id)
"""What tells of a tensor whether it is the one that stood there, and as it was."""

TURN = 32768
"""With fewer elements than this for each, threads cost more than they bring; torch's own number."""

Spans: TypeAlias = "list[list[list[int]]]"
"""For the parameters, and for each kind of state: the addresses, the bytes, the numbers."""


@dataclass
class Memory:
    """Where the parameters and states of a batch stand, and what their gradients must be like."""

    spans: Spans
    pointers: list[array[int]]
    contiguous: bool
    grad_dtype: torch.dtype
    narrow: dict[int, torch.dtype]
    """The types of two bytes: of the parameters under 0, of the kinds of state from 1 on."""
    sizes: list[int]
    shapes: list[torch.Size]
    starts: array[int]

    def columns(self, grads: array[int]) -> array[int]:
        """Return the addresses of the addresses of parameters, gradients, and each state."""
        found = self._columns[:]
        found[1] = address(grads)
        return found

    @cached_property
    def _columns(self) -> array[int]:
        params, *states = map(address, self.pointers)
        return array("Q", [params, 0, *states])


def address(numbers: array[Any]) -> int:
    """Return where these numbers stand in memory."""
    return numbers.buffer_info()[0]


def threads_for(elements: int) -> int:
    """Return how many threads the work is worth."""
    return 1 if elements < 2 * TURN else min(torch.get_num_threads(), elements // TURN)


def current_memory(batch: Batch, types: Collection[torch.dtype]) -> Memory | None:
    """Return what is known of the batch's memory, looked at again where something has changed.

    None where a kernel could not read it, of tensors of these types on one device.
    """
    kept = _kept(batch)
    spans = [[list(map(of, column)) for of in FACTS] for column in kept]
    memory: Memory | None = batch.memo.get("memory")
    if memory is None or memory.spans != spans or not _still_valid(batch, memory):
        # A parameter that has changed its type may need another variant of the rule.
        memory = _inspect(batch, spans, types) if batch.has_its_form else None
        batch.memo["memory"] = memory
    return memory


def _kept(batch: Batch) -> list[list[Tensor]]:
    return [batch.params, *batch.states.values()]


def _inspect(batch: Batch, spans: Spans, types: Collection[torch.dtype]) -> Memory | None:
    """Look at every tensor of a batch; None where a library could not read them."""
    kept = _kept(batch)
    sizes = [p.numel() for p in batch.params]
    sizes_of = [_sizes(batch.params, spec, sizes) for spec in batch.rule.state]
    columns = zip((*kept, batch.grads), (sizes, *sizes_of, sizes), strict=True)
    device = batch.params[0].device
    readable = all(_uniform(column, own, types, device) for column, own in columns)
    if not readable or not same_strides(batch) or overlap(spans):
        return None
    return Memory(
        spans,
        [array("Q", addresses) for addresses, *_ in spans],
        all(t.is_contiguous() for column in kept for t in column),
        batch.grads[0].dtype,
        {i: column[0].dtype for i, column in enumerate(kept) if column[0].itemsize == 2},
        sizes,
        [p.shape for p in batch.params],
        array("q", accumulate(sizes, initial=0)),
    )


def _still_valid(batch: Batch, memory: Memory) -> bool:
    """Tell whether the gradients, other tensors at every step, fit what was found before."""
    kept = _kept(batch)
    if any({t.dtype for t in kept[i]} != {narrow} for i, narrow in memory.narrow.items()):
        return False  # there are two types of two bytes, and one may be in the other's place
    if not fit(batch.grads, memory.grad_dtype, memory.sizes):
        return False
    if not memory.contiguous:
        return same_strides(batch)
    return all(map(Tensor.is_contiguous, batch.grads)) and all(
        map(Tensor.is_contiguous, batch.params)
    )


def fit(grads: Sequence[Tensor], dtype: torch.dtype, sizes: Sequence[int]) -> bool:
    """Tell whether gradients are plain tensors of this type and these sizes."""
    if {g.dtype for g in grads} != {dtype} or list(map(Tensor.numel, grads)) != list(sizes):
        return False
    # One whose sign autograd has yet to change is the imaginary part of complex numbers: with more
    # elements than one it has gaps, and is not contiguous.
    ones = (g for g, size in zip(grads, sizes, strict=True) if size == 1) if 1 in sizes else ()
    return are_plain(grads) and not any(map(Tensor.is_neg, ones))


def _sizes(params: Sequence[Tensor], spec: StateSpec, full: list[int]) -> list[int]:
    """Return how many elements a state should have for each parameter."""
    reduced = spec.per_block or spec.over is not None
    return [math.prod(spec.shape_for(p)) for p in params] if reduced else full


def _uniform(
    column: Sequence[Tensor],
    sizes: list[int],
    types: Collection[torch.dtype],
    device: torch.device,
) -> bool:
    """Tell whether these are tensors of one known type and these sizes, none of them a wrapper."""
    dtype = column[0].dtype
    alike = dtype in types and all(t.dtype is dtype and t.device == device for t in column)
    return alike and are_plain(column) and [t.numel() for t in column] == sizes
