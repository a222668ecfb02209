"""Curves as SVG, drawn without a library, so that the page needs none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from optimplug.show.pictures import log_range

__all__ = ["draw", "shade_style"]

# The picture is stretched to whatever room there is; what is written beside it is not.
_WIDTH, _HEIGHT = 1000, 400
_MARKS = 4
_NEAR = 0.3  # of a pixel, by which no eye tells lines apart

_Scale = Callable[[float], float]
"""From a step or a value to a place in the picture."""


def shade_style(shade: float) -> str:
    """Return a colour between dark violet (0) and yellow (1), as :meth:`Plan.plot` has them.

    Its parts are for the page's style, which makes them lighter on a dark ground.
    """
    return f"--hue:{280 - 225 * shade:.0f};--light:{32 + 18 * shade:.0f}%"


def draw(
    name: str,
    steps: Sequence[int],
    curves: Sequence[Sequence[float]],
    styles: Sequence[str],
    phases: Sequence[tuple[str, int]],
    held: Sequence[int],
) -> str:
    """Return a picture of a hyperparameter.

    Args:
        name: of what it is.
        steps: where the curves were computed.
        curves: the values of each group at these steps; none for a group that has no such one.
        styles: the style of each group.
        phases: the name and first step of each phase.
        held: for how many steps each group is frozen, for which it is dotted.
    """
    x, (y, ticks) = _step_scale(steps), _value_scale(curves)
    return "".join(
        [
            f'<div class="chart" data-picture="{escape(name)}"><div class="plot">',
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" ',
            f'aria-label="{escape(name)} over the optimizer steps">',
            *(_line("grid", 0, _WIDTH, y(tick), y(tick)) for tick in ticks),
            *(_line("phase", x(start), x(start), 0, _HEIGHT) for _, start in phases),
            "<g>",
            *_lines(steps, curves, styles, held, x, y),
            "</g></svg>",
            *(_label("y", f"top:{y(tick) / _HEIGHT:.2%}", f"{tick:.3g}") for tick in ticks),
            *_step_labels(steps[-1]),
            *_phase_labels(phases, steps[-1]),
            "</div></div>",
        ]
    )


def _lines(
    steps: Sequence[int],
    curves: Sequence[Sequence[float]],
    styles: Sequence[str],
    held: Sequence[int],
    x: _Scale,
    y: _Scale,
) -> Iterator[str]:
    for i, (curve, style, until) in enumerate(zip(curves, styles, held, strict=True)):
        places = [(x(t), y(value)) for t, value in zip(steps, curve, strict=bool(curve))]
        split = next((n for n, step in enumerate(steps) if step >= until), len(steps) - 1)
        for kind, part in (("held", places[: split + 1]), ("curve", places[split:])):
            if len(part) > 1 or (part and kind == "curve"):
                points = " ".join(_points(part))
                group = f'class="{kind}" data-group="{i}" style="{style}"'
                yield f'<polyline {group} points="{points}"/>'


def _step_scale(steps: Sequence[int]) -> _Scale:
    last = max(steps[-1], 1)
    return lambda step: _WIDTH * step / last


def _value_scale(curves: Sequence[Sequence[float]]) -> tuple[_Scale, list[float]]:
    """Return the vertical scale and where it has its marks."""
    span = log_range(curves)
    if span is None:
        return _linear_scale(max((max(curve) for curve in curves if curve), default=0.0) or 1.0)
    return _log_scale(*span)


def _linear_scale(top: float) -> tuple[_Scale, list[float]]:
    unit = 10.0 ** math.floor(math.log10(top))
    # At most five marks and a half, at round numbers.
    size = next(unit * part for part in (0.2, 0.25, 0.5, 1, 2) if top <= unit * part * 5.5)
    # A little more than the ratio, which may come out as 4.9999.
    marks = [size * i for i in range(int(top / size * 1.0001) + 1)]
    return lambda value: _HEIGHT * (1 - value / (top * 1.05)), marks


def _log_scale(bottom: float, top: float) -> tuple[_Scale, list[float]]:
    span = math.log(top / bottom)
    decades = range(math.ceil(math.log10(bottom)), math.floor(math.log10(top)) + 1)

    def y(value: float) -> float:
        return _HEIGHT * (1 - math.log(max(value, bottom) / bottom) / span)

    return y, [10.0**decade for decade in decades]


def _points(places: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Write the points of a line; those that lie on a straight part of it are left out."""
    kept = [*places[:1], *(places[i] for i in _corners(places)), *places[1:][-1:]]
    # To a tenth of a pixel, which is finer than a screen, and keeps the page small.
    return (f"{round(x, 1):g},{round(y, 1):g}" for x, y in kept)


def _corners(places: Sequence[tuple[float, float]]) -> Iterator[int]:
    """Give the points between which all others are as good as on a straight line."""
    anchor, low, high = 0, -math.inf, math.inf
    for i in range(1, len(places)):
        slope = _slope(places[anchor], places[i])
        if not low <= slope <= high:  # a line to here would miss one of the points before it
            anchor, low, high = i - 1, -math.inf, math.inf
            yield anchor
        low = max(low, _slope(places[anchor], places[i], -_NEAR))
        high = min(high, _slope(places[anchor], places[i], _NEAR))


def _slope(start: tuple[float, float], end: tuple[float, float], more: float = 0.0) -> float:
    return (end[1] + more - start[1]) / (end[0] - start[0])


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _label(kind: str, style: str, text: str) -> str:
    return f'<span class="{kind}" style="{style}">{escape(text)}</span>'


def _step_labels(last: int) -> Iterator[str]:
    for part in range(_MARKS + 1):
        kind = "x less" if part % 2 else "x"  # a narrow page has no room for those
        yield _label(kind, f"left:{part / _MARKS:.0%}", f"{last * part / _MARKS:,.6g}")
    yield '<span class="axis">optimizer step</span>'


def _phase_labels(phases: Sequence[tuple[str, int]], last: int) -> Iterator[str]:
    """Write names of phases, each in no more than the room up to the next."""
    for i, (name, start) in enumerate(phases):
        end = phases[i + 1][1] if i + 1 < len(phases) else last
        left, width = start / max(last, 1), (end - start) / max(last, 1)
        yield _label("name", f"left:{left:.2%};width:{max(width, 0):.2%}", name)
