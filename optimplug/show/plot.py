"""A plan as a picture, with the ``plot`` extra."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

from optimplug.errors import MissingExtraError
from optimplug.recipe.plan import Plan
from optimplug.show.pictures import Picture, log_range, pictures
from optimplug.show.spread import spread
from optimplug.show.summary import modules_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

__all__ = ["draw"]

_POINTS = 2000  # more than a picture of this size can show
_MOST_LINES = 24  # more lines than this have no room for their names beside them
_WIDTH, _TALL, _SMALL, _STRIP = 10.0, 4.6, 1.5, 0.28  # of the picture and its parts, in inches
_LONGEST = 48  # letters of a name beside a line
_FONT = 7.0
_APART = 0.15  # of the room that names need: lines that end nearer to each other look like one
_FROM_LEFT = {"shrinkA": 1, "shrinkB": 0, "relpos": (0.0, 0.5)}
_LETTER, _LINE = 0.56 * _FONT / 72, 1.35 * _FONT / 72  # how wide and high one is, in inches


class _Band(NamedTuple):
    """Groups that are drawn as one: equal ones as a line, those of a layer between two."""

    label: str
    low: list[float]
    high: list[float]
    shade: float
    """Between dark (0) and bright (1)."""
    frozen_until: int


def draw(plan: Plan, path: str | PathLike[str]) -> None:
    """Draw lr over time, from the bottom of the model (dark) to its top (bright).

    Below it is drawn what else is scheduled, and what is frozen, and how long. While a group is
    frozen, its line is dotted.

    Args:
        plan: whose groups are drawn.
        path: the file to write; its ending says the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: the total number of steps is unknown, so there is nothing to draw.
    """
    if plan.horizon.total_steps is None:
        raise ValueError("a curve over the run needs to know Horizon.total_steps")
    try:
        from matplotlib import colormaps

        # Without pyplot, which would keep every figure, and might open a window.
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("drawing a plan", "plot") from None
    steps = plan.sample(_POINTS)
    drawn = [picture for picture in pictures(plan, steps) if _is_drawn(picture)]
    bands = [_bands(plan, picture) for picture in drawn]
    frozen = list(_frozen(plan))
    heights = [_TALL, *[_SMALL] * (len(drawn) - 1), *([_STRIP * len(frozen)] if frozen else [])]
    labels = [band.label for each in bands for band in each] + [label for label, _ in frozen]
    margins = _Margins(heights, max(map(len, labels)) * _LETTER)
    colors = colormaps["viridis"]
    figure = Figure(figsize=(_WIDTH, margins.height))
    for i, height in enumerate(heights):
        axes = figure.add_axes(margins.box(i), xlim=(0, max(1, steps[-1])))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=i == len(heights) - 1, labelsize=8)
        if i < len(drawn):
            _draw_bands(axes, steps, drawn[i], bands[i], colors)
            _name(axes, bands[i], height, colors)
        else:
            _draw_frozen(axes, frozen, steps[-1])
        _mark_phases(axes, plan, named=i == 0)
    figure.axes[-1].set_xlabel("optimizer step")
    figure.savefig(path, dpi=150)


def _is_drawn(picture: Picture) -> bool:
    return picture.name == "lr" or picture.is_scheduled


class _Margins:
    """Where the parts of the picture lie: below each other, with names to their right."""

    _LEFT, _TOP, _FOOT, _GAP, _TO_NAME = 0.85, 0.35, 0.55, 0.22, 0.45

    def __init__(self, heights: Sequence[float], names: float) -> None:
        self._heights = heights
        self._right = names + self._TO_NAME
        self.height = sum(heights) + self._GAP * (len(heights) - 1) + self._TOP + self._FOOT

    def box(self, i: int) -> tuple[float, float, float, float]:
        """Return left, foot, width and height of a part, as shares of the picture."""
        above = sum(self._heights[:i]) + self._GAP * i + self._TOP
        foot = self.height - above - self._heights[i]
        width = _WIDTH - self._LEFT - self._right
        left = self._LEFT / _WIDTH
        return left, foot / self.height, width / _WIDTH, self._heights[i] / self.height


def _bands(plan: Plan, picture: Picture) -> list[_Band]:
    """Return what is drawn, from the bottom of the model to its top."""
    shades = plan.shades()
    equal: dict[object, list[int]] = defaultdict(list)
    layers: dict[object, list[int]] = defaultdict(list)
    for i, (group, trace) in enumerate(zip(plan.groups, picture.traces, strict=True)):
        if trace:
            held = _held(plan, picture, i)
            equal[tuple(trace), held].append(i)
            # Rates of different optimizers lie far apart: a band of both would cover all others.
            layers[shades[i], held, group.optimizer.path].append(i)
    alike = list((equal if len(equal) <= _MOST_LINES else layers).values())
    labels = _labels([[plan.groups[i].name for i in members] for members in alike])
    found = []
    for label, members in zip(labels, alike, strict=True):
        columns = list(zip(*(picture.traces[i] for i in members), strict=True))
        low, high = list(map(min, columns)), list(map(max, columns))
        shade = sum(shades[i] for i in members) / len(members)
        # On a logarithm there is no place for 0.
        of_zero = "" if max(high) > 0 else ": 0"
        held = _held(plan, picture, members[0])
        found.append(_Band(f"{label}{of_zero}", low, high, shade, held))
    return sorted(found, key=lambda band: band.shade)


def _held(plan: Plan, picture: Picture, i: int) -> int:
    """Return for how long the line of a group is dotted: only its rate is without effect then."""
    return plan.frozen_until(plan.groups[i]) if picture.name == "lr" else 0


def _labels(names: Sequence[Sequence[str]]) -> list[str]:
    """Return what groups are called together: what all their names begin with, or the first."""
    shared = list(map(_shared, names))
    return [
        _shortened(_count(start if shared.count(start) == 1 else of[0], of))
        for start, of in zip(shared, names, strict=True)
    ]


def _shared(names: Sequence[str]) -> str:
    columns = zip(*(re.split(r"[./]", name) for name in names), strict=False)
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, columns)
    start = ".".join(parts[0] for parts in same)
    return start if len(names) > 1 and start else names[0]


def _count(label: str, names: Sequence[str]) -> str:
    return f"{label} ({len(names)} groups)" if len(names) > 1 else label


def _shortened(label: str) -> str:
    """Leave out the middle of what is too long: layers stand in the first part of a name."""
    half = _LONGEST // 2 - 1
    return label if len(label) <= _LONGEST else f"{label[:half]}...{label[-half:]}"


def _draw_bands(
    axes: Axes, steps: Sequence[int], picture: Picture, bands: Sequence[_Band], colors: Colormap
) -> None:
    axes.set_ylabel("learning rate" if picture.name == "lr" else picture.name, fontsize=9)
    span = log_range(picture.traces)
    least = 0.0
    if span is not None:
        least = span[0]  # below which a logarithm goes on for ever, and 0 has no place
        axes.set_yscale("log")
        axes.set_ylim(least / 1.3, span[1])
    for band in bands:
        # The last tenth of the colours is a yellow too bright for a line on white.
        color = colors(0.9 * band.shade)
        low, high = ([max(value, least) for value in values] for values in (band.low, band.high))
        axes.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0)
        for values in (low, high) if low != high else (low,):
            _draw_line(axes, steps, values, color, band.frozen_until)


def _draw_line(
    axes: Axes, steps: Sequence[int], values: Sequence[float], color: object, frozen_until: int
) -> None:
    split = next((i for i, step in enumerate(steps) if step >= frozen_until), len(steps) - 1)
    axes.plot(steps[: split + 1], values[: split + 1], color=color, linewidth=1.0, linestyle=":")
    axes.plot(steps[split:], values[split:], color=color, linewidth=1.2)


def _name(axes: Axes, bands: Sequence[_Band], height: float, colors: Colormap) -> None:
    """Write the name of each band beside its end, moved up or down where names would overlap.

    Where all end at one place, which most schedules do at 0, a name is as high as the band's peak.
    """
    axes.margins(y=0.03)
    room = _LINE / height
    ends = _shares(axes, [(band.low[-1] + band.high[-1]) / 2 for band in bands])
    end_apart = max(ends) - min(ends) >= _APART * room * (len(bands) - 1)
    at = ends if end_apart else _shares(axes, [(max(b.low) + max(b.high)) / 2 for b in bands])
    line = {"arrowstyle": "-", "color": "0.75", "linewidth": 0.5, **_FROM_LEFT}
    shown = range(len(bands))
    if len(bands) * room > 1:  # then not all of them, evenly
        shown = range(0, len(bands), -(-len(bands) // int(1 / room)))
        note = f"{len(shown)} of {len(bands)} are named"
        above = (1.0 + 0.3 / _WIDTH, 1.0 + room)
        axes.annotate(note, above, xycoords="axes fraction", fontsize=_FONT, color="0.35")
    for i, place in zip(shown, spread([at[i] for i in shown], room), strict=True):
        axes.annotate(
            bands[i].label,
            (1.0, at[i]),
            (1.0 + 0.3 / _WIDTH, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=_FONT,
            verticalalignment="center",
            color=[0.7 * part for part in colors(0.9 * bands[i].shade)[:3]],
            arrowprops=line if end_apart else None,
            annotation_clip=False,
            parse_math=False,  # a name may have a "$" in it
        )


def _shares(axes: Axes, values: Sequence[float]) -> list[float]:
    """Return how high in a picture values are, from 0 to 1."""
    to_share = axes.transData + axes.transAxes.inverted()
    bottom = axes.get_ylim()[0]
    return [float(to_share.transform((0, max(value, bottom)))[1]) for value in values]


def _frozen(plan: Plan) -> Iterable[tuple[str, int]]:
    """Give what stays as it is for a time, or for the whole run, with the number of updates."""
    if plan.grouping.frozen:
        yield _shortened(modules_of(plan, plan.grouping.frozen.keys())), plan.sample(1)[-1]
    held: dict[int, set[str]] = defaultdict(set)
    for group in plan.groups:
        if group.freeze is not None:
            held[plan.frozen_until(group)].update(group.parameters)
    for until, names in sorted(held.items()):
        yield _shortened(modules_of(plan, names)), until


def _draw_frozen(axes: Axes, frozen: Sequence[tuple[str, int]], last: int) -> None:
    axes.set_ylabel("frozen", fontsize=9, rotation=0, ha="right", va="center")
    axes.set_yticks([])
    axes.set_ylim(-0.5, len(frozen) - 0.5)
    axes.invert_yaxis()
    for i, (label, until) in enumerate(frozen):
        axes.barh(i, until, height=0.6, color="0.75", hatch="///", edgecolor="white")
        axes.annotate(
            label,
            (1.0 + 0.3 / _WIDTH, i),
            xycoords=("axes fraction", "data"),
            fontsize=_FONT,
            verticalalignment="center",
            color="0.35",
            annotation_clip=False,
            parse_math=False,  # a name may have a "$" in it
        )


def _mark_phases(axes: Axes, plan: Plan, named: bool) -> None:
    for phase in plan.curve.phases:
        axes.axvline(phase.start, color="0.6", linewidth=0.8, linestyle=":")
        if named:
            axes.annotate(
                phase.name,
                (phase.start, 1.0),
                (4, 4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                fontsize=8,
                color="0.35",
            )
