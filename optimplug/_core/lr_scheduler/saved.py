"""What of a scheduler is saved, and what loading it does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from torch.optim.lr_scheduler import LRScheduler as TorchScheduler

from optimplug._core.lr_scheduler import state as states
from optimplug._core.lr_scheduler.groups import (
    momentum_of,
    own_rate,
    set_momentum,
    set_rate,
    unshare,
)
from optimplug.errors import StateError

__all__ = ["SavedScheduler"]


class SavedScheduler(TorchScheduler):
    """A scheduler whose state brings the rates of its groups with it."""

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
    # What the argument mode may be.
    _modes: tuple[str, ...] = ()
    # Whether base_lrs are the groups' own rates, and not arguments.
    _own_bases: ClassVar[bool] = True

    __slots__ = ()

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of every group, in the optimizer's order, as last set."""
        # A subclass with a step of its own may not note what it sets.
        return list(self.__dict__.get("_last_lr") or self._floats())

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _floats(self) -> list[float]:
        return [float(group["lr"]) for group in self._groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as copies: primitives, and lists of them.

        ``_last_lr`` in it is what this scheduler has set last, ``_held_lr`` what the groups hold
        now, whoever has set it, and ``_last_momentum`` for each group its momentum, None where no
        scheduler moves it. Plain functions are not saved, of an object that can be called its
        attributes are.
        """
        own = {k: v for k, v in self.__dict__.items() if k not in self._not_saved}
        own |= {name: states.function_state(getattr(self, name)) for name in self._functions}
        to_come = [None] * (len(self._groups) - len(self.base_lrs))  # they join at the next step
        cycled = [momentum_of(g) if "initial_momentum" in g else None for g in self._groups]
        own |= {"_class": type(self).__name__, "_last_momentum": cycled}
        held, last = self._floats(), self.get_last_lr()
        own |= {"base_lrs": self.base_lrs + to_come, "_held_lr": held}
        return self._copied({**own, "_last_lr": last + held[len(last) :]})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the schedule and the optimizer's rates; the argument is left as it is.

        Raises:
            StateError: the state is of another class or another number of groups, or of functions
                where here are objects. Nothing has changed then.
        """
        state = self._completed(state_dict)
        self._check_state(state)
        self._restore(self._copied(state))
        unshare(self.optimizer)
        for group, base in zip(self._groups, self.base_lrs, strict=False):
            group["initial_lr"] = base if self._own_bases else own_rate(group)
        for group, lr in zip(self._groups, state["_held_lr"], strict=True):
            set_rate(group, lr)
        momentums = states.momentums_by_group(state["_last_momentum"], self._groups)
        for group, momentum in zip(self._groups, momentums, strict=True):
            if momentum is not None:
                set_momentum(group, momentum)

    def _completed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state, torch's included, with the keys and number types that it has here."""
        return states.completed(state_dict, self.state_dict(), self._per_group)

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Raise a StateError unless the state fits."""
        foreign = not type(self).__module__.startswith("optimplug.")
        own = self.state_dict()
        states.check_state(state_dict, own, self._per_group, self._functions, foreign)
        if self._modes and state_dict["mode"] not in (*self._modes, self.__dict__["mode"]):
            raise StateError(f"mode must be one of {self._modes} (got {state_dict['mode']!r})")
        states.momentums_by_group(state_dict["_last_momentum"], self._groups)
        for name in self._functions:
            states.check_functions(name, getattr(self, name), state_dict[name])

    def _restore(self, state_dict: dict[str, Any]) -> None:
        apart = {"_class", "_last_momentum", "_held_lr", *({"_last_lr"} - self.__dict__.keys())}
        own = {k: v for k, v in state_dict.items() if k not in apart}
        for name in self._functions:
            states.load_functions(getattr(self, name), own.pop(name))
        known = [base for base in own["base_lrs"] if base is not None]
        self.__dict__.update({**own, "base_lrs": known})

    def _copied(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a copy; a scheduler that a subclass holds goes on acting on the same optimizer."""
        return copy.deepcopy(state, {id(self.optimizer): self.optimizer})
