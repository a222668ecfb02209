"""Some elements of a tensor, in place of all of a large one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["sample"]

_GOLDEN = 0.6180339887498949


def sample(tensor: Tensor, most: int) -> Tensor:
    """Return elements of a tensor in one dimension: all, or as many as are asked for.

    They lie spread over it, the same at every call, and not in rows and columns of a matrix: each
    is a golden section of the tensor further than the one before. Nothing of the tensor's size is
    allocated for it.

    Args:
        tensor: not one that is sharded.
        most: how many there are at the most.

    Example:
        >>> sample(torch.arange(100), most=4)
        tensor([ 0, 61, 22, 83])
    """
    size = tensor.numel()
    if size <= most:
        return tensor.reshape(-1)
    stride = int(size * _GOLDEN)
    while math.gcd(stride, size) != 1:  # else it would come back before it has been everywhere
        stride += 1
    return torch.take(tensor, torch.arange(most, device=tensor.device) * stride % size)
