"""A plan as one HTML page that needs nothing else: table, curves, and a tooltip for each group."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from optimplug.show.page.chart import draw, shade_color

__all__ = ["render"]


def render(
    plan: Mapping[str, Any],
    title: str,
    notes: Sequence[str],
    steps: Sequence[int],
    curves: Sequence[Sequence[float]],
    shades: Sequence[float],
) -> str:
    """Return the page.

    Whatever the recipe or the model named is escaped, and the page's policy lets no script run but
    its own, and nothing be fetched.

    Args:
        plan: what :meth:`optimplug.recipe.Plan.to_dict` gives.
        title: the heading.
        notes: lines that stand below it.
        steps: where the curves were computed; none if there are no curves.
        curves: the learning rates of each group at these steps.
        shades: each group's place between the bottom of the model (0) and its top (1).
    """
    script = files(__package__).joinpath("page.js").read_text(encoding="utf-8")
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    colors = [shade_color(shade) for shade in shades]
    phases = [(phase["name"], phase["start"]) for phase in plan["phases"]]
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="warning">{escape(_warning(w))}</p>' for w in plan["warnings"]),
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        draw(steps, curves, colors, phases) if steps else "",
        *_table(plan["groups"], colors),
        *_list("Frozen", plan["frozen"]),
        *_list("Tied", [" = ".join(names) for names in plan["tied"]]),
        *(_about(i, group) for i, group in enumerate(plan["groups"])),
        '<div id="tip" role="tooltip"></div>',
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style></head><body>",
            *body,
            f"<script>{script}</script></body></html>",
            "",
        ]
    )


def _warning(warning: Mapping[str, str]) -> str:
    return f"{warning['path']}: {warning['message']}"


def _table(groups: Sequence[Mapping[str, Any]], colors: Sequence[str]) -> Iterator[str]:
    others = sorted({key for group in groups for key in group["settings"]} - {"weight_decay"})
    columns = ["tensors", "parameters", "lr start", "peak", "end", "weight_decay", *others, "rules"]
    yield "<table><thead><tr><th>group</th>"
    yield "".join(f"<th>{escape(column)}</th>" for column in columns)
    yield "</tr></thead><tbody>"
    for i, (group, color) in enumerate(zip(groups, colors, strict=True)):
        cells = [
            group["tensors"],
            f"{group['parameters']:,}",
            *(f"{group['lr'][when]:.3g}" for when in ("start", "peak", "end")),
            _cell(group["weight_decay"]),
            *(_cell(group["settings"].get(key)) for key in others),
            ", ".join(re.sub(r"groups\[(\d+)\]", r"\1", rule) for rule in group["rules"]),
        ]
        dot = f'<span class="dot" style="background:{color}"></span>'
        yield f'<tr data-group="{i}" tabindex="0"><td>{dot}{escape(group["name"])}</td>'
        yield "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        yield "</tr>"
    yield "</tbody></table>"


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _about(i: int, group: Mapping[str, Any]) -> str:
    """Return what the tooltip of a group says, out of sight until then."""
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
