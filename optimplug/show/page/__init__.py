"""A plan as one HTML page that needs nothing else: table, curves, and a tooltip for each group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from optimplug._core.optim.memory import Memory
from optimplug.recipe.plan import Plan
from optimplug.show.page.chart import draw, shade_color
from optimplug.show.page.document import document
from optimplug.show.summary import bytes_cell, summary, title

__all__ = ["render"]

_POINTS = 480  # one for two pixels of the chart, as every group has a curve in the page


def render(plan: Plan) -> str:
    """Return the page.

    Whatever the recipe or the model named is escaped, and the page's policy lets no script run but
    its own, and nothing be fetched.

    Args:
        plan: what is shown.
    """
    content = plan.to_dict()
    colors = [shade_color(shade) for shade in plan.shades()]
    body = [
        f"<h1>{escape(title(plan))}</h1>",
        *(f'<p class="warning">{escape(_warning(w))}</p>' for w in content["warnings"]),
        *(f'<p class="note">{escape(note)}</p>' for note in summary(plan)),
        _chart(plan, colors),
        *_table(content, colors),
        *_list("Frozen", content["frozen"]),
        *_list("Tied", [" = ".join(names) for names in content["tied"]]),
        *(_about(i, group) for i, group in enumerate(content["groups"])),
        '<div id="tip" role="tooltip"></div>',
    ]
    return document(title(plan), body, script="page.js")


def _chart(plan: Plan, colors: Sequence[str]) -> str:
    steps = plan.sample(_POINTS)
    if steps[-1] == 0:  # neither the run nor any phase has a length, so there is no time to draw
        return ""
    phases = [(phase.name, phase.start) for phase in plan.curve.phases]
    return draw(steps, plan.traces(steps), colors, phases)


def _warning(warning: Mapping[str, str]) -> str:
    return f"{warning['path']}: {warning['message']}"


def _table(content: Mapping[str, Any], colors: Sequence[str]) -> Iterator[str]:
    groups = content["groups"]
    others = sorted({key for group in groups for key in group["settings"]} - {"weight_decay"})
    columns = ["tensors", "parameters", "lr start", "peak", "end", "weight_decay", *others, "rules"]
    columns += [f"{part} (bytes)" for part in Memory._fields]
    yield "<table><thead><tr><th>group</th>"
    yield "".join(f"<th>{escape(column)}</th>" for column in columns)
    yield "</tr></thead><tbody>"
    for i, (group, color) in enumerate(zip(groups, colors, strict=True)):
        # tabindex: the tooltip can be reached with the keyboard too.
        dot = f'<span class="dot" style="background:{color}"></span>'
        yield f'<tr data-group="{i}" tabindex="0"><td>{dot}{escape(group["name"])}</td>'
        yield "".join(f"<td>{escape(str(cell))}</td>" for cell in _cells(group, others))
        yield f"{_bytes_cells(group['memory'].values())}</tr>"
    yield "</tbody><tfoot>"
    memory = [content["memory"][part] for part in Memory._fields]
    rest = len(columns) - len(memory)
    yield f'<tr><td>all groups</td><td colspan="{rest}"></td>{_bytes_cells(memory)}</tr>'
    if content["frozen"]:
        size = _bytes_cells([content["memory"]["frozen"]])
        yield f'<tr><td>what is frozen</td><td colspan="{rest}"></td>{size}</tr>'
    yield "</tfoot></table>"


def _bytes_cells(sizes: Iterable[int | None]) -> str:
    return "".join(f"<td>{bytes_cell(size)}</td>" for size in sizes)


def _cells(group: Mapping[str, Any], others: Sequence[str]) -> list[object]:
    return [
        group["tensors"],
        f"{group['parameters']:,}",
        *(f"{rate:.3g}" for rate in group["lr"].values()),
        _cell(group["weight_decay"]),
        *(_cell(group["settings"].get(key)) for key in others),
        ", ".join(re.sub(r"groups\[(\d+)\]", r"\1", rule) for rule in group["rules"]),
    ]


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
