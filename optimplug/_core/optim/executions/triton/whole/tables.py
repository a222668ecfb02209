"""How whole tensors are shared out to programs on a GPU, and where these leave what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optimplug._core.optim.executions.known_memory import Memory
from optimplug._core.optim.executions.triton.source import BLOCK
from optimplug._core.optim.executions.triton.tables import chunks_of, upload
from optimplug._core.optim.executions.triton.whole.text import ROWS, WIDTH, WholeText

__all__ = ["DEPTH", "RESULTS", "WholeTables", "whole_tables"]

DEPTH, RESULTS = 16, 64
"""How many parts a program adds up at once, and for how many results."""
_SECTIONS, _PROGRAMS = 64, 2048
"""A plane's rows are cut into this many sections at the most, each with a sum for every column;
into more where a tensor of few columns would be the work of fewer programs than this."""


@dataclass
class WholeTables:
    """Those of one batch; they stay for as long as its memory does."""

    memory: Memory
    text: WholeText
    """The kernels that read them."""
    shapes: Tensor
    """For each tensor six numbers: planes, rows of each, elements of each row; and for rules that
    know of axes, of each part the rows, and how many parts a plane has below and beside another."""
    spots: Tensor
    """For each tensor and each step that is stored two places in the scratch memory: of what
    programs have found, and of what that adds up to."""
    scratch: int
    """How many float64 are needed there."""
    parts: Tensor
    """For each program of a pass its tensor, and which part of it."""
    planes: Tensor
    """The same for kernels of planes."""
    blocks: Tensor
    """The same for the last kernel, which has small states in blocks."""
    items: list[Tensor]
    """For each pass what is to be added up after it; see :func:`..fixed_kernels.add_up`."""


def whole_tables(text: WholeText, memory: Memory, device: torch.device) -> WholeTables:
    """Make the tables of a batch for these kernels."""
    shapes = _shapes(memory.shapes, text.cut.has_axes)
    planes, rows, columns, _, sections, tiles = shapes.unbind(1)
    parts = planes * sections * tiles
    lengths = {"number": torch.ones_like(planes), "plane": planes}
    lengths |= {"row": planes * rows, "column": planes * columns}
    # How many parts a result has, and what it is divided by.
    counts = {"number": parts, "row": tiles, "column": sections}
    divisors = {"number": lengths["number"], "row": columns, "column": rows}
    spots, scratch = [], 0
    items: list[list[Tensor]] = [[] for _ in text.levels]
    for step in text.stored.steps:
        kind = text.cut.kinds[step]
        length, is_sum = lengths[kind], text.cut.is_reduction(step)
        found = length * counts[kind] if is_sum else torch.zeros_like(length)
        source = found.cumsum(0) - found + scratch
        scratch += int(found.sum())
        result = length.cumsum(0) - length + scratch
        scratch += int(length.sum())
        spots += [source, result]
        if is_sum:
            own = source, length, counts[kind], result, length, divisors[kind]
            items[text.cut.levels[step] - 1].append(_in_blocks(torch.stack(own, 1), length))
    small = {text.cut.inputs[name] for name, _ in text.small}
    longest = torch.stack([lengths[kind] for kind in ("number", *sorted(small))]).amax(0)
    every = torch.stack(spots, 1) if spots else torch.zeros(len(shapes), 0, dtype=torch.int64)
    return WholeTables(
        memory,
        text,
        shapes=upload(shapes, device),
        spots=upload(every, device),
        scratch=scratch,
        parts=upload(chunks_of(parts, 1), device),
        planes=upload(chunks_of(planes, 1), device),
        blocks=upload(chunks_of(longest, BLOCK), device),
        items=[upload(_joined(own), device) for own in items],
    )


def _shapes(shapes: Sequence[torch.Size], has_axes: bool) -> Tensor:
    found = torch.empty(len(shapes), 6, dtype=torch.int64, device="cpu")
    if not has_axes:
        sizes = torch.tensor([s.numel() for s in shapes], dtype=torch.int64, device="cpu")
        found[:] = 1
        found[:, 2], found[:, 5] = sizes, (sizes + BLOCK - 1) // BLOCK
        return found
    last = [(1, *shape)[-2:] if shape else (1, 1) for shape in shapes]
    planes = [shape[:-2].numel() for shape in shapes]
    given = [(p, *own) for p, own in zip(planes, last, strict=True)]
    found[:, :3] = torch.tensor(given, dtype=torch.int64, device="cpu")
    rows, columns = found[:, 1], found[:, 2]
    tiles = (columns + WIDTH - 1) // WIDTH
    sections = (_PROGRAMS // (found[:, 0] * tiles).clamp_min(1)).clamp_min(_SECTIONS)
    step = ROWS * ((rows + ROWS * sections - 1) // (ROWS * sections)).clamp_min(1)
    found[:, 3], found[:, 4], found[:, 5] = step, (rows + step - 1) // step, tiles
    return found


def _in_blocks(rows: Tensor, lengths: Tensor) -> Tensor:
    """Return a row for each block of results, with the number of the block at its end."""
    which, block = chunks_of(lengths, RESULTS).long().unbind(1)
    return torch.cat([rows[which], block.unsqueeze(1)], 1)


def _joined(items: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(items)) if items else torch.empty(0, 7, dtype=torch.int64, device="cpu")
