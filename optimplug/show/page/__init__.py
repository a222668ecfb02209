"""A plan as one HTML page that needs nothing else: curves, a table, and what a group holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from optimplug._core.optim.memory import Memory
from optimplug.recipe.plan import Plan
from optimplug.show.page.chart import draw, shade_style
from optimplug.show.page.document import document
from optimplug.show.pictures import pictures
from optimplug.show.rows import rows_of
from optimplug.show.summary import bytes_cell, summary, title

__all__ = ["render"]

_POINTS = 240  # one for four pixels of the chart, as every group has several curves in the page


def render(plan: Plan) -> str:
    """Return the page.

    Whatever the recipe or the model named is escaped, and the page's policy lets no script run but
    its own, and nothing be fetched.

    Args:
        plan: what is shown.
    """
    content = plan.to_dict()
    styles = [shade_style(shade) for shade in plan.shades()]
    charts = list(_charts(plan, styles))
    body = [
        f"<header><h1>{escape(title(plan))}</h1>",
        *_tools([name for name, _ in charts], len(content["groups"])),
        *(chart for _, chart in charts),
        '</header><main id="pane">',
        *(f'<p class="warning">{escape(_warning(w))}</p>' for w in content["warnings"]),
        *_table(content, styles),
        '<p id="none" class="note" hidden>no group has these words in its name</p>',
        *(f'<p class="note">{escape(note)}</p>' for note in _notes(plan)),
        *_list("Frozen", content["frozen"]),
        *_list("Tied", [" = ".join(names) for names in content["tied"]]),
        "</main>",
        *(_about(i, group) for i, group in enumerate(content["groups"])),
        '<div id="tip" role="tooltip"></div>',
    ]
    return document(title(plan), body, script="page.js")


def _charts(plan: Plan, styles: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give a picture for each hyperparameter that is drawn, with its name."""
    steps = plan.sample(_POINTS)
    if steps[-1] == 0:  # neither the run nor any phase has a length, so there is no time to draw
        return
    held = list(map(plan.frozen_until, plan.groups))
    phases = [(phase.name, phase.start) for phase in plan.curve.phases]
    for name, traces, _ in pictures(plan, steps):
        of_lr = name == "lr"  # the phases are those of its schedule, and freezing undoes it alone
        none = [0] * len(held)
        rest = (phases, held) if of_lr else ([], none)
        yield name, draw(name, steps, traces, styles, *rest)


def _tools(names: Sequence[str], count: int) -> Iterator[str]:
    """Give what chooses the picture, and what finds groups."""
    yield '<div class="tools"><div role="radiogroup" aria-label="picture">'
    for i, name in enumerate(names if len(names) > 1 else ()):
        checked = "" if i else " checked"
        value = f'type="radio" name="picture" value="{escape(name)}"'
        yield f"<label><input {value}{checked}>{escape(name)}</label>"
    yield '</div><label class="find">find <input id="find" type="search" '
    yield 'placeholder="words of a name" autocomplete="off"></label>'
    yield f'<output id="count">{count} groups</output></div>'


def _notes(plan: Plan) -> Iterator[str]:
    yield from summary(plan, rows_of(plan))
    yield "rules are counted from 0"


def _warning(warning: Mapping[str, str]) -> str:
    return f"{warning['path']}: {warning['message']}"


def _table(content: Mapping[str, Any], styles: Sequence[str]) -> Iterator[str]:
    groups = content["groups"]
    others = sorted({key for group in groups for key in group["settings"]} - {"weight_decay"})
    # What is asked for most comes first: a narrow page shows no more at once.
    columns = ["lr start", "peak", "end", "weight_decay", *others, "tensors", "parameters", "rules"]
    columns += [f"{part} (bytes)" for part in Memory._fields]
    yield "<table><thead><tr>"
    # Each is a button: a click, or Enter, sorts by it.
    yield "".join(
        f'<th scope="col"><button>{escape(column)}</button></th>' for column in ("group", *columns)
    )
    yield "</tr></thead><tbody>"
    for i, (group, style) in enumerate(zip(groups, styles, strict=True)):
        # tabindex: one row is reached with the keyboard, the arrows go to the others.
        dot = f'<span class="dot" style="{style}"></span>'
        tab = -1 if i else 0
        yield f'<tr data-group="{i}" tabindex="{tab}"><td>{dot}{_breakable(group["name"])}</td>'
        yield "".join(_cells(group, others))
        yield f"{_bytes_cells(group['memory'].values())}</tr>"
    yield "</tbody><tfoot>"
    memory = [content["memory"][part] for part in Memory._fields]
    rest = len(columns) - len(memory)
    yield f'<tr><td>all groups</td><td colspan="{rest}"></td>{_bytes_cells(memory)}</tr>'
    if content["frozen"]:
        size = _bytes_cells([content["memory"]["frozen"]])
        yield f'<tr><td>what is frozen</td><td colspan="{rest}"></td>{size}</tr>'
    yield "</tfoot></table>"


def _breakable(name: str) -> str:
    """Escape a name; a line may end after a dot or a slash in it."""
    return re.sub(r"([./])(?=.)", r"\1<wbr>", escape(name))


def _td(text: str, value: float | None = None) -> str:
    """Return a cell; with the number by which it is sorted, where the text is a rounded one."""
    number = "" if value is None else f' data-value="{value!r}"'
    return f"<td{number}>{escape(text)}</td>"


def _bytes_cells(sizes: Iterable[int | None]) -> str:
    return "".join(_td(bytes_cell(size)) for size in sizes)


def _cells(group: Mapping[str, Any], others: Sequence[str]) -> Iterator[str]:
    yield from (_td(f"{rate:.3g}", rate) for rate in group["lr"].values())
    yield from (_td(_cell(v)) for v in (group["weight_decay"], *map(group["settings"].get, others)))
    rules = (re.sub(r"groups\[(\d+)\]", r"\1", rule) for rule in group["rules"])
    yield from map(_td, (str(group["tensors"]), f"{group['parameters']:,}", ", ".join(rules)))


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _about(i: int, group: Mapping[str, Any]) -> str:
    """Return what the tooltip of a group shows. In the page itself it is hidden."""
    rates = ", ".join(f"{when} {rate:.3g}" for when, rate in group["lr"].items())
    count = f"{group['tensors']} tensors, {group['parameters']:,} parameters"
    members = "".join(f"<li>{escape(name)}</li>" for name in group["members"])
    return (
        f'<div class="about" id="about-{i}"><strong>{escape(group["name"])}</strong>'
        f"<div>lr: {rates}</div><div>{count}</div><ul>{members}</ul></div>"
    )


def _list(title: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        items = "".join(f"<li>{escape(name)}</li>" for name in names)
        yield f"<details><summary>{title}: {len(names)}</summary><ul>{items}</ul></details>"
