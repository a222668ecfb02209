"""Schedulers made of schedulers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler

from optimplug._core.arguments import owner_of, require_ascending
from optimplug._core.lr_scheduler.base import LRScheduler
from optimplug._core.lr_scheduler.foreign import TorchLR
from optimplug._core.lr_scheduler.groups import own_rate, reset, set_rate, unshare
from optimplug.errors import ArgumentError, StateError

__all__ = ["ChainedScheduler", "CompositeLR", "SequentialLR", "phase_at"]


def phase_at(t: int, milestones: Sequence[int]) -> tuple[int, int]:
    """Return which phase step ``t`` is in, and the step within it.

    Phase ``i`` starts at ``milestones[i - 1]``; the first one at 0.

    Example:
        >>> [phase_at(t, [2, 3]) for t in range(5)]
        [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    """
    i = bisect_right(milestones, t)
    return i, t - (milestones[i - 1] if i else 0)


class CompositeLR(LRScheduler):
    """What schedulers made of schedulers share: passing metrics on, and one state for all."""

    _not_saved = (*LRScheduler._not_saved, "_schedulers", "_children")
    _schedulers: list[Any]

    def _take(self, schedulers: Iterable[Any], owner: Optimizer | None) -> Optimizer:
        """Take schedulers that can act on one optimizer, this or the first's; return it."""
        self._schedulers = list(schedulers)
        owner = _owner_of_all(self._schedulers, owner)
        # What drives them: ours drive themselves.
        self._children = [s if isinstance(s, LRScheduler) else TorchLR(s) for s in self._schedulers]
        return owner

    def step(self, metrics: Any = None, epoch: int | None = None) -> None:  # type: ignore[override]
        """Advance by one update; a plateau that is active in it takes the metric.

        Args:
            metrics: a number; needed while a plateau is active, and not looked at otherwise.
            epoch: deprecated in torch; jump to that step.

        Raises:
            ArgumentError: a metric is missing, or there is no plateau in it that ever takes one.
                Nothing has changed then.
        """
        if metrics is not None and not self._takes_metric:
            raise ArgumentError(
                f"metrics must be left out: no plateau takes them (got {metrics!r})"
            )
        self._step(metrics, epoch)

    @property
    def _takes_metric(self) -> bool:  # type: ignore[override]
        return any(child._takes_metric for child in self._children)

    def _initial_step(self) -> None:
        unshare(self.optimizer)
        for group in self._groups:  # each child has set them as it was built
            reset(group)
        super()._initial_step()

    def _arrive(self, t: int, last: LRScheduler | TorchLR) -> None:
        """Note where the children have come to."""
        self.last_epoch, self._last_lr = t, last.get_last_lr()
        if self.verbose:
            self.print_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as copies, with a state for each of the schedulers."""
        children = [child.state_dict() for child in self._children]
        return {**super().state_dict(), "_schedulers": children}

    def _completed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        state = super()._completed(state_dict)
        given = state.get("_schedulers")
        if not isinstance(given, list) or not all(isinstance(s, Mapping) for s in given):
            raise StateError(f"_schedulers must be a list of states (got {given!r})")
        children = [c._completed(s) for c, s in zip(self._children, given, strict=False)]
        state["_schedulers"] = [*children, *given[len(children) :]]
        if "_class" not in state_dict and children:  # torch's leaves out what its children know
            state.setdefault("last_epoch", children[0].get("last_epoch"))
        return state

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        children = state_dict["_schedulers"]
        # Each of them judges its own; here they are alike.
        super()._check_state({**state_dict, "_schedulers": []})
        for key in sorted({"_schedulers", "_milestones"} & self.__dict__.keys(), reverse=True):
            held, own = len(state_dict[key]), len(getattr(self, key))
            if held != own:
                raise StateError(f"{key}: state holds {held} {key[1:]}, but this one has {own}")
        for child, state in zip(self._children, children, strict=True):
            child._check_state(state)

    def _restore(self, state_dict: dict[str, Any]) -> None:
        for child, state in zip(self._children, state_dict.pop("_schedulers"), strict=True):
            child._restore(state)
        super()._restore(state_dict)


class SequentialLR(CompositeLR):
    r"""Run schedulers one after the other; each starts anew from the group's own rate.

    .. math:: \eta(t) = \eta_i(t - m_i) \quad \text{for } m_i \le t < m_{i+1}

    with :math:`m_0 = 0` and the other :math:`m_i` = ``milestones``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        schedulers: schedulers on the same optimizer, of this package or torch's. In which order
            they were built makes no difference.
        milestones: the step at which each scheduler but the first takes over, ascending.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: no schedulers, milestones that do not fit them, or another optimizer's.

    Example:
        >>> import torch
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

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self._take(schedulers, owner_of(optimizer))
        self._milestones = require_ascending("milestones", milestones)
        if len(self._milestones) != len(self._schedulers) - 1:
            raise ArgumentError(f"milestones must be one fewer than schedulers (got {milestones})")
        super().__init__(optimizer, last_epoch, verbose)

    def closed_form(self, base_lr: float, t: int) -> float:
        """Return the rate at step ``t`` (from 0) of a group whose own rate is ``base_lr``."""
        i, within = phase_at(t, self._milestones)
        return self._children[i].closed_form(base_lr, within)

    def _steps_in_it(self) -> float:
        return (0, *self._milestones)[-1] + self._children[-1]._steps_in_it()

    def _moves_by(self, updates: int) -> bool:
        i, within = phase_at(self.last_epoch + updates, self._milestones)
        return self._children[i]._moves_by(within)

    def _check_next(self, metrics: Any) -> None:
        i, within = phase_at(self.last_epoch + 1, self._milestones)
        if within > 0:
            self._children[i]._check_next(metrics)

    def _check_jump(self, t: int) -> None:
        i, within = phase_at(t, self._milestones)
        self._children[i]._check_jump(within)

    def _advance(self, metrics: Any = None) -> None:
        t = self.last_epoch + 1
        i, within = phase_at(t, self._milestones)
        if i > 0 and within == 0:
            self._jump(t)
            return
        self._admit_groups()
        child = self._children[i]
        if within == 0:
            child.last_epoch = -1  # the first begins on what others have made of the rates
        child._advance(metrics)
        self._arrive(t, child)

    def _jump(self, t: int) -> None:
        self._admit_groups()
        i, within = phase_at(t, self._milestones)
        self._children[i]._jump(within)
        self._arrive(t, self._children[i])


class ChainedScheduler(CompositeLR):
    r"""Let schedulers act together on the same groups: each on what those before it have made.

    .. math:: \eta(t) = \eta_0 \prod_i f_i(t)

    with :math:`\eta_0` the group's own rate, for schedulers that each scale it by a factor
    :math:`f_i`. One that sets the rate (:class:`LambdaLR`, :class:`CosineAnnealingWarmRestarts`,
    :class:`CyclicLR`, :class:`OneCycleLR`) overwrites what those before it have made, as in torch.

    Args:
        schedulers: schedulers on one optimizer, of this package or torch's, in the order in which
            they act. In which order they were built makes no difference. If some of them have taken
            steps already, all are taken to the step of the furthest.
        optimizer: their optimizer; left out, that of the first.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: no schedulers, or another optimizer's.

    Example:
        >>> import torch
        >>> from optimplug.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> constant = ConstantLR(optimizer, factor=0.1, total_iters=2)
        >>> decay = ExponentialLR(optimizer, gamma=0.9)
        >>> scheduler = ChainedScheduler([constant, decay])
        >>> for _ in range(4):
        ...     optimizer.step()
        ...     print(round(scheduler.get_last_lr()[0], 4))
        ...     scheduler.step()
        0.1
        0.09
        0.81
        0.729
    """

    def __init__(
        self,
        schedulers: Sequence[LRScheduler],
        optimizer: Optimizer | None = None,
        verbose: bool = False,
    ) -> None:
        owner = self._take(schedulers, None if optimizer is None else owner_of(optimizer))
        taken = max(child.last_epoch for child in self._children)
        super().__init__(owner, taken - 1 if taken > 0 else -1, verbose)

    def _check_next(self, metrics: Any) -> None:
        for child in self._children:
            child._check_next(metrics)

    def _steps_in_it(self) -> float:
        return max(child._steps_in_it() for child in self._children)

    def _moves_by(self, updates: int) -> bool:
        return any(child._moves_by(updates) for child in self._children)

    def _check_jump(self, t: int) -> None:
        for child in self._children:
            child._check_jump(t)

    def _advance(self, metrics: Any = None) -> None:
        self._admit_groups()
        for child in self._children:
            if self.last_epoch == -1:
                child.last_epoch = -1
            child._advance(metrics)
        self._arrive(self.last_epoch + 1, self._children[-1])

    def _jump(self, t: int) -> None:
        self._admit_groups()
        # What they make of the rates together has no closed form: they go the whole way again.
        for group in self._groups:
            set_rate(group, own_rate(group))
        self.last_epoch = -1
        for _ in range(t + 1):
            self._advance()


def _owner_of_all(schedulers: list[Any], owner: Optimizer | None) -> Optimizer:
    """Return the optimizer that all of them act on: this, or the first's."""
    for i, child in enumerate(schedulers):
        if not isinstance(child, TorchScheduler):
            raise ArgumentError(f"schedulers[{i}] must be a scheduler (got {child!r})")
        own = owner_of(child.optimizer)
        owner = own if owner is None else owner
        if own is not owner:
            raise ArgumentError(f"schedulers[{i}] must belong to the same optimizer as the others")
    if owner is None or not schedulers:
        raise ArgumentError("schedulers must hold at least one scheduler (got none)")
    return owner
