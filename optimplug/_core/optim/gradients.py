"""The global norm of gradients, and clipping folded into the step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch

__all__ = ["clip_coefficient", "global_norm"]


def global_norm(grads: Iterable[Tensor]) -> Tensor:
    r"""Return :math:`\lVert g \rVert_2` over all gradients as if they were one vector.

    The result is a zero-dimensional tensor: reading its value is what waits for the device.
    """
    return torch.nn.utils.get_total_norm(grads)


def clip_coefficient(norm: Tensor, max_norm: float) -> Tensor:
    r"""Return :math:`\min(1, c / (\lVert g \rVert_2 + 10^{-6}))`, for :math:`c` = ``max_norm``.

    The factor of :func:`torch.nn.utils.clip_grad_norm_`, its small constant included.
    """
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def batches_norm(batches: Iterable[Batch]) -> Tensor:
    """Return the global norm of all gradients that a step is about to use."""
    return global_norm([g for batch in batches for g in batch.grads])
