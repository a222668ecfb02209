"""When a callback steps a scheduler, and with what: the same in every trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim.lr_scheduler import LRScheduler as TorchScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchPlateau

from optimplug._core.arguments import require_count, require_one_of
from optimplug._core.lr_scheduler.plateau import read_metric
from optimplug._core.metrics import require_metric
from optimplug.errors import ArgumentError
from optimplug.optim.lr_scheduler import LRScheduler
from optimplug.recipe import RecipeScheduler

__all__ = ["INTERVALS", "Interval", "StepInterval"]

Interval = Literal["step", "epoch", "validation"]
INTERVALS = ("step", "epoch", "validation")


@dataclass(frozen=True)
class StepInterval:
    """When a scheduler is stepped, and which metric it is given.

    Args:
        interval: what is counted: "step" (updates), "epoch" or "validation".
        frequency: after every how many of them it is stepped.
        monitor: the name of the metric that it follows, for a plateau; None for any other.

    Raises:
        ArgumentError: a value breaks its rule, or there is a monitor for what is not counted in
            validations, which alone have metrics.

    Example:
        >>> step_interval = StepInterval("epoch", frequency=2)
        >>> [step_interval.due(count) for count in (1, 2, 3, 4)]
        [False, True, False, True]
    """

    interval: Interval = "step"
    frequency: int = 1
    monitor: str | None = None

    def __post_init__(self) -> None:
        require_one_of("interval", self.interval, INTERVALS)
        require_count("frequency", self.frequency, least=1)
        if self.monitor is None:
            return
        if not isinstance(self.monitor, str) or not self.monitor:
            raise ArgumentError(f"monitor must be the name of a metric (got {self.monitor!r})")
        if self.interval != "validation":
            raise ArgumentError(
                "interval must be 'validation' where there is a monitor, as only a validation has "
                f"metrics (got {self.interval!r}, monitor={self.monitor!r})"
            )

    def check(self, scheduler: Any) -> None:
        """Raise unless it is a scheduler that can be stepped so.

        Raises:
            ArgumentError: it is no scheduler, or one of a recipe, which counts for itself; or it
                follows a metric and no monitor says which, or the other way round.
        """
        name = type(scheduler).__name__
        if not isinstance(scheduler, TorchScheduler):
            raise ArgumentError(f"scheduler must be a scheduler of torch or optimplug (got {name})")
        if isinstance(scheduler, RecipeScheduler):
            raise ArgumentError(
                "scheduler must not be a recipe's: that counts updates, epochs and validations "
                "itself; give it to the trainer as it is, with a MetricCallback beside it"
            )
        if _takes_metric(scheduler) and self.monitor is None:
            raise ArgumentError(
                f"monitor must name the metric that {name} follows, with interval='validation': "
                "SchedulerCallback(scheduler, interval='validation', monitor='...')"
            )
        if self.monitor is not None and not _takes_metric(scheduler):
            raise ArgumentError(
                f"monitor must be left out: {name} takes no metric (got {self.monitor!r})"
            )

    def due(self, count: int) -> bool:
        """Tell whether to step after so many updates, epochs or validations, from 1 on."""
        return count % self.frequency == 0

    def step(self, scheduler: TorchScheduler, metrics: Mapping[str, Any] | None = None) -> None:
        """Step a scheduler, with its metric if it follows one.

        Args:
            scheduler: one that :meth:`check` lets pass.
            metrics: those of the validation, by name; not looked at without a monitor.

        Raises:
            ArgumentError: the metric is missing or no number. Nothing has changed then.
        """
        if self.monitor is None:
            scheduler.step()
        else:
            value = read_metric(require_metric(self.monitor, metrics or {}))
            scheduler.step(value)  # type: ignore[arg-type] # a plateau's takes a metric


def _takes_metric(scheduler: TorchScheduler) -> bool:
    """Tell whether it is a plateau, or one of ours with a plateau in it."""
    ours = isinstance(scheduler, LRScheduler) and scheduler._takes_metric
    return ours or isinstance(scheduler, TorchPlateau)
