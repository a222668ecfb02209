"""LRScheduler: walks the groups, keeps the few things that a function of time cannot know."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import torch

from optimplug._core.arguments import are_floats, owner_of, require_count, warn
from optimplug._core.lr_scheduler.forgotten import forget_watch, is_beyond_epochs, watch
from optimplug._core.lr_scheduler.groups import (
    holds,
    kept_on_error,
    own_rate,
    set_rate,
    unshare,
)
from optimplug._core.lr_scheduler.internals import (
    calls_by_accelerate,
    note_steps,
    torchs_warning,
)
from optimplug._core.lr_scheduler.saved import SavedScheduler

__all__ = ["LRScheduler"]


class LRScheduler(SavedScheduler):
    r"""Base class of the schedulers: a closed form :math:`\eta(t)`, applied to every group.

    A subclass gives :meth:`closed_form`, and :meth:`chained` where the change from one step to the
    next is not a ratio. While nobody else changes a group's rate, it follows the closed form
    exactly; where another scheduler (or the user) does, the change from step to step is applied to
    what is there, so several schedulers can act on the same groups. A subclass in torch's style
    works as well, with ``get_lr``, ``_get_closed_form_lr``, or a ``step`` of its own.

    Args:
        optimizer: its groups' ``lr`` is what the schedule sets. A group's ``initial_lr`` is its
            base; it is filled in from ``lr`` where it is missing, also for a group added later.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        TypeError: ``optimizer`` is not an Optimizer.
        ArgumentError: ``last_epoch`` is not an int >= -1.
    """

    # What a scaled rate does not go below.
    eta_min: float = 0.0
    # Whether there is a plateau in it.
    _takes_metric: bool = False
    # Whether a group that joins in mid-run is scaled by the schedule so far.
    _catches_up: ClassVar[bool] = False
    # The attribute that says in how many steps it does what it does.
    _length: ClassVar[str] = ""

    # No part of what a scheduler is, so not in __dict__: how far a round of accelerate's has come.
    __slots__ = ("_turn",)

    def __init__(
        self, optimizer: torch.optim.Optimizer, last_epoch: int = -1, verbose: bool = False
    ) -> None:
        self.optimizer = owner_of(optimizer)
        self.last_epoch = require_count("last_epoch", last_epoch, least=-1)
        self.verbose = verbose
        self._turn = 0
        note_steps(self.optimizer)
        with kept_on_error(self._groups):
            self._initial_step()
        watch(self)

    def closed_form(self, base_lr: float, t: int) -> float:
        """Return the rate at step ``t`` (from 0) of a group whose own rate is ``base_lr``."""
        raise NotImplementedError(f"{type(self).__name__} has no closed form for a single rate")

    def rates(self, t: int) -> list[float]:
        """Return the closed form of every group at step ``t``, in the optimizer's order."""
        return [self.closed_form(base, t) for base in self.base_lrs]

    def chained(self, held: list[float], before: list[float], after: list[float]) -> list[float]:
        """Return what becomes of the rates where somebody else has set some of them.

        The height of such a rate above ``eta_min`` is scaled by as much as its own would have been;
        where nothing was left of that, it grows anew.

        Args:
            held: the rates that are there.
            before: what this schedule alone would have left there.
            after: what it would make of that.
        """
        least = self.eta_min
        return [
            new if lr == old
            else lr + (new - old) if old == least
            else least + (lr - least) * ((new - least) / (old - least))
            for lr, old, new in zip(held, before, after, strict=True)
        ]  # fmt: skip

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of every group at ``last_epoch``, from what the groups hold now."""
        if not self._get_lr_called_within_step:
            warn(torchs_warning("get_lr"), frames=2)
        return self._follow([group["lr"] for group in self._groups])

    def _follow(self, held: list[Any]) -> list[float]:
        """Return the rates at ``last_epoch``, from what each group holds since the step before."""
        before, after = self._before(self.last_epoch), self.rates(self.last_epoch)
        if held == before:
            return after
        if not are_floats(held):
            held = [old if holds(x, old) else float(x) for x, old in zip(held, before, strict=True)]
        return self.chained(held, before, after)

    def _before(self, t: int) -> list[float]:
        """Return what this schedule alone left in the groups before step ``t``."""
        return self.rates(t - 1) if t > 0 else self.base_lrs

    def print_lr(self, group: int | None = None) -> None:
        """Print the current rate of every group, or of the one with this index."""
        for i, lr in enumerate(self._floats()):
            if group in (None, i):
                at = f"Epoch {self.last_epoch:05}: adjusting learning rate"
                sys.stdout.write(f"{at} of group {i} to {lr:.4e}.\n")

    def step(self, epoch: int | None = None) -> None:
        """Advance by one update; with ``epoch`` (deprecated in torch), jump to that step.

        Raises:
            ArgumentError: ``epoch`` is not an int >= 0. Nothing has changed then.
        """
        self._step(None, epoch)

    def _step(self, metrics: Any, epoch: Any) -> None:
        if self._is_initial:
            self._step_count += 1
            self._update_lr(None if self.last_epoch == -1 else self.last_epoch + 1)
            return
        # accelerate's wrapper calls once for each process: the first call is that of the update.
        calls = calls_by_accelerate(self)
        if calls > 1 and self._turn:
            self._turn = (self._turn + 1) % calls
            return
        if epoch is None:
            self._check_next(metrics)
        else:
            epoch = require_count("epoch", epoch)
            self._check_jump(epoch)
        self._turn = 1 if calls > 1 else 0
        self._check_order()
        if epoch is not None:
            warn(torchs_warning("epoch"))
        self._step_count += 1
        self._advance(metrics) if epoch is None else self._jump(epoch)

    def _check_order(self) -> None:
        """Warn, as torch does, if the optimizer has not been stepped before the first step."""
        noted = forget_watch(self.optimizer)
        # Of an optimizer that a run has left as it was, nothing is known.
        if self._step_count != 1 or noted is None:
            return
        if noted.replaced:
            warn(torchs_warning("replaced"), frames=4)
        elif not noted.happened:
            warn(torchs_warning("order"), frames=4)

    def _check_next(self, metrics: Any) -> None:
        """Raise if the next step cannot be done with this metric; nothing has changed then."""

    def _check_jump(self, t: int) -> None:
        """Raise if step ``t`` cannot be jumped to; nothing has changed then."""

    def _advance(self, metrics: Any = None) -> None:
        """Take one step from what the groups hold; from before the first, begin anew."""
        known = self._admit_groups()
        self.last_epoch += 1
        if self._catches_up and 0 < known < len(self.base_lrs) and self.last_epoch > 0:
            self._catch_up(known)
        held = [group["lr"] for group in self._groups]
        self._write(self._given() if self._gives_lr else self._follow(held), held)

    def _jump(self, t: int) -> None:
        """Go to where this schedule alone has the groups at step ``t``."""
        self._admit_groups()
        self.last_epoch = t
        form = getattr(self, "_get_closed_form_lr", None)
        if form is not None:
            rates = list(map(float, form()))
        else:
            rates = self.rates(t) if self._has_form and not self._gives_lr else self._given()
        self._write(rates, [group["lr"] for group in self._groups])

    def _given(self) -> list[float]:
        self._get_lr_called_within_step = True
        try:
            return list(map(float, self.get_lr()))
        finally:
            self._get_lr_called_within_step = False

    # The names _initial_step and _update_lr are torch's: its SequentialLR calls them.

    def _initial_step(self) -> None:
        self._step_count = 0
        unshare(self.optimizer)
        self.base_lrs: list[float] = getattr(self, "base_lrs", [])
        for group in self._groups:
            own_rate(group)
        self._admit_groups()
        self._is_initial = True
        try:
            self._begin()
        finally:
            self._is_initial = False

    def _begin(self) -> None:
        """Take the step that torch's constructors take, with the method that a user calls."""
        self.step()

    def _update_lr(self, epoch: int | None = None) -> None:
        if epoch is None:
            self._advance()
        else:
            self._check_jump(epoch)
            self._jump(epoch)

    def _moves_by(self, updates: int) -> bool:
        """Tell whether the schedule has changed the rates by a tenth, so many steps from now."""
        if not self._has_form:
            return False
        now, then = self.rates(self.last_epoch), self.rates(self.last_epoch + updates)
        return any(abs(b - a) > 0.1 * abs(a) for a, b in zip(now, then, strict=True))

    def _steps_in_it(self) -> float:
        """Return in how many steps it does what it does; 0 where it does not say."""
        return getattr(self, self._length) if self._length else 0

    def _is_forgotten(self, updates: int) -> bool:
        """Tell whether so many updates without a step of this scheduler can only be a slip."""
        return is_beyond_epochs(self._steps_in_it(), updates) and self._moves_by(updates)

    @property
    def _gives_lr(self) -> bool:
        """Whether this is a subclass in torch's style, that gives get_lr."""
        return type(self).get_lr is not LRScheduler.get_lr

    @property
    def _has_form(self) -> bool:
        own, ours = type(self), LRScheduler
        return own.closed_form is not ours.closed_form or own.rates is not ours.rates

    def _write(self, rates: list[float], held: list[Any]) -> None:
        """Set the rate of every group, where ``held`` stands now."""
        if are_floats(held):
            for group, lr in zip(self._groups, rates, strict=True):
                group["lr"] = lr
            self._last_lr = rates
        else:
            for group, lr in zip(self._groups, rates, strict=True):
                set_rate(group, lr)
            self._last_lr = self._floats()
        if self.verbose:
            self.print_lr()

    def _admit_groups(self) -> int:
        """Let every group that is new to this scheduler join; return how many it knew."""
        known, groups = len(self.base_lrs), self._groups
        if known < len(groups):
            unshare(self.optimizer)
            for group in groups[known:]:
                own = own_rate(group)
                self.base_lrs.append(own if self._own_bases else self.base_lrs[-1])
            for values in (getattr(self, n) for n in (*self._per_group, *self._functions)):
                if isinstance(values, list):
                    values += values[-1:] * (len(groups) - len(values))
        return known

    def _catch_up(self, known: int) -> None:
        """Bring groups that joined in mid-run to where they would be from the start."""
        # Where one that sets the rate has come first, it is already where the others' are.
        known = max(known, getattr(self.optimizer, "_overwritten", 0))
        before = self._before(self.last_epoch)
        for i, group in enumerate(self._groups[known:], known):
            base = self.base_lrs[i]
            if base:
                own = holds(group["lr"], base)
                set_rate(group, before[i] if own else group["lr"] * before[i] / base)
