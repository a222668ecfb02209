"""A plan as a picture, with the ``plot`` extra."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

from optimplug.errors import MissingExtraError
from optimplug.recipe.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

__all__ = ["draw"]

_POINTS = 2000  # more than a picture of this size can show
_MOST_NAMED = 24  # more names than this would not fit beside the picture
_LOG_FROM = 30  # a ratio of the highest peak to the lowest that a linear axis does not show


class _Line(NamedTuple):
    """Groups whose rates are the same all along, so that one line shows them."""

    names: list[str]
    rates: list[float]
    shade: float
    """Between dark (0) and bright (1)."""

    @property
    def label(self) -> str:
        more = f" (and {len(self.names) - 1} more)" if len(self.names) > 1 else ""
        return f"{self.names[0]}{more}"


def draw(plan: Plan, path: str | PathLike[str]) -> None:
    """Draw lr over time, from the bottom of the model (dark) to its top (bright).

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
    lines = _lines(plan, steps)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="optimizer step", ylabel="learning rate", xlim=(0, steps[-1]))
    _draw_lines(axes, steps, lines, colormaps["viridis"])
    _mark_phases(axes, plan)
    hidden = len(lines) - _MOST_NAMED
    more = f"and {hidden} more" if hidden > 0 else None
    figure.legend(loc="outside right upper", fontsize=7, frameon=False, title=more)
    figure.savefig(path, dpi=150)


def _lines(plan: Plan, steps: Sequence[int]) -> list[_Line]:
    shades: dict[tuple[float, ...], list[float]] = {}
    names: dict[tuple[float, ...], list[str]] = {}
    for group, rates, shade in zip(plan.groups, plan.traces(steps), plan.shades(), strict=True):
        shades.setdefault(tuple(rates), []).append(shade)
        names.setdefault(tuple(rates), []).append(group.name)
    return [
        _Line(names[rates], list(rates), sum(shades[rates]) / len(shades[rates])) for rates in names
    ]


def _draw_lines(axes: Axes, steps: Sequence[int], lines: Sequence[_Line], colors: Colormap) -> None:
    for i, line in enumerate(lines):
        label = line.label if i < _MOST_NAMED else None
        # The last tenth of the colours is a yellow too bright for a line on white.
        axes.plot(steps, line.rates, label=label, color=colors(0.9 * line.shade))
    peaks = [peak for line in lines if (peak := max(line.rates)) > 0]
    if peaks and max(peaks) > _LOG_FROM * min(peaks):
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)


def _mark_phases(axes: Axes, plan: Plan) -> None:
    for phase in plan.curve.phases:
        axes.axvline(phase.start, color="0.6", linewidth=0.8, linestyle=":")
        axes.annotate(
            phase.name,
            (phase.start, 1.0),
            (4, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color="0.35",
        )
