"""The scheduler that follows a metric."""

from __future__ import annotations

import math
from typing import Any, Literal, SupportsFloat

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchPlateau

from optimplug._core.arguments import (
    require_count,
    require_number,
    require_one_of,
    require_rates,
    warn,
)
from optimplug._core.lr_scheduler.base import LRScheduler
from optimplug._core.lr_scheduler.forgotten import forget_watch
from optimplug._core.lr_scheduler.groups import own_rate, set_rate
from optimplug._core.lr_scheduler.internals import torchs_warning
from optimplug.errors import ArgumentError

__all__ = ["MetricLR", "ReduceLROnPlateau", "improves", "read_metric"]


def improves(value: float, best: float, mode: str, threshold: float, by: str) -> bool:
    """Tell whether a metric is better than the best so far by more than the threshold.

    Args:
        value: the metric now; NaN improves nothing.
        best: the best so far.
        mode: "min" if lower is better, "max" if higher is.
        threshold: by how much at least.
        by: "rel" for a part of the best, "abs" for a difference.

    Example:
        >>> improves(0.95, 1.0, "min", 0.1, "rel")
        False
        >>> improves(0.85, 1.0, "min", 0.1, "rel")
        True
    """
    sign = -1.0 if mode == "min" else 1.0
    bar = best * (1.0 + sign * threshold) if by == "rel" else best + sign * threshold
    return value < bar if mode == "min" else value > bar


def read_metric(metrics: Any) -> float:
    """Return a metric as a float: a number, or a tensor that holds one."""
    try:
        if not isinstance(metrics, str):
            return float(metrics)
    except (TypeError, ValueError, RuntimeError):  # whatever a float cannot be made of
        pass
    raise ArgumentError(f"metrics must be a number while a plateau is active (got {metrics!r})")


class MetricLR(LRScheduler, TorchPlateau):
    """A schedule that goes by a metric: what it does between is for a subclass to judge."""

    _takes_metric = True

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take a metric, and lower the rates if it is time; ``epoch`` is deprecated in torch.

        Raises:
            ArgumentError: ``metrics`` is no number, or one that is not allowed. Nothing has
                changed then.
        """
        self._check_next(metrics)
        if epoch is not None:
            epoch = require_count("epoch", epoch)
            warn(torchs_warning("epoch"), frames=2)
            self.last_epoch = epoch - 1
        self._step(metrics, None)

    def _begin(self) -> None:  # torch's plateaus take no step as they are built
        self._step_count += 1
        self._update_lr(None)

    def _check_order(self) -> None:
        forget_watch(self.optimizer)  # torch's plateaus look no further at the optimizer's steps

    def _advance(self, metrics: Any = None) -> None:
        self._admit_groups()
        self.last_epoch += 1
        self._reset() if metrics is None else self._judge(read_metric(metrics))  # None as it begins
        self._last_lr = self._floats()

    def _jump(self, t: int) -> None:
        for group in self._groups:
            set_rate(group, own_rate(group))
        self.last_epoch = t - 1
        self._advance()

    def _judge(self, value: float) -> None:
        raise NotImplementedError


class ReduceLROnPlateau(MetricLR):
    r"""Lower the rate when a metric has stopped improving.

    .. math:: \eta \leftarrow \max(f\, \eta, \eta_{min})

    with :math:`f` = ``factor`` and :math:`\eta_{min}` = ``min_lr``, after more than ``patience``
    metrics in a row that are no better than the best so far.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        mode: "min" if a lower metric is better, "max" if a higher one is.
        factor: what the rate is multiplied by, in [0, 1).
        patience: metrics without improvement that are let pass, >= 0.
        threshold: by how much a metric must be better than the best.
        threshold_mode: "rel" if that is a part of the best, "abs" if it is a difference.
        cooldown: metrics after a reduction that do not count as without improvement, >= 0.
        min_lr: the lowest rate, for all groups or a list with one for each.
        eps: the smallest reduction; a smaller one is not made.
        verbose: print every group's rate when it is lowered.
        nan_policy: what a metric of NaN is: "bad", no improvement, as in torch; "ignore", as if
            it had not been given; "raise", an error.

    Raises:
        ArgumentError: a value breaks its rule, or a metric is no number.

    In a :class:`SequentialLR` it begins with the group's own rate, and its first metric is that of
    the step after.

    Example:
        >>> import torch
        >>> from optimplug.optim.lr_scheduler import ReduceLROnPlateau
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        >>> for loss in (0.9, 0.8, 0.8, 0.8, 0.7):
        ...     optimizer.step()
        ...     scheduler.step(loss)
        ...     print(loss, scheduler.get_last_lr()[0])
        0.9 1.0
        0.8 1.0
        0.8 1.0
        0.8 0.5
        0.7 0.5
    """

    _per_group = ("min_lrs",)
    _modes = ("min", "max")

    def __init__(
        self,
        optimizer: Optimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
        verbose: bool = False,
        nan_policy: Literal["bad", "ignore", "raise"] = "bad",
    ) -> None:
        self.mode = require_one_of("mode", mode, self._modes)
        self.factor = require_number("factor", factor, ">= 0 and < 1", lambda f: 0 <= f < 1)
        self.patience = require_count("patience", patience)
        self.threshold = require_number("threshold", threshold)
        self.threshold_mode = require_one_of("threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown = require_count("cooldown", cooldown)
        self.min_lrs = require_rates("min_lr", min_lr, optimizer)
        self.eps = require_number("eps", eps, "a finite number >= 0", lambda e: e >= 0)
        self.nan_policy = require_one_of("nan_policy", nan_policy, ("bad", "ignore", "raise"))
        LRScheduler.__init__(self, optimizer, -1, verbose)

    def _check_next(self, metrics: Any) -> None:
        if math.isnan(read_metric(metrics)) and self.nan_policy == "raise":
            raise ArgumentError("metrics must not be NaN under nan_policy='raise' (got nan)")

    def _reset(self) -> None:
        self.best = self.mode_worse
        self.cooldown_counter = self.num_bad_epochs = 0

    def _judge(self, value: float) -> None:
        if self.nan_policy == "ignore" and math.isnan(value):
            return
        better = self._is_better(value, self.best)
        self.best = value if better else self.best
        self.num_bad_epochs = 0 if better or self.cooldown_counter else self.num_bad_epochs + 1
        self.cooldown_counter = max(0, self.cooldown_counter - 1)
        if self.num_bad_epochs <= self.patience:
            return
        self._reduce_lr(self.last_epoch)
        self.num_bad_epochs, self.cooldown_counter = 0, self.cooldown

    # The names below are torch's: its subclasses replace or call them.

    def _is_better(self, a: float, best: float) -> bool:
        return improves(a, best, self.mode, self.threshold, self.threshold_mode)

    def _reduce_lr(self, epoch: int) -> None:
        for i, (group, least) in enumerate(zip(self._groups, self.min_lrs, strict=True)):
            old = float(group["lr"])
            new = max(old * self.factor, least)
            if old - new > self.eps:
                set_rate(group, new)
                if self.verbose:
                    self.print_lr(i)

    @property
    def mode_worse(self) -> float:  # type: ignore[override]
        """What any metric is better than."""
        return math.inf if self.mode == "min" else -math.inf

    def _init_is_better(self, mode: str, threshold: float, threshold_mode: str) -> None:
        self.mode, self.threshold, self.threshold_mode = mode, threshold, threshold_mode
