"""A scheduler in the Trainer's hands that steps another one when it is time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from optimplug._core.arguments import owner_of
from optimplug.callbacks.step_interval import StepInterval
from optimplug.errors import ArgumentError, StateError

__all__ = ["Factory", "IntervalScheduler"]

Factory = Callable[[torch.optim.Optimizer], LRScheduler]


class IntervalScheduler(LRScheduler):
    """Takes the steps that a trainer makes once per update, and steps a scheduler when it is time.

    It is deliberately no ``ReduceLROnPlateau`` where the scheduler is one: a trainer would step it
    in its own way. Its state is the scheduler's, and what has been counted.

    Args:
        scheduler: the scheduler; or a function that builds it, given the optimizer.
        step_interval: when it is stepped, and with which metric.

    Raises:
        ArgumentError: the scheduler cannot be stepped so.
    """

    def __init__(self, scheduler: LRScheduler | Factory, step_interval: StepInterval) -> None:
        # Not torch's: that takes a first step, and this one has no rates of its own.
        self._step_interval = step_interval
        self._count = 0
        self._factory: Factory | None = None
        self._scheduler: LRScheduler | None = None
        self._waiting: Mapping[str, Any] | None = None
        if isinstance(scheduler, LRScheduler) or not callable(scheduler):
            self._take(scheduler)
        else:
            self._factory = scheduler

    def _take(self, scheduler: Any) -> None:
        self._step_interval.check(scheduler)
        self._scheduler, self.optimizer = scheduler, scheduler.optimizer

    def bind(self, optimizer: torch.optim.Optimizer) -> None:
        """Build the scheduler if that is still to be done, with the state that waits for it.

        Args:
            optimizer: the one that is trained; a wrapper of it is looked through.

        Raises:
            ArgumentError: the scheduler acts on another optimizer, or cannot be stepped so.
        """
        owner = owner_of(optimizer)
        if self._scheduler is None and self._factory is not None:
            self._build(self._factory, owner)
        if owner_of(self.optimizer) is not owner:
            raise ArgumentError(
                "the scheduler must act on the optimizer that the trainer trains, but it was built "
                "with another one; give the trainer that one, or build a scheduler for this one"
            )

    def _build(self, factory: Factory, owner: torch.optim.Optimizer) -> None:
        if self._waiting is None:
            self._take(factory(owner))
            return
        # The optimizer's state has been loaded: a scheduler is built on what was there before it.
        loaded = [_settings(group) for group in owner.param_groups]
        for group in owner.param_groups:
            group["lr"] = group.pop("initial_lr", group["lr"])
        self._take(factory(owner))
        self._load(self._waiting)
        for group, settings in zip(owner.param_groups, loaded, strict=True):
            group.update(settings)
        self._waiting = None

    @property
    def inner(self) -> LRScheduler:
        """The scheduler that is stepped.

        Raises:
            ArgumentError: there is only a function so far, and no optimizer to build it for.
        """
        if self._scheduler is None:
            raise ArgumentError(
                "the scheduler is built as training begins, by the SchedulerCallback that this one "
                "is of: Trainer(..., callbacks=[callback])"
            )
        return self._scheduler

    def step(self, epoch: int | None = None) -> None:
        """Take note of an update; ``epoch`` is not looked at."""
        self.happened("step")

    def happened(self, interval: str, metrics: Mapping[str, Any] | None = None) -> None:
        """Take note of an update, of the end of an epoch or of a validation.

        Args:
            interval: which of them; only what the scheduler goes by is counted.
            metrics: those of a validation, by name.

        Raises:
            ArgumentError: it is time, and the metric is missing. Nothing has changed then.
        """
        if interval != self._step_interval.interval:
            return
        if self._step_interval.due(self._count + 1):
            self._step_interval.step(self.inner, metrics)
        self._count += 1

    def get_last_lr(self) -> list[float]:  # type: ignore[override] # torch's may hold tensors
        """Return the rate of every group, in the optimizer's order, as the optimizer has it."""
        return [float(group["lr"]) for group in self.inner.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, what has been counted, and when it is stepped."""
        state = copy.deepcopy(self.inner.state_dict())
        return {**self._when(), "count": self._count, "scheduler": state}

    def _when(self) -> dict[str, Any]:
        return {
            "interval": self._step_interval.interval,
            "frequency": self._step_interval.frequency,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the scheduler, at once or as soon as it is built; the argument stays as it is.

        Raises:
            StateError: the state is of a scheduler that was stepped otherwise. Nothing has changed
                then.
        """
        if not isinstance(state_dict, Mapping) or not {"count", "scheduler"} <= state_dict.keys():
            raise StateError(
                "the state must be that of a SchedulerCallback's scheduler; it is of one that the "
                "trainer stepped itself"
            )
        for key, own in self._when().items():
            if state_dict.get(key) != own:
                raise StateError(
                    f"the state was saved with {key}={state_dict.get(key)!r}, but here it is "
                    f"{own!r}; give the SchedulerCallback the same as before"
                )
        if self._scheduler is None:
            self._waiting = copy.deepcopy(dict(state_dict))
        else:
            self._load(state_dict)

    def _load(self, state: Mapping[str, Any]) -> None:
        # A copy: some of torch's change what they are given.
        self.inner.load_state_dict(copy.deepcopy(state["scheduler"]))
        self._count = int(state["count"])


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
