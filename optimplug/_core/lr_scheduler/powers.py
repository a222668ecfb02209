"""Schedulers whose factor is a power of ``gamma``."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from optimplug._core.lr_scheduler.arguments import require_count, require_number
from optimplug._core.lr_scheduler.factor import FactorLR
from optimplug.errors import ArgumentError

__all__ = ["ExponentialLR", "MultiStepLR", "StepLR", "require_ascending"]


def require_ascending(name: str, counts: Iterable[int]) -> list[int]:
    """Return the counts as a list if none is below the one before it."""
    milestones = [require_count(f"each of {name}", count) for count in counts]
    if milestones != sorted(milestones):
        raise ArgumentError(f"{name} must ascend (got {milestones})")
    return milestones


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
        self,
        optimizer: torch.optim.Optimizer,
        gamma: float,
        last_epoch: int = -1,
        verbose: bool = False,
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

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
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
        optimizer: torch.optim.Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.milestones = require_ascending("milestones", milestones)
        self.gamma = _require_gamma(gamma)
        super().__init__(optimizer, last_epoch, verbose)

    def factor_at(self, t: int) -> float:
        """Return the factor at step ``t``, from 0."""
        return float(self.gamma ** bisect_right(self.milestones, t))

    def _completed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        state = super()._completed(state_dict)
        if isinstance(state.get("milestones"), Counter):  # torch's
            state["milestones"] = sorted(state["milestones"].elements())
        return state
