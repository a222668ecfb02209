"""Schedulers that scale the rate by a factor of time."""

from __future__ import annotations

import torch

from optimplug._core.lr_scheduler.base import LRScheduler, require_count
from optimplug.errors import ArgumentError

__all__ = ["LinearLR", "linear"]


def linear(t: int, *, start_factor: float, end_factor: float, total_iters: int) -> float:
    """Return the factor on the line from ``start_factor`` at 0 to ``end_factor`` at the end.

    Example:
        >>> [linear(t, start_factor=0.5, end_factor=1.0, total_iters=2) for t in range(4)]
        [0.5, 0.75, 1.0, 1.0]
    """
    if t >= total_iters:
        return end_factor
    return start_factor + (end_factor - start_factor) * t / total_iters


class LinearLR(LRScheduler):
    r"""Scale the rate along a line, then hold it.

    .. math:: \eta(t) = \eta_0 \left(s + (e - s)\, \frac{\min(t, T)}{T}\right)

    with :math:`\eta_0` the group's own rate, :math:`s` = ``start_factor``, :math:`e` =
    ``end_factor``, :math:`T` = ``total_iters``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        start_factor: factor at step 0, in (0, 1].
        end_factor: factor from step ``total_iters`` on, in [0, 1].
        total_iters: steps until ``end_factor``, >= 0. With 0 the line is already at its end.
        last_epoch: number of steps already taken, minus one; -1 starts anew.

    Raises:
        ArgumentError: a value breaks its rule.

    Example:
        >>> from optimplug.optim.lr_scheduler import LinearLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = LinearLR(optimizer, start_factor=0.5, total_iters=4)
        >>> for _ in range(5):
        ...     optimizer.step()
        ...     print(round(scheduler.get_last_lr()[0], 4))
        ...     scheduler.step()
        0.05
        0.0625
        0.075
        0.0875
        0.1
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0.0 < start_factor <= 1.0:
            raise ArgumentError(f"start_factor must be > 0 and <= 1 (got {start_factor})")
        if not 0.0 <= end_factor <= 1.0:
            raise ArgumentError(f"end_factor must be between 0 and 1 (got {end_factor})")
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = require_count("total_iters", total_iters)
        super().__init__(optimizer, last_epoch)

    def closed_form(self, base_lr: float, t: int) -> float:
        return base_lr * linear(
            t,
            start_factor=self.start_factor,
            end_factor=self.end_factor,
            total_iters=self.total_iters,
        )
