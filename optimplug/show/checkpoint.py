"""What is in a checkpoint, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from optimplug.recipe.checkpoint.differences import comparable
from optimplug.recipe.checkpoint.kinds import is_bookkeeping, likely_class
from optimplug.recipe.checkpoint.resumption import in_words
from optimplug.recipe.checkpoint.saved import Saved, SavedGroup
from optimplug.recipe.checkpoint.whole import horizon_in, horizon_words
from optimplug.show.printed import printed

__all__ = ["CheckpointTable"]

_SHOWN = ("weight_decay", "betas", "momentum")


class CheckpointTable:
    """The state of one optimizer in a checkpoint: a row for each group, and notes below.

    Args:
        saved: the state.
        where: where it stands in the checkpoint; "" where it is all there is.
    """

    def __init__(self, saved: Saved, where: str = "") -> None:
        self._saved = saved
        self._where = where

    def __rich__(self) -> RenderableType:
        return Group(self._table(), *map(Text, self._notes()))

    def __str__(self) -> str:
        return printed(self)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        saved = self._saved
        return {
            "where": self._where,
            "optimplug": _text(saved.provenance.get("optimplug")),
            "recipe": _text(saved.provenance.get("recipe")),
            "update": saved.update,
            "horizon": horizon_words(horizon_in(saved)),
            "bytes": _bytes(saved),
            "groups": [
                {
                    "name": group.label(i),
                    "optimizer": likely_class(saved, group),
                    "names": None if group.names is None else list(group.names),
                    "lr": _plain(group.settings.get("lr")),
                    "settings": {
                        key: _plain(group.base(key))
                        for key in group.settings
                        if not is_bookkeeping(key)
                    },
                }
                for i, group in enumerate(saved.groups)
            ],
        }

    def _table(self) -> Table:
        title = f"{self._where}: " if self._where else ""
        update = self._saved.update
        at = "an unknown update" if update is None else f"update {update:,}"
        horizon = horizon_words(horizon_in(self._saved))
        of = f" of {horizon}" if horizon else ""
        table = Table(box=box.SIMPLE_HEAD, title=Text(f"{title}{at}{of}"), title_justify="left")
        others = [key for key in _SHOWN if any(key in g.settings for g in self._saved.groups)]
        table.add_column("group", overflow="fold", min_width=16)
        for column in ("tensors", "parameters", "optimizer", "lr", "lr now", *others, "bytes"):
            table.add_column(column, justify="right", no_wrap=True)
        for i, group in enumerate(self._saved.groups):
            table.add_row(*map(Text, self._row(i, group, others)))
        return table

    def _row(self, i: int, group: SavedGroup, others: list[str]) -> Iterator[str]:
        saved = self._saved
        kept = [saved.state.get(number, {}) for number in group.numbers]
        yield group.label(i)
        yield str(len(group.numbers))
        yield f"{sum(max(map(_numel, state.values()), default=0) for state in kept):,}"
        yield likely_class(saved, group)
        yield in_words(comparable(group.base("lr")))
        yield in_words(comparable(group.settings.get("lr")))
        yield from (
            in_words(comparable(group.base(k))) if k in group.settings else "" for k in others
        )
        yield f"{sum(_size(value) for state in kept for value in state.values()):,}"

    def _notes(self) -> Iterator[str]:
        saved = self._saved
        yield f"  optimizer state: {_bytes(saved):,} bytes"
        if not saved.are_named:
            yield "  it has no names of parameters: resuming goes by their order"
        if saved.is_ours:
            yield f"  schedule: {in_words((saved.schedule or {}).get('fingerprint'))}"
        version, recipe = (_text(saved.provenance.get(key)) for key in ("optimplug", "recipe"))
        if version:
            yield f"  saved by optimplug {version}"
        if recipe:
            yield "  recipe:"
            yield from (f"    {line}" for line in recipe.splitlines())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _plain(value: Any) -> Any:
    found = comparable(value)
    if isinstance(found, float) and found - found != 0:
        return str(found)  # infinity and NaN are no JSON
    return list(map(_plain, found)) if isinstance(found, tuple) else found


def _numel(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 0


def _size(value: Any) -> int:
    return value.nbytes if isinstance(value, Tensor) and not value.is_sparse else 0


def _bytes(saved: Saved) -> int:
    return sum(_size(value) for kept in saved.state.values() for value in kept.values())
