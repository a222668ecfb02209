"""Plan: what a recipe will do to a model, before it does it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from optimplug import plot
from optimplug.recipe.curve import Curve
from optimplug.recipe.durations import Horizon
from optimplug.recipe.groups import Group as ParameterGroup
from optimplug.recipe.groups import Grouping
from optimplug.recipe.scheduler import Timetable

__all__ = ["Plan"]

_WIDTH = 10_000  # as text, the table is as wide as it needs
_POINTS = 2000  # enough for a curve on paper; the phases' own boundaries are added


@dataclass(frozen=True)
class Plan:
    """The outcome of a recipe on a model: who gets which settings, and lr over time.

    Print it for a table; :meth:`plot` draws it; :meth:`to_dict` gives it to a program.
    """

    optimizer: str
    settings: Mapping[str, Any]
    """The hyperparameters that the recipe gives to the whole optimizer."""
    defaults: Mapping[str, Any]
    """The same, with the optimizer's own defaults."""
    grouping: Grouping
    timetable: Timetable
    horizon: Horizon

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The parameter groups, in the optimizer's order."""
        return self.grouping.groups

    @property
    def curve(self) -> Curve:
        """The factor on lr over time, of the groups that have no schedule of their own."""
        return self.timetable.shared["lr"]

    def curve_of(self, group: ParameterGroup) -> Curve:
        """Return the factor on lr over time that a group follows."""
        return self.timetable.tracks(group.schedule)["lr"]

    def lr(self, group: ParameterGroup, t: int) -> float:
        """Return a group's rate after ``t`` updates, the one that update ``t + 1`` will use.

        A plateau is taken not to lower it: no metric is known yet.
        """
        return group.lr * self.curve_of(group)(t)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {
            "optimizer": {"name": self.optimizer, **self.settings},
            "total_steps": self.horizon.total_steps,
            "steps_per_epoch": self.horizon.steps_per_epoch,
            "groups": [
                {
                    "name": group.name,
                    "tensors": len(group.parameters),
                    "parameters": group.numel,
                    "lr": dict(zip(("start", "peak", "end"), rates, strict=True)),
                    "settings": {k: v for k, v in group.settings.items() if k != "lr"},
                    "rules": [f"groups[{i}]" for i in group.rules],
                    "members": list(group.parameters),
                }
                for group, rates in zip(self.groups, self._rates(), strict=True)
            ],
            "frozen": list(self.grouping.frozen),
            "phases": [
                {"name": phase.name, "start": phase.start, "steps": phase.steps}
                for phase in self.curve.phases
            ],
        }

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw lr over time for every group into a PNG, SVG or PDF file.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ValueError: the total number of steps is unknown, so there is nothing to draw.
        """
        steps = self._times()
        plot.draw_curves(
            path,
            steps,
            {group.name: [self.lr(group, t) for t in steps] for group in self.groups},
            [(phase.name, phase.start) for phase in self.curve.phases],
        )

    def _times(self) -> list[int]:
        total = self.horizon.total_steps
        if total is None:
            raise ValueError("a curve over the run needs to know Horizon.total_steps")
        sampled = {round(i * total / _POINTS) for i in range(_POINTS + 1)}
        return sorted(sampled | {phase.start for phase in self.curve.phases})

    def _rates(self) -> list[tuple[float, float, float]]:
        """Return each group's rate at the first update, at its peak, and after the last update."""
        curves = [self.curve_of(group) for group in self.groups]
        factors = {id(c): self._factors(c) for c in {id(c): c for c in curves}.values()}
        return [
            (group.lr * start, group.lr * peak, group.lr * end)
            for group, (start, peak, end) in zip(
                self.groups, (factors[id(c)] for c in curves), strict=True
            )
        ]

    def _factors(self, curve: Curve) -> tuple[float, float, float]:
        """Return the factor on lr at the first update, at its peak, and after the last update."""
        known = self.horizon.total_steps is not None
        factors = [curve(t) for t in (self._times() if known else range(curve.end + 1))]
        return factors[0], max(factors), factors[-1]

    def __rich__(self) -> RenderableType:
        return Group(self._table(), *self._notes())

    def _table(self) -> Table:
        others = sorted({key for group in self.groups for key in group.settings if key != "lr"})
        table = Table(box=box.SIMPLE_HEAD, title=self._title(), title_justify="left")
        table.add_column("group", overflow="fold", min_width=16)
        columns = ["tensors", "parameters", "lr start", "peak", "end", *others]
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("rules")
        for group, rates in zip(self.groups, self._rates(), strict=True):
            table.add_row(
                group.name,
                str(len(group.parameters)),
                f"{group.numel:,}",
                *(f"{rate:.3g}" for rate in rates),
                *(str(group.settings.get(key, self.defaults.get(key))) for key in others),
                ", ".join(map(str, group.rules)),
            )
        return table

    def _title(self) -> str:
        given = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        total = self.horizon.total_steps
        run = f"{total:,} steps" if total is not None else "unknown number of steps"
        return f"{self.optimizer}({given}), {run}"

    def _notes(self) -> list[Text]:
        numel = sum(group.numel for group in self.groups)
        tensors = sum(len(group.parameters) for group in self.groups)
        notes = [
            f"{len(self.groups)} groups, {tensors} tensors, {numel:,} parameters to train; "
            f"rules are counted from 0; end is after the last update"
        ]
        if self.grouping.frozen:
            size = sum(p.numel() for p in self.grouping.frozen.values())
            notes.append(f"frozen: {len(self.grouping.frozen)} tensors, {size:,} parameters")
        for phase in self.curve.phases:
            notes.append(f"steps {phase.start:,} to {phase.start + phase.steps:,}: {phase.name}")
        return [Text(f"  {note}") for note in notes]

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
        console.print(self)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
