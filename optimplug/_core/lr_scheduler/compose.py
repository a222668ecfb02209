"""Schedulers made of schedulers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optimplug._core.lr_scheduler.base import LRScheduler, require_count, set_rate
from optimplug.errors import ArgumentError, StateError

__all__ = ["SequentialLR", "phase_at"]


def phase_at(t: int, milestones: Sequence[int]) -> tuple[int, int]:
    """Return which phase step ``t`` is in, and the step within it.

    Phase ``i`` starts at ``milestones[i - 1]``; the first one at 0.

    Example:
        >>> [phase_at(t, [2, 3]) for t in range(5)]
        [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    """
    i = bisect_right(milestones, t)
    return i, t - (milestones[i - 1] if i else 0)


class SequentialLR(LRScheduler):
    r"""Run schedulers one after the other; each starts anew from the group's own rate.

    .. math:: \eta(t) = \eta_i(t - m_i) \quad \text{for } m_i \le t < m_{i+1}

    with :math:`m_0 = 0` and the other :math:`m_i` = ``milestones``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        schedulers: schedulers of this package on the same optimizer. In which order they were built
            makes no difference.
        milestones: the step at which each scheduler but the first takes over, ascending.
        last_epoch: number of steps already taken, minus one; -1 starts anew.

    Raises:
        ArgumentError: no schedulers, milestones that do not fit them, or another optimizer's.

    Example:
        >>> from optimplug.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> warmup = LinearLR(optimizer, start_factor=0.5, total_iters=2)
        >>> decay = CosineAnnealingLR(optimizer, T_max=2)
        >>> scheduler = SequentialLR(optimizer, [warmup, decay], milestones=[2])
        >>> for _ in range(5):
        ...     optimizer.step()
        ...     print(scheduler.get_last_lr()[0])
        ...     scheduler.step()
        0.5
        0.75
        1.0
        0.5
        0.0
    """

    _not_saved = ("optimizer", "_schedulers")

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        _check(optimizer, schedulers, milestones)
        self._schedulers = list(schedulers)
        self._milestones = list(milestones)
        # Each child has set the rates as it was built; this schedule starts from the bases.
        for group in schedulers[0]._groups:
            set_rate(group, group["initial_lr"])
        super().__init__(optimizer, last_epoch)

    def closed_form(self, base_lr: float, t: int) -> float:
        i, within = phase_at(t, self._milestones)
        return self._schedulers[i].closed_form(base_lr, within)

    def _update_lr(self, epoch: int | None = None) -> None:
        self._admit_groups()
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        i, within = phase_at(self.last_epoch, self._milestones)
        self._schedulers[i]._update_lr(None if epoch is None and within > 0 else within)
        self._last_lr = self._rates()

    def state_dict(self) -> dict[str, Any]:
        children = [child.state_dict() for child in self._schedulers]
        return {**super().state_dict(), "_schedulers": children}

    def _completed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        state = super()._completed(state_dict)
        given = state.get("_schedulers")
        if not isinstance(given, list) or not all(isinstance(s, Mapping) for s in given):
            raise StateError(f"_schedulers must be a list of states (got {given!r})")
        children = [c._completed(s) for c, s in zip(self._schedulers, given, strict=False)]
        state["_schedulers"] = [*children, *given[len(children) :]]
        if children and "last_epoch" in state:  # torch's sequence leaves these two out
            state.setdefault("base_lrs", children[0].get("base_lrs", []))
            state.setdefault("_step_count", state["last_epoch"] + 1)
        return state

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        super()._check_state(state_dict)
        if len(state_dict["_schedulers"]) != len(self._schedulers):
            raise StateError(
                f"the state holds a sequence of {len(state_dict['_schedulers'])} schedulers, "
                f"but this one has {len(self._schedulers)}"
            )
        if len(state_dict["_milestones"]) != len(self._milestones):
            raise StateError(
                f"_milestones must be {len(self._milestones)} (got {state_dict['_milestones']})"
            )
        for child, state in zip(self._schedulers, state_dict["_schedulers"], strict=True):
            child._check_state(state)

    def _restore(self, state_dict: dict[str, Any]) -> None:
        for child, state in zip(self._schedulers, state_dict.pop("_schedulers"), strict=True):
            child._restore(state)
        super()._restore(state_dict)


def _check(
    optimizer: torch.optim.Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]
) -> None:
    if len(schedulers) == 0:
        raise ArgumentError("schedulers must hold at least one scheduler (got none)")
    if len(milestones) != len(schedulers) - 1:
        raise ArgumentError(
            f"milestones must be one fewer than schedulers "
            f"(got {len(milestones)} milestones for {len(schedulers)} schedulers)"
        )
    for milestone in milestones:
        require_count("each of milestones", milestone)
    if list(milestones) != sorted(milestones):
        raise ArgumentError(f"milestones must ascend (got {list(milestones)})")
    owner = getattr(optimizer, "optimizer", optimizer)
    for i, scheduler in enumerate(schedulers):
        if not isinstance(scheduler, LRScheduler):
            raise ArgumentError(
                f"schedulers[{i}] must be a scheduler of optimplug.optim.lr_scheduler "
                f"(got {type(scheduler).__module__}.{type(scheduler).__name__})"
            )
        if scheduler.optimizer is not owner:
            raise ArgumentError(f"schedulers[{i}] must belong to the same optimizer as the others")
