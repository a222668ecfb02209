"""What a kernel reads beside the tensors themselves, on the device that it runs on.

Nothing here waits for the device: what is uploaded goes through pinned memory, which torch gives to
nobody else before the copy is done.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from optimplug._core.optim.executions.capture import is_capturing, refuse_in_capture
from optimplug._core.optim.executions.known_memory import Memory

__all__ = ["Addresses", "Constants", "Tables", "as_tensor", "chunks_of", "tables_of", "upload"]

_CODES = {"d": torch.float64, "q": torch.int64, "Q": torch.int64}


def upload(given: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host's, or of another device's, on a device; without waiting for it.

    A model that is spread over several GPUs has one norm, and one word of its GradScaler's.
    """
    if given.device == device:
        return given
    there = given.pin_memory() if given.is_cpu else given
    return there.to(device, non_blocking=True)


def as_tensor(numbers: array[Any]) -> Tensor:
    """Return these numbers as a tensor on the host, in the same memory."""
    if not numbers:
        return torch.empty(0, dtype=_CODES[numbers.typecode], device="cpu")
    return torch.frombuffer(numbers, dtype=_CODES[numbers.typecode])


@dataclass
class Addresses:
    """Those of gradients: compared at each step, uploaded when they have changed."""

    device: torch.device
    known: array[int] = field(default_factory=lambda: array("Q"))
    there: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64, device="cpu"))
    spare: tuple[Tensor, Tensor] | None = None
    """Room for addresses within a capture, on the host and on the device; see :meth:`recorded`."""

    def uploaded(self, addresses: array[int]) -> Tensor:
        """Return these addresses on the device."""
        if addresses != self.known:
            self.known, self.there = addresses, upload(as_tensor(addresses), self.device)
        return self.there

    def recorded(self, addresses: array[int], held: list[Any]) -> Tensor:
        """Return these addresses on the device, in a step that a graph may record.

        A replay copies them again: from memory that must have been made before the capture, that is
        then never written again, and that whoever owns ``held`` keeps.
        """
        if not is_capturing():
            there = self.uploaded(addresses)
            if self.spare is None or len(self.spare[0]) != len(addresses):
                pinned = self.device.type == "cuda"
                host = torch.empty_like(there, device="cpu", pin_memory=pinned)
                self.spare = host, torch.empty_like(there)
            return there
        if addresses == self.known:
            there = self.there
        else:
            if self.spare is None or len(self.spare[0]) != len(addresses):
                refuse_in_capture("room for the addresses of gradients")
            host, there = cast("tuple[Tensor, Tensor]", self.spare)
            self.spare = None
            host.copy_(as_tensor(addresses))
            there.copy_(host, non_blocking=True)
            held.append(host)
        held.append(there)
        return there


@dataclass
class Constants:
    """Numbers of the host's on a device, uploaded when they have changed."""

    device: torch.device
    _known: dict[Hashable, tuple[tuple[float, ...], Tensor]] = field(default_factory=dict)

    def there(self, name: Hashable, numbers: Sequence[float], held: list[Any]) -> Tensor:
        """Return some numbers on the device, as float64.

        Args:
            name: what they are known by.
            numbers: in one dimension.
            held: gets what a graph reads that is being captured.
        """
        known, numbers = self._known.get(name), tuple(numbers)
        if known is None or known[0] != numbers:
            if is_capturing():
                # Each is an argument of a kernel that writes it: a part of the graph.
                return torch.stack([self._written(x) for x in numbers])
            host = torch.tensor(numbers, dtype=torch.float64, device="cpu")
            known = self._known[name] = numbers, upload(host, self.device)
        if is_capturing():
            held.append(known[1])
        return known[1]

    def _written(self, number: float) -> Tensor:
        return torch.full((), number, dtype=torch.float64, device=self.device)


@dataclass
class Tables:
    """Those of one batch; they stay for as long as its memory does."""

    memory: Memory
    cells: array[int]
    """Of each tensor that in which its scalars are."""
    rows: Tensor
    """For each tensor: its size, its cell, and the addresses of parameter and states."""
    chunks: Tensor
    grads: Addresses


def tables_of(memory: Memory, cells: array[int], device: torch.device, block: int) -> Tables:
    """Make the tables of a batch, whose tensors are updated in blocks of so many elements."""
    sizes = torch.tensor(memory.sizes, dtype=torch.int64, device="cpu")
    columns = [sizes, as_tensor(cells), *map(as_tensor, memory.pointers)]
    rows = upload(torch.stack(columns, 1), device)
    return Tables(memory, cells, rows, upload(chunks_of(sizes, block), device), Addresses(device))


def chunks_of(sizes: Tensor, block: int) -> Tensor:
    """Return a pair for each block of each tensor: the tensor's number, and that of the block.

    Example:
        >>> chunks_of(torch.tensor([5, 0, 2]), 3).tolist()
        [[0, 0], [0, 1], [2, 0]]
    """
    counts = (sizes + block - 1) // block
    total = int(counts.sum())
    tensors = torch.arange(len(sizes), device="cpu").repeat_interleave(counts, output_size=total)
    before = (counts.cumsum(0) - counts).repeat_interleave(counts, output_size=total)
    return torch.stack([tensors, torch.arange(total, device="cpu") - before], 1).to(torch.int32)
