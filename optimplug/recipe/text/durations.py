"""Durations: "6%", "500 steps", "2 epochs", rest -> a number of optimizer steps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from optimplug.errors import ArgumentError, nearest

__all__ = ["Duration", "Horizon", "require_horizon"]

_UNITS = {"step": "steps", "steps": "steps", "epoch": "epochs", "epochs": "epochs", "%": "%"}
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|[A-Za-z]+)?\s*")
_LONGEST = 10**15  # steps, or epochs: what is longer is a slip, and no float holds it exactly
_VALID = "a number of steps, '500 steps', '2 epochs', '6%' or 'rest'"


@dataclass(frozen=True)
class Horizon:
    """How long a run is, in optimizer updates (gradient accumulation included).

    Args:
        total_steps: updates in the whole run; None if unknown, and then a percentage or ``rest``
            is an error.
        steps_per_epoch: updates in an epoch; None if unknown, and then a duration in epochs is an
            error.

    Raises:
        ArgumentError: a value is neither a positive int nor None.
    """

    total_steps: int | None = None
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        for name in ("total_steps", "steps_per_epoch"):
            value = getattr(self, name)
            counts = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if value is not None and not counts:
                raise ArgumentError(f"Horizon.{name} must be an int >= 1 or None (got {value!r})")


def require_horizon(value: object) -> None:
    """Raise an ArgumentError unless a value is a Horizon."""
    if not isinstance(value, Horizon):
        raise ArgumentError(
            f"horizon must be a Horizon, Horizon(total_steps=1000) say (got {value!r})"
        )


@dataclass(frozen=True)
class Duration:
    """A length of time in a unit: ``steps``, ``epochs``, ``%`` of the run, or the ``rest`` of it.

    Example:
        >>> Duration.parse("6%").steps(Horizon(total_steps=1000))
        60
    """

    # A fraction, because lengths are rounded up: the error of a float could add a step.
    amount: Fraction
    unit: str
    bare: bool = False
    """Whether it was a number alone. In a phase that counts epochs, that is a number of epochs."""

    @classmethod
    def parse(cls, value: object) -> Duration:
        """Read a duration.

        Raises:
            ValueError: it is in none of these forms; the message names the nearest.
        """
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            if value > _LONGEST:
                raise ValueError(f"{value!r} is longer than any run")
            return cls(Fraction(value), "steps", bare=True)
        if value == "rest":
            return cls(Fraction(1), "rest")
        form = _FORM.fullmatch(value) if isinstance(value, str) else None
        unit = _UNITS.get(form[2] or "steps") if form else None
        if form is None or unit is None:
            raise ValueError(f"must be {_VALID} (got {value!r}{_suggestion(value)})")
        duration = cls(Fraction(form[1]), unit, bare=form[2] is None)
        if duration.amount > _LONGEST:
            raise ValueError(f"{value!r} is longer than any run")
        if unit == "%" and duration.amount > 100:
            raise ValueError(f"{value!r} is longer than the run; the most is '100%'")
        if unit == "steps" and duration.amount.denominator != 1:
            raise ValueError(f"steps must be whole (got {value!r})")
        return duration

    def steps(self, horizon: Horizon) -> int:
        """Return the length in optimizer steps; a part of a step counts as one.

        Raises:
            ValueError: the horizon lacks what the unit needs, or ``rest`` is asked for.
        """
        return math.ceil(self.exact(horizon))

    def exact(self, horizon: Horizon) -> Fraction:
        """Return the length in optimizer steps, and parts of a step.

        Raises:
            ValueError: the horizon lacks what the unit needs, or ``rest`` is asked for.
        """
        if self.unit == "steps":
            return self.amount
        if self.unit == "epochs":
            if horizon.steps_per_epoch is None:
                raise ValueError("epochs need to know Horizon.steps_per_epoch")
            return self.amount * horizon.steps_per_epoch
        if self.unit == "%":
            if horizon.total_steps is None:
                raise ValueError("a percentage needs to know Horizon.total_steps")
            return self.amount * horizon.total_steps / 100
        raise ValueError("'rest' is what the other phases leave, not a length of its own")

    def __str__(self) -> str:
        if self.unit == "rest":
            return "rest"
        unit = "%" if self.unit == "%" else f" {self.unit}"
        return f"{float(self.amount):g}{unit.removesuffix('s') if self.amount == 1 else unit}"


def _suggestion(value: object) -> str:
    if isinstance(value, float) and 0 < value < 1:  # a ratio, as other projects give a warm-up
        return f"; did you mean '{100 * value:.6g}%'?"
    if not isinstance(value, str):
        return ""
    number, word = re.match(r"\s*([\d.]*)\s*(.*?)\s*$", value, re.DOTALL).groups()  # type: ignore[union-attr]
    meant = nearest(word, [*_UNITS, "rest"])
    if meant == "rest" and not number:
        return "; did you mean 'rest'?"
    return f"; did you mean '{number} {meant}'?" if meant and number else ""
