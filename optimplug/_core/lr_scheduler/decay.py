"""Schedulers that scale the rate by a factor of time, and then hold it."""

from __future__ import annotations

import torch

from optimplug._core.lr_scheduler.arguments import require_count, require_number
from optimplug._core.lr_scheduler.factor import FactorLR

__all__ = ["ConstantLR", "LinearLR", "PolynomialLR", "linear", "polynomial"]


def linear(t: int, *, start_factor: float, end_factor: float, total_iters: int) -> float:
    """Return the factor on the line from ``start_factor`` at 0 to ``end_factor`` at the end.

    Example:
        >>> [linear(t, start_factor=0.5, end_factor=1.0, total_iters=2) for t in range(4)]
        [0.5, 0.75, 1.0, 1.0]
    """
    if t >= total_iters:
        return end_factor
    return start_factor + (end_factor - start_factor) * t / total_iters


def polynomial(t: int, *, total_iters: int, power: float) -> float:
    """Return the power of what is left of the way: 1 at 0, 0 from ``total_iters`` on.

    Example:
        >>> [polynomial(t, total_iters=2, power=2.0) for t in range(4)]
        [1.0, 0.25, 0.0, 0.0]
    """
    left = 1.0 - min(t, total_iters) / total_iters if total_iters else 1.0
    return float(left**power)


class ConstantLR(FactorLR):
    r"""Scale the rate by a constant for a while.

    .. math:: \eta(t) = \begin{cases} c\, \eta_0 & t < T \\ \eta_0 & t \ge T \end{cases}

    with :math:`\eta_0` the group's own rate, :math:`c` = ``factor``, :math:`T` = ``total_iters``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        factor: factor until step ``total_iters``, in [0, 1].
        total_iters: steps with the factor, >= 0.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: a value breaks its rule.

    Example:
        >>> from optimplug.optim.lr_scheduler import ConstantLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
        >>> scheduler = ConstantLR(optimizer, factor=0.5, total_iters=2)
        >>> for _ in range(4):
        ...     optimizer.step()
        ...     print(scheduler.get_last_lr()[0])
        ...     scheduler.step()
        0.025
        0.025
        0.05
        0.05
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.factor = require_number("factor", factor, "between 0 and 1", lambda c: 0 <= c <= 1)
        self.total_iters = require_count("total_iters", total_iters)
        super().__init__(optimizer, last_epoch, verbose)

    def factor_at(self, t: int) -> float:
        """Return the factor at step ``t``, from 0."""
        return self.factor if t < self.total_iters else 1.0


class LinearLR(FactorLR):
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
        verbose: print every group's rate at each update.

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
        verbose: bool = False,
    ) -> None:
        self.start_factor = require_number(
            "start_factor", start_factor, "> 0 and <= 1", lambda s: 0 < s <= 1
        )
        self.end_factor = require_number(
            "end_factor", end_factor, "between 0 and 1", lambda e: 0 <= e <= 1
        )
        self.total_iters = require_count("total_iters", total_iters)
        super().__init__(optimizer, last_epoch, verbose)

    def factor_at(self, t: int) -> float:
        """Return the factor at step ``t``, from 0."""
        return linear(
            t,
            start_factor=self.start_factor,
            end_factor=self.end_factor,
            total_iters=self.total_iters,
        )


class PolynomialLR(FactorLR):
    r"""Lower the rate to 0 along a power of the way that is left.

    .. math:: \eta(t) = \eta_0 \left(1 - \frac{\min(t, T)}{T}\right)^p

    with :math:`\eta_0` the group's own rate, :math:`T` = ``total_iters``, :math:`p` = ``power``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        total_iters: steps until 0, >= 0. With 0 the rate stays as it is, as in torch.
        power: the exponent, >= 0; 1 is a line.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: a value breaks its rule.

    Example:
        >>> from optimplug.optim.lr_scheduler import PolynomialLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = PolynomialLR(optimizer, total_iters=4, power=2.0)
        >>> for _ in range(6):
        ...     optimizer.step()
        ...     print(scheduler.get_last_lr()[0])
        ...     scheduler.step()
        1.0
        0.5625
        0.25
        0.0625
        0.0
        0.0

    Source: the "poly" policy of Chen et al., "DeepLab: Semantic Image Segmentation with Deep
    Convolutional Nets, Atrous Convolution, and Fully Connected CRFs",
    https://arxiv.org/abs/1606.00915.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.total_iters = require_count("total_iters", total_iters)
        self.power = require_number("power", power, "a finite number >= 0", lambda p: p >= 0)
        super().__init__(optimizer, last_epoch, verbose)

    def factor_at(self, t: int) -> float:
        """Return the factor at step ``t``, from 0."""
        return polynomial(t, total_iters=self.total_iters, power=self.power)
