"""A float32 weight and the bfloat16 that stands for it, bit by bit.

bfloat16 is the upper half of a float32. Each function works on tensors of float32, or of float64
that hold such numbers; their twins in C stand in :mod:`.c_source`, and both give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["drawn", "finite_or", "hidden", "joined", "narrowed", "visible"]

_UPPER = -0x10000
"""As a mask of 32 bits: the half that a bfloat16 keeps."""


def visible(x: Tensor) -> Tensor:
    """Return the nearest bfloat16; of two that are equally near, the one further from zero."""
    return torch.where(x.isnan(), x, _number(_nearest(_bits(x)), x))


def hidden(x: Tensor) -> Tensor:
    """Return what :func:`visible` leaves of the bits, between -32768 and 32767.

    Negative where that has rounded away from zero; 0 where it is not finite.
    """
    bits = _bits(x)
    nearest = _nearest(bits)
    rest = bits.sub_(nearest).to(x.dtype)
    return torch.where(_number(nearest, x).isfinite() & ~x.isnan(), rest, 0)


def joined(p: Tensor, rest: Tensor) -> Tensor:
    """Return what :func:`visible` and :func:`hidden` have come from.

    Where somebody has written infinity, NaN or 0 over the weight, what was left of the old one
    does not count.
    """
    overwritten = ~p.isfinite() | ((p == 0) & (rest < 0))
    return _number(_bits(p) + torch.where(overwritten, 0, rest).to(torch.int32), p)


def drawn(x: Tensor, random: Tensor | float) -> Tensor:
    """Return the bfloat16 below or above; the nearer it is, the more random numbers lead to it.

    Args:
        x: numbers; those that are not finite stay, and none becomes infinite.
        random: whole numbers from 0 to 65535.
    """
    bits = _bits(x)
    up = _number((bits + _whole(random)).bitwise_and_(_UPPER), x)
    found = torch.where(up.isfinite(), up, _number(bits & _UPPER, x))
    return torch.where(x.isnan(), x, found)


def narrowed(x: Tensor) -> Tensor:
    """Return the nearest bfloat16, as torch rounds."""
    return x.to(torch.bfloat16).to(x.dtype)


def finite_or(x: Tensor, other: Tensor | float) -> Tensor:
    """Return ``x`` where it is finite, else ``other``."""
    return torch.where(x.isfinite(), x, other)


def _nearest(bits: Tensor) -> Tensor:
    return (bits + 0x8000).bitwise_and_(_UPPER)


def _whole(random: Tensor | float) -> Tensor | int:
    return random.to(torch.int32) if isinstance(random, Tensor) else int(random)


def _bits(x: Tensor) -> Tensor:
    """Return new memory with the bits of each number."""
    return x.to(torch.float32, copy=True).view(torch.int32)


def _number(bits: Tensor, like: Tensor) -> Tensor:
    return bits.view(torch.float32).to(like.dtype)
