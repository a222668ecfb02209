"""Schedulers that scale the rate by a factor of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import Optimizer

from optimplug._core.arguments import require_ascending, require_count, require_number
from optimplug._core.lr_scheduler.factor import FactorLR

__all__ = ["ConstantLR", "ExponentialLR", "LinearLR", "MultiStepLR", "PolynomialLR", "StepLR"]


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
        >>> import torch
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

    _length = "total_iters"

    def __init__(
        self,
        optimizer: Optimizer,
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
        >>> import torch
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

    _length = "total_iters"

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        start = require_number("start_factor", start_factor, "> 0 and <= 1", lambda s: 0 < s <= 1)
        end = require_number("end_factor", end_factor, "between 0 and 1", lambda e: 0 <= e <= 1)
        self.start_factor, self.end_factor = start, end
        self.total_iters = require_count("total_iters", total_iters)
        super().__init__(optimizer, last_epoch, verbose)

    def factor_at(self, t: int) -> float:
        """Return the factor at step ``t``, from 0."""
        if t >= self.total_iters:
            return self.end_factor
        return self.start_factor + (self.end_factor - self.start_factor) * t / self.total_iters


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
        >>> import torch
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

    _length = "total_iters"

    def __init__(
        self,
        optimizer: Optimizer,
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
        left = 1.0 - min(t, self.total_iters) / self.total_iters if self.total_iters else 1.0
        return float(left**self.power)


def _require_gamma(gamma: float) -> float:
    return require_number("gamma", gamma, "a finite number >= 0", lambda g: g >= 0)


class ExponentialLR(FactorLR):
    r"""Scale the rate by the same factor at each step.

    .. math:: \eta(t) = \eta_0\, \gamma^t

    with :math:`\eta_0` the group's own rate and :math:`\gamma` = ``gamma``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        gamma: the factor of one step, >= 0.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: ``gamma`` is no finite number >= 0.

    Example:
        >>> import torch
        >>> from optimplug.optim.lr_scheduler import ExponentialLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = ExponentialLR(optimizer, gamma=0.5)
        >>> for _ in range(4):
        ...     optimizer.step()
        ...     print(scheduler.get_last_lr()[0])
        ...     scheduler.step()
        1.0
        0.5
        0.25
        0.125
    """

    def __init__(
        self, optimizer: Optimizer, gamma: float, last_epoch: int = -1, verbose: bool = False
    ) -> None:
        self.gamma = _require_gamma(gamma)
        super().__init__(optimizer, last_epoch, verbose)

    def factor_at(self, t: int) -> float:
        """Return the factor at step ``t``, from 0."""
        return float(self.gamma**t)


class StepLR(FactorLR):
    r"""Scale the rate by a factor every so many steps.

    .. math:: \eta(t) = \eta_0\, \gamma^{\lfloor t / s \rfloor}

    with :math:`\eta_0` the group's own rate, :math:`s` = ``step_size``, :math:`\gamma` = ``gamma``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        step_size: steps from one change to the next, >= 1.
        gamma: the factor of one change, >= 0.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: a value breaks its rule.

    Example:
        >>> import torch
        >>> from optimplug.optim.lr_scheduler import StepLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
        >>> scheduler = StepLR(optimizer, step_size=2, gamma=0.1)
        >>> for _ in range(5):
        ...     optimizer.step()
        ...     print(round(scheduler.get_last_lr()[0], 6))
        ...     scheduler.step()
        0.05
        0.05
        0.005
        0.005
        0.0005
    """

    _length = "step_size"

    def __init__(
        self,
        optimizer: Optimizer,
        step_size: int,
        gamma: float = 0.1,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.step_size = require_count("step_size", step_size, least=1)
        self.gamma = _require_gamma(gamma)
        super().__init__(optimizer, last_epoch, verbose)

    def factor_at(self, t: int) -> float:
        """Return the factor at step ``t``, from 0."""
        return float(self.gamma ** (t // self.step_size))


class MultiStepLR(FactorLR):
    r"""Scale the rate by a factor at each of the milestones.

    .. math:: \eta(t) = \eta_0\, \gamma^{|\{m_i \le t\}|}

    with :math:`\eta_0` the group's own rate, :math:`m_i` = ``milestones``, :math:`\gamma` =
    ``gamma``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        milestones: the steps at which the rate changes, ascending; one that is there twice
            counts twice.
        gamma: the factor of one change, >= 0.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: a value breaks its rule.

    Example:
        >>> import torch
        >>> from optimplug.optim.lr_scheduler import MultiStepLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
        >>> scheduler = MultiStepLR(optimizer, milestones=[1, 3], gamma=0.1)
        >>> for _ in range(4):
        ...     optimizer.step()
        ...     print(round(scheduler.get_last_lr()[0], 6))
        ...     scheduler.step()
        0.05
        0.005
        0.005
        0.0005
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.milestones = Counter(require_ascending("milestones", milestones))
        self.gamma = _require_gamma(gamma)
        super().__init__(optimizer, last_epoch, verbose)

    def factor_at(self, t: int) -> float:
        """Return the factor at step ``t``, from 0."""
        return float(self.gamma ** sum(n for at, n in self.milestones.items() if at <= t))

    def _steps_in_it(self) -> float:
        return max(self.milestones, default=0)

    def _completed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        state = super()._completed(state_dict)
        milestones = state.get("milestones")
        if isinstance(milestones, list) and milestones == sorted(milestones):
            state["milestones"] = Counter(milestones)  # saved by an earlier release
        return state
