"""The differences of two recipes as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from optimplug.show.difference.keys import KeyChange
from optimplug.show.difference.plans import GroupDifference, PlanDifference
from optimplug.show.printed import printed

__all__ = ["group_rows", "key_rows", "keys_table", "plans_table"]


class _Printable:
    """What rich shows in a terminal, and plain text elsewhere."""

    def __init__(self, *parts: RenderableType) -> None:
        self._group = Group(*parts)

    def __rich__(self) -> RenderableType:
        return self._group

    def __str__(self) -> str:
        return printed(self._group)


def keys_table(changes: Sequence[KeyChange], names: tuple[str, str]) -> RenderableType:
    """Return a row for each key that two recipes have otherwise.

    Args:
        changes: what they have otherwise.
        names: what to call the two.
    """
    table = _table("key", *names)
    for row in key_rows(changes):
        table.add_row(*map(Text, row))
    return _Printable(table)


def key_rows(changes: Sequence[KeyChange]) -> list[list[str]]:
    """Return the cells of the same."""
    return [[each.path, _in_yaml(each.before), _in_yaml(each.after)] for each in changes]


def plans_table(found: PlanDifference, names: tuple[str, str]) -> RenderableType:
    """Return a few rows for each group for which two plans have anything otherwise.

    Groups for which the same is otherwise are one.
    """
    table = _table("group", "what", *names)
    for row in group_rows(found):
        table.add_row(*map(Text, row))
    return _Printable(table)


def group_rows(found: PlanDifference) -> list[list[str]]:
    """Return the cells of the same."""
    whole = [("the whole run", found.of_all)] if found.of_all else []
    rows = [(_label(groups), groups[0].changes) for groups in _alike(found.groups)]
    return [
        [
            label if i == 0 else "",
            change.what,
            _in_words(change.before),
            _in_words(change.after),
        ]
        for label, changes in [*whole, *rows]
        for i, change in enumerate(changes)
    ]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def _alike(groups: Sequence[GroupDifference]) -> list[list[GroupDifference]]:
    found: dict[str, list[GroupDifference]] = {}
    for group in groups:
        found.setdefault(repr(group.changes), []).append(group)
    return list(found.values())


def _label(groups: Sequence[GroupDifference]) -> str:
    tensors = sum(len(group.members) for group in groups)
    return f"{', '.join(group.name for group in groups)} ({tensors} tensor{'s' * (tensors > 1)})"


def _in_yaml(value: Any) -> str:
    if value is None:
        return ""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
