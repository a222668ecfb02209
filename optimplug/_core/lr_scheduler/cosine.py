"""Schedulers that follow a cosine."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from optimplug._core.arguments import require_count, require_number
from optimplug._core.lr_scheduler.factor import AbsoluteLR, FactorLR, scaled
from optimplug._core.lr_scheduler.forgotten import forget_watch

__all__ = ["CosineAnnealingLR", "CosineAnnealingWarmRestarts", "cosine", "in_cycle"]


def cosine(t: float, *, T_max: int) -> float:
    """Return how much of the way down is left: 1 at 0, 0 at ``T_max``, then up again.

    Example:
        >>> [round(cosine(t, T_max=4), 4) for t in range(6)]
        [1.0, 0.8536, 0.5, 0.1464, 0.0, 0.1464]
    """
    return (1 + math.cos(math.pi * t / T_max)) / 2


def in_cycle(t: float, *, T_0: int, T_mult: int) -> tuple[float, int]:
    """Return how far step ``t`` is into its cycle, and the length of that cycle.

    Example:
        >>> [in_cycle(t, T_0=2, T_mult=2) for t in (0, 1, 2, 5, 6)]
        [(0, 2), (1, 2), (0, 4), (3, 4), (0, 8)]
    """
    if T_mult == 1:
        return t % T_0, T_0
    length = T_0
    while t >= length:
        t, length = t - length, length * T_mult
    return t, length


class CosineAnnealingLR(FactorLR):
    r"""Lower the rate to a minimum along half a cosine; past it the rate rises again.

    .. math:: \eta(t) = \eta_{min} + (\eta_0 - \eta_{min})\, \frac{1 + \cos(\pi t / T_{max})}{2}

    with :math:`\eta_0` the group's own rate and :math:`\eta_{min}` = ``eta_min``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        T_max: steps from the group's own rate to the minimum, >= 1.
        eta_min: the minimum, an absolute rate.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: ``T_max`` is not a positive int, or ``eta_min`` no finite number.

    Example:
        >>> import torch
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

    _length = "T_max"

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.T_max = require_count("T_max", T_max, least=1)
        self.eta_min = require_number("eta_min", eta_min)
        super().__init__(optimizer, last_epoch, verbose)

    def factor_at(self, t: int) -> float:
        """Return the factor at step ``t``, from 0."""
        return cosine(t, T_max=self.T_max)


class CosineAnnealingWarmRestarts(AbsoluteLR, FactorLR):
    r"""Lower the rate to a minimum along half a cosine, then start again, with longer cycles.

    .. math:: \eta(t) = \eta_{min} + (\eta_0 - \eta_{min})\,
        \frac{1 + \cos(\pi T_{cur} / T_i)}{2}

    with :math:`\eta_0` the group's own rate, :math:`\eta_{min}` = ``eta_min``,
    :math:`T_i = T_0\, T_{mult}^i` the length of cycle :math:`i` and :math:`T_{cur}` the steps since
    it began. What others have made of the rate is overwritten, as in torch.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        T_0: steps in the first cycle, >= 1.
        T_mult: how many times longer each cycle is than the one before, >= 1.
        eta_min: the minimum, an absolute rate.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: a value breaks its rule.

    Example:
        >>> import torch
        >>> from optimplug.optim.lr_scheduler import CosineAnnealingWarmRestarts
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=2)
        >>> for _ in range(7):
        ...     optimizer.step()
        ...     print(round(scheduler.get_last_lr()[0], 4))
        ...     scheduler.step()
        1.0
        0.5
        1.0
        0.8536
        0.5
        0.1464
        1.0

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
    https://arxiv.org/abs/1608.03983.
    """

    _length = "T_0"

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.T_0 = self.T_i = require_count("T_0", T_0, least=1)
        self.T_mult = require_count("T_mult", T_mult, least=1)
        self.eta_min = require_number("eta_min", eta_min)
        self.T_cur: float = 0
        super().__init__(optimizer, last_epoch, verbose)

    def step(self, epoch: float | None = None) -> None:
        """Advance by one update; with ``epoch``, jump there, also to a part of an epoch.

        Raises:
            ArgumentError: ``epoch`` is not a number >= 0. Nothing has changed then.
        """
        if epoch is None:
            self._step(None, None)
        else:
            epoch = require_number("epoch", epoch, "a finite number >= 0", lambda e: e >= 0)
            forget_watch(self.optimizer)
            self._jump(epoch)

    def factor_at(self, t: float) -> float:
        """Return the factor at step ``t``, from 0."""
        into, length = in_cycle(t, T_0=self.T_0, T_mult=self.T_mult)
        return cosine(into, T_max=length)

    def _advance(self, metrics: Any = None) -> None:
        if self.last_epoch < 0:
            self.T_cur, self.T_i = 0, self.T_0
        else:  # from where it is: a jump into the middle of an epoch leaves a part of a step
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur, self.T_i = self.T_cur % self.T_i, self.T_i * self.T_mult
        super()._advance(metrics)

    def _jump(self, t: float) -> None:
        self._admit_groups()
        self.T_cur, self.T_i = in_cycle(t, T_0=self.T_0, T_mult=self.T_mult)
        self.last_epoch = math.floor(t)
        held = [group["lr"] for group in self._groups]
        self._write(self._given() if self._gives_lr else self._follow(held), held)

    def _follow(self, held: list[Any]) -> list[float]:
        return scaled(self.base_lrs, cosine(self.T_cur, T_max=self.T_i), self.eta_min)
