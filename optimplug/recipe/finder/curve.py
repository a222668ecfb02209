r"""LRCurve: the losses of a sweep over rates, and which rate they suggest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from os import PathLike
from typing import Any, Literal, NamedTuple

from optimplug.errors import ArgumentError

__all__ = ["End", "LRCurve", "Suggestion"]

End = Literal["whole", "diverged", "not finite"]

_ENDS: Mapping[End, str] = {
    "whole": "",
    "diverged": ", after which the loss diverged",
    "not finite": ", after which the loss was not finite",
}
_WIDTH = 0.04  # of the smoothing, as a part of the whole sweep; fewer points are at least 2 wide
_LEAST_POINTS = 10  # of which a curve can be made
_NOISES = 4.0  # how many times its own noise a loss must fall by


class Suggestion(NamedTuple):
    """A rate to begin with."""

    multiplier: float
    """For all rates of the recipe, so that groups keep their ratios."""
    rates: Mapping[str, float]
    """What they are then, by the paths where the recipe has them (``optimizer.lr``)."""


@dataclass(frozen=True)
class LRCurve:
    r"""The losses of a sweep, and what they say; print it for a few lines.

    The **suggestion** is the largest rate before the minimum at which half of the fall is still to
    come:

    .. math:: m^* = \max \{ m < m_{min} : \bar L(m) \ge (\bar L_{top} + \bar L(m_{min})) / 2 \},
              \qquad m_{min} = \arg\min \bar L, \quad
              \bar L_{top} = \max_{m \le m_{min}} \bar L(m),

    with :math:`\bar L` the losses smoothed over :math:`\log m` by a Gaussian, which shifts nothing
    to a side (the running mean of other finders shifts the curve to higher rates). At the minimum
    itself a rate is too large already (Smith, 2015). Where a curve falls once, this is where it
    falls fastest, fastai's ``steep`` and what Lightning suggests; but a level is steadier than a
    slope, which the noise of batches makes steep anywhere. fastai's ``valley`` is the middle of the
    longest fall on the axis of rates, this one on that of losses.

    There is none where the loss falls by no more than its noise, or still falls at the end of the
    sweep: :attr:`notice` says what to do then.

    Args:
        points: for each update its multiplier of the recipe's rates, and the next batch's loss.
        start: the loss before the first update.
        end: ``whole``, or why it ended before: the loss ``diverged``, or was ``not finite``.
        rates: those of the recipe, by their paths.

    References:
        L. N. Smith, `Cyclical Learning Rates for Training Neural Networks
        <https://arxiv.org/abs/1506.01186>`_, 2015. fastai, `Learner.lr_find
        <https://docs.fast.ai/callback.schedule.html#learner.lr_find>`_ (``steep``, ``valley``).

    Example:
        >>> losses = [2.0] * 40 + [2 - 0.1 * i for i in range(15)] + [0.6 + i for i in range(5)]
        >>> points = tuple((10 ** (i / 20 - 2), loss) for i, loss in enumerate(losses))
        >>> curve = LRCurve(points, 2.0, "diverged", {"optimizer.lr": 0.5})
        >>> 1 < curve.suggestion.multiplier < 5
        True
    """

    points: tuple[tuple[float, float], ...]
    start: float
    end: End
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def multipliers(self) -> list[float]:
        """What the recipe's rates were multiplied by."""
        return [multiplier for multiplier, _ in self.points]

    @property
    def losses(self) -> list[float]:
        """The loss after each update."""
        return [loss for _, loss in self.points]

    @cached_property
    def smoothed(self) -> list[float]:
        r"""The same, each a mean of those around it, weighted by a Gaussian over :math:`\log m`."""
        losses, far = self.losses, math.ceil(3 * self._width)
        weights = {d: math.exp(-0.5 * (d / self._width) ** 2) for d in range(-far, far + 1)}
        found = []
        for i in range(len(losses)):
            near = [(w, losses[i + d]) for d, w in weights.items() if 0 <= i + d < len(losses)]
            found.append(sum(w * loss for w, loss in near) / sum(w for w, _ in near))
        return found

    @property
    def _width(self) -> float:
        return max(2.0, _WIDTH * len(self.points))

    @property
    def notice(self) -> str:
        """Why there is no suggestion, and what to do; empty where there is one."""
        return next(self._notices(), "")

    def _notices(self) -> Iterator[str]:
        if not math.isfinite(self.start):
            yield (
                f"the loss is {self.start} before the first update, whatever the rates: look at "
                "the model, its precision and the first batch"
            )
        elif len(self.points) < _LEAST_POINTS:
            at = self.points[-1][0] if self.points else None
            where = "at the first update" if at is None else f"at {at:.3g} times the recipe's rates"
            yield (
                f"the loss is not finite {where} already: begin lower (lowest=...), or see why the "
                "model is so easily upset"
            )
        elif self._fall <= _NOISES * self._noise:
            others = "higher" if self.end == "whole" else "lower"
            others += f" rates ({'highest' if self.end == 'whole' else 'lowest'}=...)"
            yield (
                f"the loss falls by {max(self._fall, 0.0):.3g} at the most, and its noise is "
                f"{self._noise:.3g}: no rate stands out. Try {others}, more updates (updates=...) "
                "or larger ones (accumulate=...), and see whether the model can learn from these "
                "batches at all"
            )
        elif self.end == "whole" and self._lowest >= len(self.points) - math.ceil(self._width):
            yield (
                f"the loss still falls at {self.points[-1][0]:.3g} times the recipe's rates, so "
                "nothing is known of its minimum: go on higher (highest=...)"
            )

    @property
    def _lowest(self) -> int:
        """Where the smoothed loss has its minimum."""
        return min(range(len(self.points)), key=self.smoothed.__getitem__)

    @property
    def _fall(self) -> float:
        """By how much the smoothed loss falls on its way to the minimum."""
        return max(self.smoothed[: self._lowest + 1]) - self.smoothed[self._lowest]

    @property
    def _noise(self) -> float:
        """The standard error of the smoothed loss.

        From the differences of neighbours up to the minimum, which the curve itself hardly shows
        in; they have the variance of two losses. The median keeps a few wild batches out.
        """
        losses = self.losses[: max(self._lowest + 1, _LEAST_POINTS)]
        steps = sorted(abs(b - a) for a, b in pairwise(losses))
        deviation = steps[len(steps) // 2] / 0.6745 / math.sqrt(2)
        return deviation / math.sqrt(2 * math.sqrt(math.pi) * self._width)

    @property
    def suggestion(self) -> Suggestion:
        """The multiplier in the middle of the fall, and what the recipe's rates are then.

        Raises:
            ArgumentError: the curve has none; it says what to do.
        """
        if self.notice:
            raise ArgumentError(f"no rate is suggested: {self.notice}")
        half = self.smoothed[self._lowest] + self._fall / 2
        place = max(i for i in range(self._lowest + 1) if self.smoothed[i] >= half)
        multiplier = self.points[place][0]
        return Suggestion(multiplier, {path: lr * multiplier for path, lr in self.rates.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, such as JSON has."""
        found = None if self.notice else self.suggestion
        return {
            "multipliers": self.multipliers,
            "losses": self.losses,
            "smoothed": self.smoothed,
            "start": self.start if math.isfinite(self.start) else str(self.start),
            "end": self.end,
            "rates": dict(self.rates),
            "suggestion": found and {"multiplier": found.multiplier, "rates": dict(found.rates)},
            "notice": self.notice,
        }

    # As of a plan: what shows it is imported when it is asked for.

    @staticmethod
    def require_drawable(path: str | PathLike[str] = "page.svg") -> None:
        """Check, before there is a curve, that one can be drawn into a file of such an ending.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ArgumentError: it knows no such format.
        """
        from optimplug.show import figures

        figures.require_drawable("drawing a sweep over rates", path)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the losses, the smoothed curve and the suggestion into a PNG, SVG or PDF file.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ArgumentError: there is no point to draw.
        """
        from optimplug.show import lr_curve

        lr_curve.draw(self, path)

    def html(self) -> str:
        """Return a page by itself with the picture and what is suggested.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ArgumentError: there is no point to draw.
        """
        from optimplug.show import lr_curve

        return lr_curve.page(self)

    def lines(self) -> list[str]:
        """Return what there is to say, in a few lines."""
        return [*self._what_was_done(), *self._what_is_found()]

    def _what_was_done(self) -> Iterator[str]:
        done = f"{len(self.points)} updates"
        if self.points:
            first, last = self.points[0][0], self.points[-1][0]
            done += f" at {first:.3g} to {last:.3g} times the recipe's rates"
        yield f"{done}{_ENDS[self.end]}"

    def _what_is_found(self) -> Iterator[str]:
        if self.notice:
            yield f"no rate is suggested: {self.notice}"
            return
        found = self.suggestion
        yield f"half of the fall is done at {found.multiplier:.3g} times the recipe's rates:"
        for path, lr in self.rates.items():
            yield f"  {path}: {found.rates[path]:.3g} (now {lr:.3g})"

    def __str__(self) -> str:
        return "\n".join(self.lines())
