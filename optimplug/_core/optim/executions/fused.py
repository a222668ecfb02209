"""The execution that does a whole rule in one pass over the memory.

For now the pass is an operator of torch's, called once for each cell of a batch. Where it would be
wrong, :func:`can_fuse` and :func:`same_strides` say so and the batch takes another way: on the CPU
the operators read memory in order whatever the strides, so a gradient laid out unlike its parameter
would be applied to the wrong elements, without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.rule import FusedCall, Rule

__all__ = ["FUSED_DEVICES", "can_fuse", "fused", "same_strides"]

FUSED_DEVICES = ("cpu", "cuda")


def can_fuse(rule: Rule, p: Tensor) -> bool:
    """Tell whether the rule has a fused operator that is right for tensors like this one."""
    return p.device.type in FUSED_DEVICES and p.dtype in rule.fused_dtypes


def same_strides(batch: Batch) -> bool:
    """Tell whether every parameter, its gradient and its state lie in memory the same way."""
    columns = [batch.params, batch.grads, *batch.states.values()]
    if any(map(torch.Tensor.is_neg, chain.from_iterable(columns))):
        return False  # a negative was taken, and its sign is yet to be changed
    if all(map(torch.Tensor.is_contiguous, chain.from_iterable(columns))):
        return True
    return all(_is_dense(row[0]) and _strides_agree(row) for row in zip(*columns, strict=True))


def fused(batch: Batch, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    """Run each cell through one operator; for the arguments see :class:`FusedCall`."""
    device = batch.params[0].device
    scale = None if grad_scale is None else grad_scale.to(device)
    found = None if found_inf is None else found_inf.to(device)
    for cell, hyper in zip(batch.cells, batch.hypers, strict=True):
        part = cell.part
        states = {name: tensors[part] for name, tensors in batch.states.items()}
        own = batch.params[part], batch.grads[part], states, hyper, batch.steps[part]
        batch.rule.fused(FusedCall(*own, cell.first, scale, found))


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
