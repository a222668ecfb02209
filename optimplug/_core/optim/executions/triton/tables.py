"""What a kernel reads beside the tensors themselves, on the device that it runs on.

Nothing here waits for the device: what is uploaded goes through pinned memory, which torch gives to
nobody else before the copy is done.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.executions.known_memory import Memory

__all__ = ["Addresses", "Tables", "as_tensor", "chunks_of", "tables_of", "upload"]

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

    def uploaded(self, addresses: array[int]) -> Tensor:
        """Return these addresses on the device."""
        if addresses != self.known:
            self.known, self.there = addresses, upload(as_tensor(addresses), self.device)
        return self.there


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
