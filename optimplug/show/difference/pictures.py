"""The rates of two plans over each other: as a picture, and with all else on a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from os import PathLike
from typing import TYPE_CHECKING

from optimplug.show.difference.keys import KeyChange
from optimplug.show.difference.plans import PlanDifference
from optimplug.show.difference.table import group_rows, key_rows
from optimplug.show.figures import as_svg, new_figure
from optimplug.show.page.document import document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "page"]

_MOST_NAMED = 20  # more names than this would not fit beside the picture
_STYLES = ("-", "--")  # of the lines of the first recipe, and of the second
_LOG_FROM = 30  # a ratio of the highest peak to the lowest that a linear axis does not show


def draw(found: PlanDifference, names: tuple[str, str], path: str | PathLike[str]) -> None:
    """Draw the rates under both recipes, over each other, for the groups where they differ.

    Args:
        found: what is drawn.
        names: what to call the two.
        path: the file to write; its ending says the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: the total number of steps is unknown, so there is nothing to draw.
    """
    _figure(found, names).savefig(path, dpi=150)


def page(found: PlanDifference, keys: Sequence[KeyChange], names: tuple[str, str]) -> str:
    """Return a page with the picture and both tables.

    Args:
        found: what is shown.
        keys: what the recipes themselves have otherwise.
        names: what to call the two.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: the total number of steps is unknown, so there is nothing to draw.
    """
    title = f"{names[0]} and {names[1]}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(found.summary)}</p>',
        as_svg(_figure(found, names)),
        *_table(["group", "what", *names], group_rows(found)),
        *_table(["key", *names], key_rows(keys)),
    ]
    return document(title, body)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield "<table><thead><tr>"
    yield "".join(f"<th>{escape(head)}</th>" for head in heads)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
    yield "</tbody></table>"


def _figure(found: PlanDifference, names: tuple[str, str]) -> Figure:
    if found.first.horizon.total_steps is None:
        raise ValueError("curves over the run need to know Horizon.total_steps")
    figure = new_figure("drawing a difference")
    from matplotlib import colormaps

    steps = found.steps
    axes = figure.add_subplot(xlabel="optimizer step", ylabel="learning rate", xlim=(0, steps[-1]))
    axes.spines[["top", "right"]].set_visible(False)
    shown = _lines(found)
    peaks, named = [], []
    for i, (rates_of_both, label) in enumerate(shown.items()):
        color = colormaps["viridis"](0.9 * i / max(1, len(shown) - 1))
        drawn = [
            axes.plot(steps, rates, line, color=color)[0]
            for rates, line in zip(rates_of_both, _STYLES, strict=True)
            if rates
        ]
        peaks += [max(rates) for rates in rates_of_both if rates]
        named += [(drawn[0], label)] if i < _MOST_NAMED else []
    if not shown:
        axes.text(0.5, 0.5, "the rates are the same", ha="center", transform=axes.transAxes)
        return figure
    if min(peaks) > 0 and max(peaks) > _LOG_FROM * min(peaks):
        axes.set_yscale("log")
    for name, line in zip(names, _STYLES, strict=True):
        named += [(axes.plot([], [], line, color="0.3")[0], name)]
    hidden = len(shown) - _MOST_NAMED
    more = f"and {hidden} more" if hidden > 0 else None
    legend = figure.legend(
        [line for line, _ in named],
        [" "] * len(named),
        loc="outside right upper",
        fontsize=7,
        frameon=False,
        title=more,
    )
    # As labels of lines, names such as "_fc" would be left out, and a "$" would begin a formula.
    for text, (_, name) in zip(legend.get_texts(), named, strict=True):
        text.set(text=name, parse_math=False)
    return figure


def _lines(found: PlanDifference) -> dict[tuple[tuple[float, ...], tuple[float, ...]], str]:
    """Return the rates under both recipes, where they differ, with the groups that have them."""
    names: dict[tuple[tuple[float, ...], tuple[float, ...]], list[str]] = {}
    for each in found.groups:
        before, after = (tuple(side.rates(found.steps)) for side in (each.before, each.after))
        if before != after:
            names.setdefault((before, after), []).append(each.name)
    return {
        rates: f"{of[0]} (and {len(of) - 1} more)" if len(of) > 1 else of[0]
        for rates, of in names.items()
    }
