"""Factors over time: each phase multiplies a hyperparameter by one, and phases make a curve."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optimplug._core.metrics import require_metric
from optimplug.errors import StateError
from optimplug.optim.lr_scheduler import ReduceLROnPlateau

__all__ = ["Curve", "Factor", "Phase", "PlateauFactor"]

Metrics = Mapping[str, Any]


class Factor:
    """A factor as a function of steps, epochs or validations since the start of its phase.

    Attributes:
        of_training: whether it is told of what the training reports, and not of validations.
        follows: the metric that it follows, in words; empty where it follows none.

    Args:
        label: its scheduler or preset, with the arguments.
        every: what it counts: "step", "epoch", "validation", or "report" (of the training).
        factor: from that count to the factor.
        least: what it falls to where it is moved to another start; its own least is 0 then.
        springs: whether it springs back where its phase ends, so that what it leaves is before.
    """

    of_training = False
    follows = ""
    _saved_as = "validations"

    def __init__(
        self,
        label: str,
        every: str,
        factor: Callable[[int], float],
        least: float = 0.0,
        springs: bool = False,
    ) -> None:
        self.label = label if every == "step" else f"{label} every {every}"
        self.every = every
        self.least = least
        self.springs = springs
        self._factor = factor
        self._told = 0

    def __call__(self, steps: int, epochs: int) -> float:
        """Return the factor after so many steps and epochs of the phase."""
        return self._factor({"step": steps, "epoch": epochs}.get(self.every, self._told))

    def moved(self, share: float, start: float) -> float:
        """Return the factor of a phase that starts somewhere else.

        Args:
            share: the factor, as a share of what it starts at by itself.
            start: where the phase starts.
        """
        return self.least + (start - self.least) * share

    def check(self, metrics: Metrics) -> None:
        """Check that the metrics have what it follows; this one follows none.

        Raises:
            ArgumentError: they have not.
        """

    @property
    def follows_metrics(self) -> bool:
        """Whether it is not known beforehand, as validations or the training decide it."""
        return self.every in ("validation", "report")

    def told(self, metrics: Metrics) -> None:
        """Take note of a validation, or of a report; :meth:`check` comes first.

        Args:
            metrics: of it, by name.
        """
        self._told += 1

    def state(self) -> dict[str, Any]:
        """Return what it remembers, as plain values."""
        # Not steps and epochs, which the scheduler counts and passes in.
        return {self._saved_as: self._told}

    def check_state(self, state: Any) -> None:
        """Check a state before it is loaded.

        Raises:
            StateError: :meth:`state` of such a factor returns no such value.
        """
        keys = self.state().keys()
        if not isinstance(state, Mapping) or state.keys() != keys:
            raise StateError(f"the state of {self.label} must have {sorted(keys)} (got {state!r})")
        told = state[self._saved_as]
        if type(told) is not int or told < 0:
            raise StateError(f"{self._saved_as} must be an int >= 0 (got {told!r})")

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that :meth:`check_state` has let pass."""
        self._told = state[self._saved_as]


