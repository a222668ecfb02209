"""LRScheduler: walks the groups, keeps the few things that a function of time cannot know."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from optimplug._core.arguments import are_floats, owner_of, require_count, warn
from optimplug._core.lr_scheduler import state as states
from optimplug._core.lr_scheduler.forgotten import forget_watch, is_beyond_epochs, watch
from optimplug._core.lr_scheduler.groups import (
    holds,
    kept_on_error,
    momentum_of,
    own_rate,
    set_momentum,
    set_rate,
    unshare,
)
from optimplug._core.lr_scheduler.internals import (
    calls_by_accelerate,
    note_steps,
    torchs_warning,
)
from optimplug.errors import StateError

__all__ = ["LRScheduler"]


class LRScheduler(torch.optim.lr_scheduler.LRScheduler):
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

    # In torch's class these lists may hold tensors; here they hold floats alone.
    base_lrs: list[float]  # type: ignore[assignment]
    _last_lr: list[float]  # type: ignore[assignment]

    # What is not state: the groups' owner, and what a subclass is built from.
    _not_saved: tuple[str, ...] = (
        "optimizer", "verbose", "_is_initial", "_get_lr_called_within_step",
    )  # fmt: skip
    # The functions among the arguments, one or a list. Of an object its attributes are state.
    _functions: tuple[str, ...] = ()
    # Lists with an entry for each group. The last one serves groups that join later.
    _per_group: tuple[str, ...] = ()
    # What a scaled rate does not go below.
    eta_min: float = 0.0
    # What the argument mode may be.
    _modes: tuple[str, ...] = ()
    # Whether there is a plateau in it.
    _takes_metric: bool = False
    # Whether base_lrs are the groups' own rates, and not arguments.
    _own_bases: ClassVar[bool] = True
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

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of every group, in the optimizer's order, as last set."""
        # A subclass with a step of its own may not note what it sets.
        return list(self.__dict__.get("_last_lr") or self._floats())

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

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _floats(self) -> list[float]:
        return [float(group["lr"]) for group in self._groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as copies: primitives, and lists of them.

        ``_last_lr`` in it is what this scheduler has set last, ``_held_lr`` what the groups hold
        now, whoever has set it. Plain functions are not saved, of an object that can be called its
        attributes are.
        """
        own = {k: v for k, v in self.__dict__.items() if k not in self._not_saved}
        own |= {name: states.function_state(getattr(self, name)) for name in self._functions}
        to_come = [None] * (len(self._groups) - len(self.base_lrs))  # they join at the next step
        cycled = [momentum_of(group) for group in self._groups if "initial_momentum" in group]
        own |= {"_class": type(self).__name__, "_last_momentum": cycled}
        held, last = self._floats(), self.get_last_lr()
        own |= {"base_lrs": self.base_lrs + to_come, "_held_lr": held}
        return copy.deepcopy({**own, "_last_lr": last + held[len(last) :]})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the schedule and the optimizer's rates; the argument is left as it is.

        Raises:
            StateError: the state is of another class or another number of groups, or of functions
                where here are objects. Nothing has changed then.
        """
        state = self._completed(state_dict)
        self._check_state(state)
        self._restore(copy.deepcopy(state))
        unshare(self.optimizer)
        for group, base in zip(self._groups, self.base_lrs, strict=False):
            group["initial_lr"] = base if self._own_bases else own_rate(group)
        for group, lr in zip(self._groups, state["_held_lr"], strict=True):
            set_rate(group, lr)
        for group, momentum in zip(self._groups, state["_last_momentum"], strict=False):
            set_momentum(group, momentum)

    def _completed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state, torch's included, with the keys and number types that it has here."""
        return states.completed(state_dict, self.state_dict(), self._per_group)

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Raise a StateError unless the state fits."""
        states.check_state(state_dict, self.state_dict(), self._per_group, self._functions)
        if self._modes and state_dict["mode"] not in (*self._modes, self.__dict__["mode"]):
            raise StateError(f"mode must be one of {self._modes} (got {state_dict['mode']!r})")
        states.check_momentums(state_dict["_last_momentum"], self._groups)
        for name in self._functions:
            states.check_functions(name, getattr(self, name), state_dict[name])

    def _restore(self, state_dict: dict[str, Any]) -> None:
        apart = {"_class", "_last_momentum", "_held_lr", *({"_last_lr"} - self.__dict__.keys())}
        own = {k: v for k, v in state_dict.items() if k not in apart}
        for name in self._functions:
            states.load_functions(getattr(self, name), own.pop(name))
        known = [base for base in own["base_lrs"] if base is not None]
        self.__dict__.update({**own, "base_lrs": known})
