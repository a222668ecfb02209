"""The schedulers as a table: what each does, and what a phase of a recipe says of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from optimplug.errors import ArgumentError, did_you_mean
from optimplug.optim import lr_scheduler
from optimplug.recipe.schedule.presets import PRESETS
from optimplug.recipe.schedule.vocabulary import preset_names, scheduler_names, vocabulary
from optimplug.recipe.text.schema.phases import PhaseSpec
from optimplug.show.printed import printed

__all__ = ["SchedulerRow", "SchedulerTable"]


@dataclass(frozen=True)
class SchedulerRow:
    """What a user must know of a scheduler, or of a preset, before choosing it."""

    name: str
    key: str | None
    """What a phase calls it by, ``name`` or ``preset``; None where no phase can: it is for code."""
    does: str
    required: tuple[str, ...]
    """The keys that a phase of it must have."""
    others: tuple[str, ...]
    """Those that it may have, beside ``for``, ``from``, ``every`` and ``of``, as every phase."""
    durations: tuple[str, ...]
    """Which of the keys take durations: ``6%``, ``2 epochs``, ``500``."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, such as JSON has."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}


_OF_EVERY = ("for", "from", "every", "of")


@dataclass(frozen=True)
class SchedulerTable:
    """A row for each scheduler and preset. Print it; :meth:`to_list` gives it to a program."""

    rows: Sequence[SchedulerRow]

    @classmethod
    def of(cls, pattern: str = "*") -> SchedulerTable:
        """Return the table of those whose names match a glob, in any case.

        Raises:
            ArgumentError: there are none.
        """
        rows = list(_rows())
        found = [row for row in rows if fnmatchcase(row.name.lower(), pattern.lower())]
        if not found:
            hint = did_you_mean(pattern.strip("*?"), [row.name for row in rows])
            raise ArgumentError(f"no scheduler {pattern!r}{hint}")
        return cls(found)

    def to_list(self) -> list[dict[str, Any]]:
        """Return it as plain values, such as JSON has."""
        return [row.to_dict() for row in self.rows]

    def __rich__(self) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("scheduler", no_wrap=True)
        table.add_column("does")
        table.add_column("in a phase of a recipe")
        for row in self.rows:
            table.add_row(*map(Text, [row.name, row.does, _phase(row)]))
        return table

    def __str__(self) -> str:
        return printed(self.__rich__())


def _phase(row: SchedulerRow) -> str:
    """Return what a phase says: ``by name; step_size (required, a duration), gamma``."""
    if row.key is None:
        return "none: it is for code alone"
    notes = {key: ["required"] for key in row.required}
    for key in row.durations:
        notes.setdefault(key, []).append("a duration")
    keys = [f"{k} ({', '.join(notes[k])})" if k in notes else k for k in row.required + row.others]
    return "; ".join([f"by {row.key}", *([", ".join(keys)] if keys else [])])


def _rows() -> Iterator[SchedulerRow]:
    in_recipes = scheduler_names()
    for name in lr_scheduler.__all__:
        cls = getattr(lr_scheduler, name)
        if name in in_recipes:
            yield _row(PhaseSpec.model_validate({"name": name}), "name", _first_line(cls))
        elif cls is not lr_scheduler.LRScheduler:  # the base of all does nothing by itself
            yield SchedulerRow(name, None, _first_line(cls), (), (), ())
    for name in preset_names():
        preset = PRESETS.get(name)
        does = _first_line(preset) if preset else "As ReduceLROnPlateau, by the Trainer's name."
        yield _row(PhaseSpec.model_validate({"preset": name}), "preset", does)


def _row(spec: PhaseSpec, key: str, does: str) -> SchedulerRow:
    known = vocabulary(spec)
    keys = [k for k in (*known.arguments, *known.keys) if k not in _OF_EVERY]
    others = [k for k in keys if k not in known.required]
    durations = [k for k in ("warmup",) if k in keys] + known.durations
    return SchedulerRow(
        name=spec.name or spec.preset or "",
        key=key,
        does=does,
        required=tuple(known.required),
        others=tuple(others),
        durations=tuple(durations),
    )


def _first_line(described: object) -> str:
    """Return what the docstring begins with; a preset returns the factor on the rate."""
    line = (inspect.getdoc(described) or "").partition("\n")[0].replace("``", "")
    return line.replace("Return ", "Scale the rate by ") if inspect.isfunction(described) else line
