"""Random numbers that depend on nothing but what they are for.

Each is a function of a seed, the number of the step, the number of the parameter and the place of
the element in the whole parameter. So every execution and every process draws the same, wherever
the element is, and a run that goes on draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from optimplug._core.internals import shard_start
from optimplug._core.optim.batch import Batch
from optimplug._core.optim.shards import is_sharded

__all__ = ["are_in_order", "draw", "draw_keys", "draw_some"]

_LOW = 0xFFFFFFFF


def draw_keys(batch: Batch) -> Tensor:
    """Return for each tensor two keys, and the place of its first element in the whole parameter.

    They are int64, in a row for each; ``draw`` in :mod:`.c_source` reads them too.
    """
    numbers = torch.tensor(batch.places, dtype=torch.int64, device="cpu")
    of_cells = [
        _keys(hyper.get("rounding_seed", 0), hyper.get("rounding_step", 0))
        for hyper in batch.hypers
    ]
    sizes = [cell.part.stop - cell.part.start for cell in batch.cells]
    of_each = [keys for keys, size in zip(of_cells, sizes, strict=True) for _ in range(size)]
    first, second = torch.tensor(of_each, dtype=torch.int64, device="cpu").unbind(1)
    at = [_start(p)[0] if is_sharded(p) else 0 for p in batch.owners]
    starts = torch.tensor(at, dtype=torch.int64, device="cpu")
    columns = _mixed(numbers ^ first), _mixed((numbers + second) & _LOW), starts
    return torch.stack(columns, 1)


def are_in_order(batch: Batch) -> bool:
    """Tell whether the elements that are here stand one after the other in each whole parameter."""
    return all(_start(p)[1] for p in batch.owners if is_sharded(p))


def draw(
    batch: Batch, keys: Tensor, pieces: Sequence[Tensor], owners: Sequence[int]
) -> list[Tensor]:
    """Return a whole number from 0 to 65535 for each element, as float32.

    Args:
        batch: what the pieces belong to.
        keys: what :func:`draw_keys` has returned for it.
        pieces: parameters of the batch, or parts of such that were cut in order.
        owners: where the parameter of each stands in the batch.
    """
    device = pieces[0].device
    sizes = [piece.numel() for piece in pieces]
    rows = keys[list(owners)]
    first = [
        piece.storage_offset() - batch.params[i].storage_offset()
        for piece, i in zip(pieces, owners, strict=True)
    ]
    before = torch.tensor([0, *sizes[:-1]], device="cpu").cumsum(0)
    rows[:, 2] += torch.tensor(first, device="cpu") - before
    counts = torch.tensor(sizes, device=device)
    columns = rows.to(device).unbind(1)
    one, other, start = (
        column.repeat_interleave(counts, output_size=sum(sizes)) for column in columns
    )
    places = start.add_(torch.arange(sum(sizes), device=device))
    if not are_in_order(batch):  # the loop alone comes here, with one tensor after the other
        places = torch.cat([_places(batch.owners[i]).to(device) for i in owners])
    flat = torch.split(_drawn(places, one, other), sizes)
    return [part.view(piece.shape) for part, piece in zip(flat, pieces, strict=True)]


def draw_some(keys: Tensor, where: Sequence[Tensor], whole: Tensor) -> Tensor:
    """Return the same for some elements of a parameter, or for some of its rows.

    Args:
        keys: the parameter's own row of what :func:`draw_keys` has returned.
        where: their places, one tensor for each of the first axes.
        whole: the parameter.
    """
    rest = whole.shape[len(where) :]
    first = sum(at * stride for at, stride in zip(where, _strides(whole.shape), strict=False))
    within = torch.arange(rest.numel(), device=whole.device).view(rest)
    places = torch.as_tensor(first).view(-1, *[1] * len(rest)) + within
    one, other, _ = keys.to(whole.device).unbind()
    return _drawn(places, one, other)


def _drawn(places: Tensor, one: Tensor, other: Tensor) -> Tensor:
    found = _mixed((places & _LOW).bitwise_xor_(one))
    found = _mixed(found.add_(places >> 32).add_(other).bitwise_and_(_LOW))
    return found.bitwise_right_shift_(16).to(torch.float32)


def _mixed(x: Tensor) -> Tensor:
    """Return numbers of 32 bits mixed so that neighbours have nothing in common.

    The constants are the best that are known for two rounds:
    https://github.com/skeeto/hash-prospector. A product stays below 2^63.
    """
    x = x ^ (x >> 16)
    x.mul_(0x21F0AAAD).bitwise_and_(_LOW)
    x ^= x >> 15
    x.mul_(0x735A2D97).bitwise_and_(_LOW)
    x ^= x >> 15
    return x


def _keys(seed: int, step: int) -> tuple[int, int]:
    """Return two numbers of 32 bits for a step; see https://prng.di.unimi.it/splitmix64.c."""
    whole = 0xFFFFFFFFFFFFFFFF
    x = (int(seed) * 0xD1342543DE82EF95 + (int(step) + 1) * 0x9E3779B97F4A7C15) & whole
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & whole
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & whole
    x ^= x >> 31
    return x & _LOW, x >> 32


def _start(p: Any) -> tuple[int, bool]:
    """Return where the shard that is here starts, and whether it has all up to its end."""
    return _shard_place(p.shape, p.device_mesh, tuple(p.placements))


@lru_cache
def _shard_place(shape: torch.Size, mesh: Any, placements: tuple[Any, ...]) -> tuple[int, bool]:
    _, offsets = shard_start(shape, mesh, placements)
    start = sum(at * stride for at, stride in zip(offsets, _strides(shape), strict=True))
    cut = [p.dim for i, p in enumerate(placements) if p.is_shard() and mesh.size(i) > 1]
    # Whatever comes before the axis that is cut must be one row. All processes must say the same:
    # what they sum up together, they sum up in one order.
    return start, not cut or all(size == 1 for size in shape[: max(cut)])


def _places(p: Any) -> Tensor:
    """Return the place of each element that is here, in the whole parameter."""
    sizes, offsets = shard_start(p.shape, p.device_mesh, tuple(p.placements))
    strides = _strides(p.shape)
    found = torch.zeros(sizes, dtype=torch.int64, device="cpu")
    for axis, (size, at, stride) in enumerate(zip(sizes, offsets, strides, strict=True)):
        along = [-1 if i == axis else 1 for i in range(len(sizes))]
        found += ((torch.arange(size, device="cpu") + at) * stride).view(along)
    return found.view(-1)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return how far apart the elements of a whole parameter are along each axis, in order."""
    return torch.empty(shape, device="meta").stride()
