"""Schedulers whose factor is a function of the user's."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from optimplug._core.lr_scheduler.arguments import owner_of, per_group
from optimplug._core.lr_scheduler.base import LRScheduler
from optimplug._core.lr_scheduler.factor import AbsoluteLR
from optimplug.errors import ArgumentError, StateError

__all__ = ["LambdaLR", "MultiplicativeLR", "check_function", "function_state", "load_function"]

Function = Callable[[int], float]


def function_state(function: object) -> dict[str, Any] | None:
    """Return what of a function can be saved: a callable object's attributes, as torch does."""
    if function is None or isinstance(function, types.FunctionType):
        return None
    return dict(getattr(function, "__dict__", {}))


def check_function(name: str, function: object, saved: object) -> None:
    """Raise a StateError unless what was saved of a function fits this one."""
    own = function_state(function)
    if own is None and saved is not None:
        raise StateError(
            f"{name} was saved from a callable object with the attributes {saved!r}, but here is "
            f"{'none' if function is None else 'a plain function'}; build with the same object"
        )
    if own is not None and not isinstance(saved, dict):
        raise StateError(
            f"{name} is a callable object here, but the state holds nothing for it: "
            "plain functions are not saved; build with the same function"
        )


def load_function(function: object, saved: dict[str, Any] | None) -> None:
    """Give a callable object the attributes that were saved of it."""
    if saved:
        function.__dict__.update(saved)


class _FunctionLR(LRScheduler):
    """What the two schedulers below share: a function for each group, saved if it is an object."""

    _not_saved = (*LRScheduler._not_saved, "lr_lambdas")
    _per_group = ("lr_lambdas",)

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr_lambda: Function | Sequence[Function],
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        groups = len(owner_of(optimizer).param_groups)
        self.lr_lambdas: list[Function] = per_group("lr_lambda", lr_lambda, groups)
        for function in self.lr_lambdas:
            if not callable(function):
                raise ArgumentError(f"lr_lambda must be a function of a step (got {function!r})")
        super().__init__(optimizer, last_epoch, verbose)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as copies; functions are left out, callable objects give theirs."""
        functions = copy.deepcopy([function_state(f) for f in self.lr_lambdas])
        return {**super().state_dict(), "lr_lambdas": functions}

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        super()._check_state(state_dict)
        functions, saved = self.lr_lambdas, state_dict["lr_lambdas"]
        if not 1 <= len(saved) <= len(self._groups):
            raise StateError(
                f"lr_lambdas must have an entry for each of {len(self._groups)} groups "
                f"(got {len(saved)})"
            )
        for i, attributes in enumerate(saved):
            check_function(f"lr_lambdas[{i}]", functions[min(i, len(functions) - 1)], attributes)

    def _restore(self, state_dict: dict[str, Any]) -> None:
        for function, saved in zip(self.lr_lambdas, state_dict.pop("lr_lambdas"), strict=False):
            load_function(function, saved)
        super()._restore(state_dict)


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

    def rates(self, t: int) -> list[float]:
        """Return the closed form of every group at step ``t``, in the optimizer's order."""
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base * math.prod(float(f(i)) for i in range(1, t + 1)) for base, f in pairs]

    def _follow(self, held: Sequence[Any]) -> list[float]:
        t = self.last_epoch  # one call for each group and step, however long the run
        pairs = zip(held, self.lr_lambdas, strict=True)
        return [float(lr) * float(f(t)) if t > 0 else float(lr) for lr, f in pairs]
