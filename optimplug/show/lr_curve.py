"""The curve of a sweep over rates: as a picture, and on a page."""

from __future__ import annotations

from html import escape
from os import PathLike
from typing import TYPE_CHECKING

from optimplug.errors import ArgumentError
from optimplug.recipe.finder.curve import LRCurve
from optimplug.show.figures import as_svg, new_figure
from optimplug.show.page.document import document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "page"]

_LINE, _POINTS, _FOUND = "#3b528b", "#9aa3b5", "#b5367a"


def draw(curve: LRCurve, path: str | PathLike[str]) -> None:
    """Draw it.

    Args:
        curve: what is drawn.
        path: the file to write; its ending says the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: there is no point to draw.
    """
    _figure(curve).savefig(path, dpi=150)


def page(curve: LRCurve) -> str:
    """Return a page with the picture, and what it says.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: there is no point to draw.
    """
    first, *rest = curve.lines()
    kind = "warning" if curve.notice else "note"
    body = [
        "<h1>At which rates the model learns</h1>",
        f'<p class="note">{escape(first)}</p>',
        *(f'<p class="{kind}">{escape(line)}</p>' for line in rest),
        as_svg(_figure(curve)),
    ]
    return document("At which rates the model learns", body)


def _figure(curve: LRCurve) -> Figure:
    if not curve.points:
        raise ArgumentError(f"there is no point to draw: {curve.notice}")
    figure = new_figure("drawing a sweep over rates")
    axes = figure.add_subplot(xlabel="times the recipe's rates", ylabel="loss", xscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.plot(curve.multipliers, curve.losses, ".", color=_POINTS, markersize=4, label="of a batch")
    axes.plot(curve.multipliers, curve.smoothed, color=_LINE, linewidth=2, label="smoothed")
    axes.axhline(curve.start, color="0.6", linewidth=0.8, linestyle=":", label="before")
    # The last losses of a sweep that diverges would press all others together.
    lowest, usual = min(curve.smoothed), max([curve.start, *curve.smoothed[: _until(curve)]])
    span = (usual - lowest) or abs(usual) or 1.0
    axes.set_ylim(lowest - 0.15 * span, usual + 0.6 * span)
    if not curve.notice:
        found = curve.suggestion
        label = "suggested: " + ", ".join(f"{path} {lr:.3g}" for path, lr in found.rates.items())
        axes.axvline(found.multiplier, color=_FOUND, linewidth=1.5, label=label)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _until(curve: LRCurve) -> int:
    """Return how many points come before the minimum, that one among them."""
    return curve.smoothed.index(min(curve.smoothed)) + 1
