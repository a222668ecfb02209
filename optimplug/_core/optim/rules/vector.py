"""All parameters as one vector of real numbers, for what does not go one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["flat_gradient", "move", "write"]


def flat_gradient(p: Tensor) -> Tensor:
    """Return a parameter's gradient as a vector of real numbers; zeros where it has none."""
    if p.grad is None:
        return p.new_zeros(p.numel() * (2 if p.is_complex() else 1), dtype=p.dtype.to_real())
    g = p.grad.to_dense() if p.grad.is_sparse else p.grad
    g = torch.view_as_real(g.resolve_conj()) if g.is_complex() else g
    return g.reshape(-1)


def move(params: Sequence[Tensor], d: Tensor, t: Any) -> None:
    """Add a multiple of a vector to the parameters."""
    reals = [torch.view_as_real(p) if p.is_complex() else p for p in params]
    for p, part in zip(reals, torch.split(d, [p.numel() for p in reals]), strict=True):
        p.add_(part.view_as(p), alpha=t)


def write(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give the parameters these values."""
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
