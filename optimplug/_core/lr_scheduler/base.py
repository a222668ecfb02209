"""LRScheduler: walks the groups, keeps the few things that a function of time cannot know."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optimplug.errors import ArgumentError, StateError

__all__ = ["LRScheduler", "require_count", "set_rate"]

# torch saves these flags of its own; they say nothing about the schedule.
_TORCH_FLAGS = frozenset({"_get_lr_called_within_step", "_is_initial", "verbose"})


class LRScheduler(torch.optim.lr_scheduler.LRScheduler):
    r"""Base class of the schedulers: a closed form :math:`\eta(t)`, applied to every group.

    A subclass gives :meth:`closed_form`, and :meth:`chained` where the change from one step to the
    next is not a ratio. While nobody else changes a group's rate, it follows the closed form
    exactly; where another scheduler (or the user) does, the change from step to step is applied to
    what is there, so several schedulers can act on the same groups. A subclass in torch's style,
    with :meth:`get_lr` alone, works as well.

    Args:
        optimizer: its groups' ``lr`` is what the schedule sets. A group's ``initial_lr`` is its
            base; it is filled in from ``lr`` where it is missing, also for a group added later.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
    """

    # In torch's class these lists may hold tensors; here they hold floats alone.
    base_lrs: list[float]  # type: ignore[assignment]
    _last_lr: list[float]  # type: ignore[assignment]

    # What is not state: the groups' owner, and what a subclass is built from.
    _not_saved: tuple[str, ...] = ("optimizer",)

    def __init__(self, optimizer: torch.optim.Optimizer, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        # accelerate's wrapper hides the groups' owner and has no hooks of its own.
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self.last_epoch = last_epoch
        if not hasattr(self.optimizer, "_opt_called"):  # where torch's schedulers look as well
            self.optimizer._opt_called = False  # type: ignore[union-attr]
            self.optimizer.register_step_post_hook(_note_step)
        self._initial_step()

    def closed_form(self, base_lr: float, t: int) -> float:
        """Return the rate at step ``t`` (from 0) of a group whose own rate is ``base_lr``."""
        raise NotImplementedError(f"{type(self).__name__} must have closed_form or get_lr")

    def chained(self, lr: float, base_lr: float, t: int) -> float:
        """Return the rate at step ``t`` of a group that somebody else has set to ``lr``."""
        before = self._before(base_lr, t)
        return lr * (self.closed_form(base_lr, t) / before) if before else lr

    def _before(self, base_lr: float, t: int) -> float:
        """Return what this schedule alone left in the group before step ``t``."""
        return self.closed_form(base_lr, t - 1) if t > 0 else base_lr

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of every group at ``last_epoch``, from what the groups hold now."""
        t = self.last_epoch
        return [
            self.closed_form(base, t)
            if _holds(group, self._before(base, t))
            else self.chained(float(group["lr"]), base, t)
            for group, base in zip(self._groups, self.base_lrs, strict=True)
        ]

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of every group, in the optimizer's order, as last set."""
        return list(self._last_lr)

    def step(self, epoch: int | None = None) -> None:
        """Advance by one update; with ``epoch`` (deprecated in torch), jump to that step."""
        if self._step_count == 1 and not getattr(self.optimizer, "_opt_called", False):
            warnings.warn(
                "lr_scheduler.step() was called before optimizer.step(): "
                "the first learning rate of the schedule is skipped",
                UserWarning,
                stacklevel=2,
            )
        if epoch is not None:
            warnings.warn(
                "The epoch parameter in `scheduler.step()` is deprecated; call step() without it",
                UserWarning,
                stacklevel=2,
            )
        self._step_count += 1
        self._update_lr(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as copies: primitives, and lists of them.

        The rates in it are those that the groups hold now, whoever has set them.
        """
        own = {k: v for k, v in self.__dict__.items() if k not in self._not_saved}
        to_come = [None] * (len(self._groups) - len(self.base_lrs))  # they join at the next step
        own |= {"base_lrs": self.base_lrs + to_come, "_last_lr": self._rates()}
        return copy.deepcopy(own)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the schedule and the optimizer's rates; the argument is left as it is.

        Raises:
            StateError: the state is of another class or another number of groups. Nothing has
                changed then.
        """
        state_dict = self._completed(state_dict)
        self._check_state(state_dict)
        self._restore(copy.deepcopy(state_dict))
        for group, base in zip(self._groups, self.base_lrs, strict=False):
            group["initial_lr"] = base
        for group, lr in zip(self._groups, self._last_lr, strict=True):
            set_rate(group, lr)

    def _completed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state, torch's included, with the keys and number types that it has here."""
        state = {key: value for key, value in state_dict.items() if key not in _TORCH_FLAGS}
        for key in ("base_lrs", "_last_lr"):
            if isinstance(state.get(key), list):
                state[key] = [_as_float(lr) for lr in state[key]]
        return state

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        own = self.state_dict()
        if own.keys() != state_dict.keys():
            raise StateError(
                f"this state is not of a {type(self).__name__}: "
                f"missing {sorted(own.keys() - state_dict.keys())}, "
                f"unexpected {sorted(state_dict.keys() - own.keys())}"
            )
        for key, value in own.items():
            given = state_dict[key]
            if _kind(given) is not _kind(value):
                kind = _kind(value).__name__
                raise StateError(f"{key} must be of the kind {kind} (got {given!r})")
        if state_dict["last_epoch"] < -1 or type(state_dict["last_epoch"]) is not int:
            raise StateError(f"last_epoch must be an int >= -1 (got {state_dict['last_epoch']!r})")
        for key in ("base_lrs", "_last_lr"):
            rates = state_dict[key]
            if len(rates) != len(self._groups):
                raise StateError(
                    f"the state holds {len(rates)} groups, but the optimizer has "
                    f"{len(self._groups)}"
                )
            if not all(isinstance(lr, float) for lr in rates if lr is not None):
                raise StateError(f"{key} must be a list of numbers (got {rates!r})")

    def _restore(self, state_dict: dict[str, Any]) -> None:
        known = [base for base in state_dict["base_lrs"] if base is not None]
        self.__dict__.update({**state_dict, "base_lrs": known})

    # The names _initial_step and _update_lr are torch's: its SequentialLR calls them.

    def _initial_step(self) -> None:
        self._step_count = 1
        self.base_lrs = []
        self._update_lr(None if self.last_epoch == -1 else self.last_epoch + 1)

    def _update_lr(self, epoch: int | None = None) -> None:
        known = len(self.base_lrs)
        self._admit_groups()
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if not self._has_closed_form:
            rates = self.get_lr()
        elif epoch is None:
            self._catch_up(known)
            rates = self.get_lr()
        else:
            rates = [self.closed_form(base, epoch) for base in self.base_lrs]
        for group, lr in zip(self._groups, rates, strict=True):
            set_rate(group, lr)
        self._last_lr = self._rates()

    @property
    def _has_closed_form(self) -> bool:
        return type(self).closed_form is not LRScheduler.closed_form

    def _admit_groups(self) -> None:
        """Let every group that is new to this scheduler join, its own rate as its base."""
        for group in self._groups[len(self.base_lrs) :]:
            self.base_lrs.append(float(group.setdefault("initial_lr", float(group["lr"]))))

    def _catch_up(self, known: int) -> None:
        """Bring groups that joined in mid-run to where they would be from the start."""
        for group, base in zip(self._groups[known:], self.base_lrs[known:], strict=True):
            before = self._before(base, self.last_epoch)
            if base:
                set_rate(group, before if _holds(group, base) else group["lr"] * before / base)

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self._groups]


def require_count(name: str, value: int, least: int = 0) -> int:
    """Return ``value`` if it is an int of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be an int >= {least} (got {value!r})")
    return value


def _kind(value: object) -> type:
    """Return the type of a value, one for all numbers."""
    return float if type(value) is int else type(value)


def _as_float(value: Any) -> Any:
    """Turn an int or a tensor of one element into a float; leave anything else to be refused."""
    number = isinstance(value, int) or (isinstance(value, Tensor) and value.numel() == 1)
    return float(value) if number else value


def set_rate(group: dict[str, Any], lr: float) -> None:
    """Write a group's rate where it stands."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)  # in place: a compiled step holds this tensor
    else:
        group["lr"] = lr


def _holds(group: dict[str, Any], lr: float) -> bool:
    """Tell whether the group's rate is this one, as far as a tensor's precision can."""
    held = group["lr"]
    return bool(held == (held.new_tensor(lr) if isinstance(held, Tensor) else lr))


def _note_step(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    optimizer._opt_called = True  # type: ignore[attr-defined]
