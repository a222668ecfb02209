"""Schedulers that follow a cosine."""

from __future__ import annotations

import math

import torch

from optimplug._core.lr_scheduler.base import LRScheduler, require_count
from optimplug.errors import ArgumentError

__all__ = ["CosineAnnealingLR", "cosine"]


def cosine(t: int, *, T_max: int) -> float:
    """Return how much of the way down is left: 1 at 0, 0 at ``T_max``, then up again.

    Example:
        >>> [round(cosine(t, T_max=4), 4) for t in range(6)]
        [1.0, 0.8536, 0.5, 0.1464, 0.0, 0.1464]
    """
    return (1 + math.cos(math.pi * t / T_max)) / 2


class CosineAnnealingLR(LRScheduler):
    r"""Lower the rate to a minimum along half a cosine; past it the rate rises again.

    .. math:: \eta(t) = \eta_{min} + (\eta_0 - \eta_{min})\, \frac{1 + \cos(\pi t / T_{max})}{2}

    with :math:`\eta_0` the group's own rate and :math:`\eta_{min}` = ``eta_min``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        T_max: steps from the group's own rate to the minimum, >= 1.
        eta_min: the minimum, an absolute rate.
        last_epoch: number of steps already taken, minus one; -1 starts anew.

    Raises:
        ArgumentError: ``T_max`` is not a positive int, or ``eta_min`` no finite number.

    Example:
        >>> from optimplug.optim.lr_scheduler import CosineAnnealingLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = CosineAnnealingLR(optimizer, T_max=4)
        >>> for _ in range(5):
        ...     optimizer.step()
        ...     print(round(scheduler.get_last_lr()[0], 4))
        ...     scheduler.step()
        1.0
        0.8536
        0.5
        0.1464
        0.0

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
    https://arxiv.org/abs/1608.03983. Only the annealing, without the restarts.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        T_max: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.T_max = require_count("T_max", T_max, least=1)
        if not isinstance(eta_min, int | float) or not math.isfinite(eta_min):
            raise ArgumentError(f"eta_min must be a finite number (got {eta_min!r})")
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def closed_form(self, base_lr: float, t: int) -> float:
        return self.eta_min + (base_lr - self.eta_min) * cosine(t, T_max=self.T_max)

    def chained(self, lr: float, base_lr: float, t: int) -> float:
        # What is left above the minimum shrinks by a ratio; from the minimum itself it grows anew.
        left, before = cosine(t, T_max=self.T_max), cosine(t - 1, T_max=self.T_max) if t else 1.0
        if before == 0:
            return lr + (base_lr - self.eta_min) * left
        return (lr - self.eta_min) * left / before + self.eta_min