class PlateauFactor(Factor):
    """A factor that follows a metric.

    Args:
        label: its scheduler, with the arguments.
        monitor: the name of the metric.
        plateau: the scheduler, on an optimizer made for it, whose rate is 1.
        least: as in Factor.
        of_training: whether the metric is one that the training reports.
    """

    def __init__(
        self,
        label: str,
        monitor: str,
        plateau: ReduceLROnPlateau,
        least: float = 0.0,
        of_training: bool = False,
    ) -> None:
        every = "report" if of_training else "validation"
        self.follows = f"the training's {monitor}" if of_training else monitor
        label = f"{label} of {self.follows}"
        super().__init__(label, every, lambda _: plateau.get_last_lr()[0], least)
        self.monitor = monitor
        self.of_training = of_training
        self._saved_as = f"{every}s"
        self._plateau = plateau

    def moved(self, share: float, start: float) -> float:
        """Return the factor of a phase that starts somewhere else; see Factor.

        It goes down by steps, the last of which ends at the least. It never goes up.
        """
        return max(start * share, min(start, self.least))

    def check(self, metrics: Metrics) -> None:
        """Check that the metric is there, and a number.

        Raises:
            ArgumentError: it is not.
        """
        self._plateau._check_next(require_metric(self.monitor, metrics, self.of_training))

    def told(self, metrics: Metrics) -> None:
        """Take note of a validation, or of a report, and of its metric."""
        super().told(metrics)
        self._plateau.step(require_metric(self.monitor, metrics, self.of_training))

    def state(self) -> dict[str, Any]:
        """Return what it remembers, the state of the plateau among it."""
        return {**super().state(), "plateau": self._plateau.state_dict()}

    def check_state(self, state: Any) -> None:
        """Check a state before it is loaded.

        Raises:
            StateError: :meth:`state` of such a plateau returns no such value.
        """
        super().check_state(state)
        self._plateau._check_state(self._plateau._completed(state["plateau"]))

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that :meth:`check_state` has let pass."""
        super().load(state)
        self._plateau.load_state_dict(state["plateau"])


@dataclass(frozen=True)
class Phase:
    """A part of a run: ``steps`` updates from ``start`` on."""

    name: str
    start: int
    steps: int
    factors: tuple[Factor, ...]
    """They act together: what they are at a time is multiplied."""
    steps_per_epoch: int | None = None
    before: Phase | None = None
    """The phase at whose end this one starts; None if it starts at a rate of its own."""

    def __call__(self, t: int) -> float:
        """Return the factor after ``t`` updates of the run."""
        return self._moved(self._by_itself([t] * len(self.factors)))

    @property
    def end(self) -> float:
        """The factor that it leaves to the next phase."""
        last = self.start + self.steps
        return self._moved(self._by_itself([last - factor.springs for factor in self.factors]))

    def __post_init__(self) -> None:
        if self.before is not None:
            _ = self._own_start  # as long as nothing has been validated

    @cached_property
    def _own_start(self) -> float:
        return self._by_itself([self.start] * len(self.factors))

    @property
    def follows_metrics(self) -> bool:
        """Whether it is not known beforehand, as validations or the training decide it."""
        of_before = self.before is not None and self.before.follows_metrics
        return of_before or any(factor.follows_metrics for factor in self.factors)

    def _moved(self, value: float) -> float:
        if self.before is None:
            return value
        share, start = value / self._own_start, self.before.end
        return self.factors[0].moved(share, start) if len(self.factors) == 1 else share * start

    def _by_itself(self, times: Sequence[int]) -> float:
        """Return the product of the factors, each after so many updates of the run."""
        return math.prod(
            factor(t - self.start, self._epochs(t))
            for factor, t in zip(self.factors, times, strict=True)
        )

    def _epochs(self, t: int) -> int:
        length = self.steps_per_epoch
        # Epochs begin where those of the run do, though the phase may begin within one.
        return t // length - self.start // length if length else 0

    def __str__(self) -> str:
        labels = [factor.label for factor in self.factors] or [self.name]
        epochs = any(factor.every == "epoch" for factor in self.factors)
        unit = f" in epochs of {self.steps_per_epoch}" if epochs else ""
        start = " from previous" if self.before else ""
        return f"{' x '.join(labels)} for {self.steps}{unit}{start}"


class Curve:
    """The factor on every group's own value, as a function of the number of updates taken.

    A factor leaves groups their ratios. Past the last phase, its last value holds. Factors that
    count validations or follow a metric remember what :meth:`told` was given.

    Args:
        phases: the phases in order; none for a factor of 1 throughout.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = tuple(phases)
        self.end = phases[-1].start + phases[-1].steps if phases else 0
        # `for: 0` leaves a phase without steps, and so does a rest of which nothing is left.
        self._acting = [phase for phase in phases if phase.steps > 0]
        self._starts = [phase.start for phase in self._acting]

    def __call__(self, t: int) -> float:
        """Return the factor after ``t`` updates."""
        phase = self._at(t)
        return phase(min(t, self.end)) if phase else 1.0

    def factors(self) -> Iterator[Factor]:
        """Walk the factors of all phases."""
        for phase in self.phases:
            yield from phase.factors

    def factors_at(self, t: int) -> tuple[Factor, ...]:
        """Return the factors that act after ``t`` updates."""
        phase = self._at(t)
        return phase.factors if phase else ()

    def check(self, t: int, metrics: Metrics, of_training: bool) -> None:
        """Check that the metrics of a validation, or of a report, after ``t`` updates are enough.

        Raises:
            ArgumentError: a factor that acts then needs another one.
        """
        for factor in self.factors_at(t):
            if factor.of_training == of_training:
                factor.check(metrics)

    def told(self, t: int, metrics: Metrics, of_training: bool) -> None:
        """Let the factors that act after ``t`` updates take note of a validation, or of a report.

        Args:
            t: how many updates there were.
            metrics: of it, by name.
            of_training: whether the training has reported them.
        """
        for factor in self.factors_at(t):
            if factor.of_training == of_training:
                factor.told(metrics)

    def _at(self, t: int) -> Phase | None:
        return self._acting[max(0, bisect_right(self._starts, t) - 1)] if self._acting else None

    def __str__(self) -> str:
        return "; ".join(map(str, self.phases)) or "constant"
