"""Schedulers whose factor is a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from optimplug._core.arguments import per_group
from optimplug._core.lr_scheduler.base import LRScheduler
from optimplug._core.lr_scheduler.factor import AbsoluteLR
from optimplug.errors import ArgumentError

__all__ = ["LambdaLR", "MultiplicativeLR"]

Function = Callable[[int], float]


class _NoFunctionError(ArgumentError, TypeError):
    """What torch raises here is a TypeError."""


class _FunctionLR(LRScheduler):
    """What the two schedulers below share: a function for each group."""

    _functions = ("lr_lambdas",)

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Function | Sequence[Function],
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.lr_lambdas: list[Function] = per_group("lr_lambda", lr_lambda, optimizer)
        for function in self.lr_lambdas:
            if not callable(function):
                raise _NoFunctionError(
                    f"lr_lambda should be a function, but got {type(function).__name__}: "
                    f"lr_lambda must be a function of a step (got {function!r})"
                )
        super().__init__(optimizer, last_epoch, verbose)

    def _moves_by(self, updates: int) -> bool:
        return False  # the user's functions are for the steps that are taken, and asked no others


class LambdaLR(_FunctionLR, AbsoluteLR):
    r"""Scale the rate by a function of the step.

    .. math:: \eta(t) = \eta_0\, \lambda(t)

    with :math:`\eta_0` the group's own rate and :math:`\lambda` = ``lr_lambda``. What others have
    made of the rate is overwritten, as in torch.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        lr_lambda: a function from a step, counted from 0, to a factor; or a list of them, one for
            each group, of which the last serves groups that join later.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: ``lr_lambda`` cannot be called, or the list has not one for each group.

    A plain function is not saved with the state; of an object that can be called its attributes
    are. Loading a state into a scheduler with the other kind is a StateError.

    Example:
        >>> import torch
        >>> from optimplug.optim.lr_scheduler import LambdaLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = LambdaLR(optimizer, lambda t: 1 / (1 + t))
        >>> for _ in range(4):
        ...     optimizer.step()
        ...     print(round(scheduler.get_last_lr()[0], 4))
        ...     scheduler.step()
        1.0
        0.5
        0.3333
        0.25
    """

    def rates(self, t: int) -> list[float]:
        """Return the closed form of every group at step ``t``, in the optimizer's order."""
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base * float(function(t)) for base, function in pairs]


class MultiplicativeLR(_FunctionLR):
    r"""Scale the rate at each step by a function of the step.

    .. math:: \eta(t) = \eta(t - 1)\, \lambda(t) = \eta_0 \prod_{i=1}^{t} \lambda(i)

    with :math:`\eta_0` the group's own rate and :math:`\lambda` = ``lr_lambda``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        lr_lambda: a function from a step, counted from 1, to a factor; or a list of them, one for
            each group, of which the last serves groups that join later.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: ``lr_lambda`` cannot be called, or the list has not one for each group.

    A plain function is not saved with the state; of an object that can be called its attributes
    are. Loading a state into a scheduler with the other kind is a StateError.

    Example:
        >>> import torch
        >>> from optimplug.optim.lr_scheduler import MultiplicativeLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = MultiplicativeLR(optimizer, lambda t: 0.5 if t < 3 else 1.0)
        >>> for _ in range(4):
        ...     optimizer.step()
        ...     print(scheduler.get_last_lr()[0])
        ...     scheduler.step()
        1.0
        0.5
        0.25
        0.25
    """

    _catches_up = True

    def rates(self, t: int) -> list[float]:
        """Return the closed form of every group at step ``t``, in the optimizer's order."""
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base * math.prod(float(f(i)) for i in range(1, t + 1)) for base, f in pairs]

    def _follow(self, held: list[Any]) -> list[float]:
        t = self.last_epoch  # one call for each group and step, however long the run
        pairs = zip(map(float, held), self.lr_lambdas, strict=True)
        return [lr * float(f(t)) if t > 0 else lr for lr, f in pairs]
