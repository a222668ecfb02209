"""A scheduler of torch's, or in torch's style, inside one of ours that is made of schedulers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import LRScheduler as TorchScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchPlateau

from optimplug._core.lr_scheduler.groups import reset
from optimplug._core.lr_scheduler.internals import children_of, first_step
from optimplug._core.lr_scheduler.plateau import read_metric
from optimplug.errors import StateError

__all__ = ["TorchLR"]


class TorchLR:
    """Drives a scheduler that knows ``step`` alone, as :class:`CompositeLR` drives ours.

    It goes from step to step, so a jump is the whole way from the group's own rate.

    Args:
        scheduler: the scheduler.
    """

    def __init__(self, scheduler: TorchScheduler) -> None:
        self._scheduler: Any = scheduler
        self._takes_metric = isinstance(scheduler, TorchPlateau)
        self._anew = False

    @property
    def last_epoch(self) -> int:
        """The step that it has come to; -1 lets it begin anew with the next."""
        return int(getattr(self._scheduler, "last_epoch", 0))

    @last_epoch.setter
    def last_epoch(self, t: int) -> None:
        self._anew = t == -1

    def get_last_lr(self) -> list[float]:
        """Return the rate of every group, as the groups hold it."""
        return [float(group["lr"]) for group in self._scheduler.optimizer.param_groups]

    def closed_form(self, base_lr: float, t: int) -> float:
        """Raise: there is none that could be asked for without a step."""
        name = type(self._scheduler).__name__
        raise NotImplementedError(
            f"{name} has no closed form here: of schedulers that are not optimplug's, nothing but "
            "step() is known; put one of optimplug.optim.lr_scheduler in its place"
        )

    def _steps_in_it(self) -> float:
        return 0

    def _moves_by(self, updates: int) -> bool:
        return False

    def _check_next(self, metrics: Any) -> None:
        if self._takes_metric:
            read_metric(metrics)

    def _check_jump(self, t: int) -> None:
        """Any step can be jumped to."""

    def _advance(self, metrics: Any = None) -> None:
        anew, self._anew = self._anew, False
        if anew:
            self._begin(self._scheduler)
        elif self._takes_metric:
            self._scheduler.step(metrics)
        else:
            self._scheduler.step()

    def _jump(self, t: int) -> None:
        for group in self._scheduler.optimizer.param_groups:
            reset(group)
        self._anew = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps before the optimizer's: these are not taken
            for _ in range(1 if self._takes_metric else t + 1):
                self._advance()

    def _begin(self, scheduler: Any) -> None:
        """Let it take its first step once more, as torch's own SequentialLR does."""
        children = children_of(scheduler)
        if isinstance(scheduler, TorchPlateau):
            scheduler._reset()
            scheduler.last_epoch = 0
        elif not children:
            first_step(scheduler)
        elif hasattr(scheduler, "_milestones"):
            scheduler.last_epoch = 0
            self._begin(children[0])
        else:
            for child in children:
                self._begin(child)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of its state."""
        return copy.deepcopy(self._scheduler.state_dict())

    def _completed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        return dict(state_dict)

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        own, name = self.state_dict(), type(self._scheduler).__name__
        if own.keys() != state_dict.keys():
            raise StateError(
                f"this state is not of a {name}: missing {sorted(own.keys() - state_dict.keys())}, "
                f"unexpected {sorted(map(str, state_dict.keys() - own.keys()))}"
            )

    def _restore(self, state_dict: dict[str, Any]) -> None:
        self._scheduler.load_state_dict(state_dict)
