"""The global norm of gradients, and clipping folded into the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["clip_coefficient", "global_norm"]


def global_norm(grads: Sequence[Tensor]) -> Tensor:
    r"""Return :math:`\lVert g \rVert_2` over all gradients as if they were one vector.

    The result is a zero-dimensional tensor: reading its value is what waits for the device.
    """
    return torch.nn.utils.get_total_norm(grads)


def clip_coefficient(norm: Tensor, max_norm: float) -> Tensor:
    r"""Return :math:`\min(1, c / (\lVert g \rVert_2 + 10^{-6}))`, for :math:`c` = ``max_norm``.

    The factor of :func:`torch.nn.utils.clip_grad_norm_`, its small constant included.
    """
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
