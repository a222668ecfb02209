"""Whether the tensors of a batch stand in memory so that a kernel may read them in order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

from torch import Tensor

from optimplug._core.internals import in_dispatch_mode
from optimplug._core.optim.batch import Batch, are_plain

__all__ = ["overlap", "same_strides", "share_memory", "without_memory"]


def same_strides(batch: Batch) -> bool:
    """Tell whether every parameter, its gradient and its state have their elements in one order."""
    columns = [batch.params, batch.grads, *batch.states.values()]
    if any(map(Tensor.is_neg, chain.from_iterable(columns))):
        return False  # a negative was taken, and its sign is yet to be changed
    if all(map(Tensor.is_contiguous, chain.from_iterable(columns))):
        return True
    return all(_is_dense(row[0]) and _strides_agree(row) for row in zip(*columns, strict=True))


def overlap(spans: Sequence[Sequence[Sequence[Any]]]) -> bool:
    """Tell whether tensors share memory: threads would write there at the same time.

    Args:
        spans: for each column of tensors their addresses, their bytes (none of those that are not
            known), and anything else.
    """
    ends = [
        (at, at + size)
        for addresses, sizes, *_ in spans
        for at, size in zip(addresses, sizes, strict=True)
        if size
    ]
    ends.sort()
    return any(start < stop for (_, stop), (start, _) in pairwise(ends))


def share_memory(tensors: Sequence[Tensor]) -> bool:
    """Tell whether some share memory; no where they only play that they have any."""
    if in_dispatch_mode() or not are_plain(tensors) or tensors[0].is_meta:
        return False
    return overlap([[[t.data_ptr() for t in tensors], [t.nbytes for t in tensors]]])


def without_memory(tensors: Sequence[Tensor], addresses: Sequence[int]) -> bool:
    """Tell whether some tensor has elements but no memory for them.

    Such is what autograd returns where a derivative is 0 everywhere, that of ``sgn`` for one.
    """
    return 0 in addresses and any(
        at == 0 and t.numel() > 0 for t, at in zip(tensors, addresses, strict=True)
    )


def _strides_agree(row: Sequence[Tensor]) -> bool:
    return all(tensor.stride() == row[0].stride() for tensor in row)


def _is_dense(p: Tensor) -> bool:
    """Tell whether the elements fill their memory without gaps or overlaps, in any order."""
    axes = sorted(
        (stride, size) for stride, size in zip(p.stride(), p.shape, strict=True) if size > 1
    )
    filled = 1
    for stride, size in axes:
        if stride != filled:
            return False
        filled *= size
    return True
