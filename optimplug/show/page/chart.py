"""Curves as SVG, drawn without a library, so that the page needs none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

__all__ = ["draw", "shade_color"]

_WIDTH, _HEIGHT = 960, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 24, 40
_INNER_HEIGHT = _HEIGHT - _TOP - _BOTTOM
_LOG_FROM = 30  # a ratio of the largest to the smallest rate that a linear axis does not show

_Scale = Callable[[float], float]
"""From a step or a rate to a place in the picture."""


def shade_color(shade: float) -> str:
    """Return a colour between dark violet (0) and yellow (1), as :meth:`Plan.plot` has them."""
    return f"hsl({280 - 225 * shade:.0f} 65% {32 + 18 * shade:.0f}%)"


def draw(
    steps: Sequence[int],
    curves: Sequence[Sequence[float]],
    colors: Sequence[str],
    phases: Sequence[tuple[str, int]],
) -> str:
    """Return an SVG picture of the learning rates.

    Args:
        steps: where the curves were computed.
        curves: the learning rates of each group at these steps.
        colors: the colour of each group.
        phases: the name and first step of each phase.
    """
    x, (y, ticks) = _step_scale(steps), _rate_scale(curves)
    return "".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="learning rates">',
            *_grid(steps, ticks, x, y),
            *(_phase(name, x(start)) for name, start in phases),
            "<g>",
            *_lines(steps, curves, colors, x, y),
            "</g>",
            "</svg>",
        ]
    )


def _lines(
    steps: Sequence[int],
    curves: Sequence[Sequence[float]],
    colors: Sequence[str],
    x: _Scale,
    y: _Scale,
) -> Iterator[str]:
    for i, (curve, color) in enumerate(zip(curves, colors, strict=True)):
        points = " ".join(_points([(x(t), y(rate)) for t, rate in zip(steps, curve, strict=True)]))
        yield f'<polyline class="curve" data-group="{i}" stroke="{color}" points="{points}"/>'


def _step_scale(steps: Sequence[int]) -> _Scale:
    last = max(steps[-1], 1)
    return lambda step: _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last


def _rate_scale(curves: Sequence[Sequence[float]]) -> tuple[_Scale, list[float]]:
    """Return the vertical scale and where it has its marks."""
    peaks = [max(curve) for curve in curves if max(curve) > 0]
    top = max(peaks, default=1.0)
    if not peaks or top <= _LOG_FROM * min(peaks):
        return _linear_scale(top)
    lowest = min(rate for curve in curves for rate in curve if rate > 0)
    # A cosine ends as near to 0 as one likes; a logarithm must end somewhere.
    return _log_scale(max(lowest, min(peaks) * 1e-3), top * 1.2)


def _linear_scale(top: float) -> tuple[_Scale, list[float]]:
    unit = 10.0 ** math.floor(math.log10(top))
    # At most five marks and a half, at round numbers.
    size = next(unit * part for part in (0.2, 0.25, 0.5, 1, 2) if top <= unit * part * 5.5)
    # A little more than the ratio, which may come out as 4.9999.
    marks = [size * i for i in range(int(top / size * 1.0001) + 1)]
    return lambda rate: _TOP + _INNER_HEIGHT * (1 - rate / (top * 1.05)), marks


def _log_scale(bottom: float, top: float) -> tuple[_Scale, list[float]]:
    span = math.log(top / bottom)
    decades = range(math.ceil(math.log10(bottom)), math.floor(math.log10(top)) + 1)

    def y(rate: float) -> float:
        return _TOP + _INNER_HEIGHT * (1 - math.log(max(rate, bottom) / bottom) / span)

    return y, [10.0**decade for decade in decades]


def _points(places: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Write the points of a line; those inside a level stretch are left out, to save space."""
    # To a tenth of a pixel, which is finer than a screen, and keeps the page small.
    written = [(round(x, 1), round(y, 1)) for x, y in places]
    for i, (x, y) in enumerate(written):
        within = 0 < i < len(written) - 1
        if within and written[i - 1][1] == y == written[i + 1][1]:
            continue
        yield f"{x:g},{y:g}"


def _grid(
    steps: Sequence[int],
    ticks: Sequence[float],
    x: _Scale,
    y: _Scale,
) -> Iterator[str]:
    right, foot = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for tick in ticks:
        at = round(y(tick), 1)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at}" y2="{at}"/>'
        yield f'<text x="{_LEFT - 8}" y="{at + 4:g}" text-anchor="end">{tick:.3g}</text>'
    for part in range(6):
        step = steps[-1] * part / 5
        yield f'<text x="{x(step):.1f}" y="{foot + 16}" text-anchor="middle">{step:,.6g}</text>'
    yield f'<text x="{right}" y="{foot + 34}" text-anchor="end">optimizer step</text>'


def _phase(name: str, at: float) -> str:
    foot = _HEIGHT - _BOTTOM
    return (
        f'<line class="phase" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 8}" y2="{foot}"/>'
        f'<text x="{at + 4:.1f}" y="{_TOP - 10}">{escape(name)}</text>'
    )
