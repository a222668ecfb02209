"""A plan as a table: in colours in a terminal, as plain text, or in a notebook."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, Group
from rich.table import Table
from rich.text import Text

from optimplug._core.optim.memory import Memory
from optimplug.recipe.plan import Plan, Rates
from optimplug.show.printed import printed
from optimplug.show.rows import Row, rows_of, settings_shown
from optimplug.show.summary import bytes_cell, summary, title

__all__ = ["PlanTable"]

_WIDTH = 80  # of the text of a folded table: files and pipes have no width of their own
_WIDE = 10_000
_LEAST_NAME = 20  # columns for names, which are folded: in fewer, nobody could read them
_LEAST_SETTING = 12
_COUNTED = ("tensors", "parameters", "lr start", "peak", "end")
# "encoder.", "layer.0 - layer.11/", "weight", and at the least a letter.
_PART = re.compile(r"\w+(?:\.\d+\b)?(?: - (?:\w+\.)?\d+\b)?[./]?|.", re.DOTALL)


class _Column(NamedTuple):
    head: str
    cells: list[str]
    justify: Any = "right"

    @property
    def width(self) -> int:
        lines = (line for text in (self.head, *self.cells) for line in text.split("\n"))
        return max(map(len, lines))


class PlanTable:
    """A plan with a row for each group, notes below, and what it takes.

    Where groups of several layers differ in nothing but rates that only rise, or only fall, they
    are one row: tensors, parameters and bytes are those of all, and below the rates of the first
    layer stand those of the last. As text it is 80 columns wide. Print it, or let a notebook show
    it.

    Args:
        plan: what is shown.
        unfold: show every group in a row, with the rules that set something in it, and name all
            that is frozen, in as many columns as that takes.
    """

    def __init__(self, plan: Plan, unfold: bool = False) -> None:
        self._plan = plan
        self._unfold = unfold
        self._rows = rows_of(plan, unfold)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        yield self._whole(options.max_width)

    def __str__(self) -> str:
        """Return it without colours, and without the blanks that fill up lines."""
        # Sentences are left whole, so that a search finds them; only the tables are cut to size.
        return printed(self._whole(_WIDE if self._unfold else _WIDTH))

    def _repr_html_(self) -> str:
        columns = [_Column("group", [row.name for row in self._rows]), *self._columns()]
        heads = "".join(f"<th>{_html(column.head)}</th>" for column in columns)
        rows = zip(*(column.cells for column in columns), strict=True)
        cells = ("".join(f"<td>{_html(text)}</td>" for text in row) for row in rows)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        notes = "".join(
            f"<div>{escape(line)}</div>" for line in (*self._notes(), *self._warnings())
        )
        return (
            f"<div><strong>{escape(title(self._plan))}</strong><table><thead><tr>{heads}</tr>"
            f"</thead><tbody>{body}</tbody></table>{notes}</div>"
        )

    def _whole(self, width: int) -> Group:
        notes = map(Text, self._notes())
        warnings = (Text(warning, style="yellow") for warning in self._warnings())
        heading = Text(f"{title(self._plan)}\n")
        return Group(
            heading, self._table(width), Text(), *notes, Text(), self._memory(width), *warnings
        )

    def _table(self, width: int) -> Table:
        longest = max(len(row.name) for row in self._rows)
        columns = self._columns()
        for gap in (3, 2, 1):
            room = width - _width(columns, gap)
            if room >= min(longest, _LEAST_NAME):
                break
        else:  # then settings stand below each other, in one column
            free = width - _width(columns[: len(_COUNTED)], gap) - gap
            parts = (part for row in self._rows for part in re.findall(_PART, row.name))
            room = min(max(_LEAST_NAME, *map(len, parts)), free - _LEAST_SETTING)
            columns = self._columns(stacked=max(_LEAST_SETTING, free - max(_LEAST_NAME, room)))
            room = max(_LEAST_NAME, width - _width(columns, gap))
        names = _Column(
            "group", ["\n".join(_wrapped(row.name, room)) for row in self._rows], "left"
        )
        return _grid([names, *columns], gap)

    def _columns(self, stacked: int = 0) -> list[_Column]:
        """Return all columns but that of the names.

        Args:
            stacked: if not 0, settings stand below each other in one column, of this width.
        """
        rows = self._rows
        ends = [_ends(row.first.rates, row.last.rates) for row in rows]
        counts = [f"{row.numel:,}" for row in rows]
        dotted = [f"{n}\n..." if "\n" in of[1] else n for n, of in zip(counts, ends, strict=True)]
        rates = zip(_COUNTED[2:], zip(*ends, strict=True), strict=True)
        keys = settings_shown(self._plan)
        settings = [
            _Column(key.replace("_", "_\n"), [_cell(row.first.settings.get(key)) for row in rows])
            for key in keys
        ]
        if stacked:
            texts = ["\n".join(_stacked(row, stacked)) for row in rows]
            settings = [_Column("settings", texts, "left")]
        rules = _Column(
            "rules", [", ".join(map(str, row.first.group.rules)) for row in rows], "left"
        )
        return [
            _Column(_COUNTED[0], [str(row.tensors) for row in rows]),
            _Column(_COUNTED[1], dotted),
            *(_Column(head, list(cells)) for head, cells in rates),
            *settings,
            *([rules] if self._unfold else []),
        ]

    def _notes(self) -> Iterator[str]:
        yield from summary(self._plan, self._rows)
        if self._unfold:
            yield "rules are counted from 0"
            yield from (f"frozen: {name}" for name in self._plan.grouping.frozen)
        for names in self._plan.tied:
            yield f"tied: {' = '.join(names)}"

    def _warnings(self) -> Iterator[str]:
        yield from (f"warning: {warning}" for warning in self._plan.warnings)

    def _memory(self, width: int) -> Table:
        """Return the bytes of every row. The names come last, as they may be long."""
        plan = self._plan
        rows = [(row.name, list(map(bytes_cell, row.memory))) for row in self._rows]
        rows.append(("all groups", list(map(bytes_cell, plan.total_memory))))
        if plan.grouping.frozen:
            rows.append(("what is frozen", [bytes_cell(plan.frozen_bytes), "", ""]))
        columns = [
            _Column(head, [cells[i] for _, cells in rows]) for i, head in enumerate(Memory._fields)
        ]
        room = max(_LEAST_NAME, width - _width(columns, 3))
        names = ["\n".join(_wrapped(name, room)) for name, _ in rows]
        table = _grid([*columns, _Column("of (bytes)", names, "left")], 3)
        table.rows[len(self._rows) - 1].end_section = True
        return table


def _width(columns: Sequence[_Column], gap: int) -> int:
    """Return how wide columns are, with the gap that parts them from a further one."""
    return sum(column.width + gap for column in columns)


def _grid(columns: Sequence[_Column], gap: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for column in columns:
        # Wider than the terminal, it has names cut once more, and numbers stay whole.
        is_text = column.justify == "left"
        table.add_column(column.head, justify=column.justify, no_wrap=not is_text, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        # As Text, or rich would take "[bold]" in a name for markup.
        table.add_row(*map(Text, cells))
    return table


def _ends(first: Rates, last: Rates) -> list[str]:
    """Return the rates of a row; of several layers, those of the last below those of the first."""
    low, high = ([f"{rate:.3g}" for rate in rates] for rates in (first, last))
    return low if low == high else ["\n".join(ends) for ends in zip(low, high, strict=True)]


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _stacked(row: Row, width: int) -> Iterator[str]:
    """Write as lines what a rule has set, and the weight decay: the rest is the optimizer's."""
    for key, value in row.first.settings.items():
        if key in row.first.group.settings or key == "weight_decay":
            yield from textwrap.wrap(f"{key} {_cell(value)}", width)


def _wrapped(name: str, width: int) -> Iterator[str]:
    """Cut a name into lines, where parts of it end; layers of a row stay together."""
    line = ""
    for part in re.findall(_PART, name):
        if line and len(line) + len(part) > width:
            yield line
            line = ""
        line += part
        while len(line) > width:
            yield line[:width]
            line = line[width:]
    yield line


def _html(text: str) -> str:
    return escape(text).replace("\n", "<br>")
