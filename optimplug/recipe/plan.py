"""Plan: what a recipe will do to a model, before it does it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from optimplug.errors import Problem
from optimplug.recipe.parameters.explain import Explanation, explain, plain
from optimplug.recipe.parameters.groups import Group as ParameterGroup
from optimplug.recipe.parameters.groups import Grouping
from optimplug.recipe.schedule.curves import Curve
from optimplug.recipe.schedule.timeline import RunSchedule
from optimplug.recipe.text.durations import Horizon
from optimplug.recipe.text.schema import RuleSpec
from optimplug.show import page, plot

__all__ = ["Plan"]

_WIDTH = 10_000  # as text, the table is as wide as it needs
_POINTS = 2000  # enough for a curve on paper; the phases' own boundaries are added
_FIRST = 5000  # steps of each phase that are all looked at: a cycle has its peak within the first
_PAGE_POINTS = 480  # a page shows one for two of its pixels, for every group


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
    run_schedule: RunSchedule
    horizon: Horizon
    rules: Sequence[RuleSpec]
    """The recipe's rules, in order."""
    depth: Mapping[str, int]
    """The depth of every parameter; empty where the model gives none."""
    state_bytes: int | None
    """The optimizer's state after a first step for every parameter; None where it is unknown,
    which it is for a class that is not of optimplug.optim."""
    warnings: tuple[Problem, ...]
    """What the recipe says without effect, or hardly with the one that was meant."""

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The parameter groups, in the optimizer's order."""
        return self.grouping.groups

    @property
    def curve(self) -> Curve:
        """The factor on lr over time, of the groups that have no schedule of their own."""
        return self.run_schedule.shared["lr"]

    def curve_of(self, group: ParameterGroup) -> Curve:
        """Return the factor on lr over time that a group follows."""
        return self.run_schedule.curves_of(group.schedule)["lr"]

    def lr(self, group: ParameterGroup, t: int) -> float:
        """Return a group's rate after ``t`` updates, the one that update ``t + 1`` will use.

        A plateau is taken not to lower it: no metric is known yet.
        """
        return group.lr * self.curve_of(group)(t)

    def explain(self, name: str) -> Explanation:
        """Tell why a parameter has its settings: the rules in order, and what each did.

        Args:
            name: any of its names, if it is tied.

        Raises:
            ArgumentError: the model has no parameter of that name.
        """
        return explain(name, self.grouping, self.rules, self.defaults)

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """The names of each parameter that has several; it stands in its group by the first."""
        return tuple(m.names for m in self.grouping.parameters.values() if len(m.names) > 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, such as JSON has."""
        return {
            "optimizer": {"name": self.optimizer, **plain(self.settings)},
            "total_steps": self.horizon.total_steps,
            "steps_per_epoch": self.horizon.steps_per_epoch,
            "groups": [
                {
                    "name": group.name,
                    "tensors": len(group.parameters),
                    "parameters": group.numel,
                    "lr": dict(zip(("start", "peak", "end"), rates, strict=True)),
                    "weight_decay": plain(self._setting(group, "weight_decay")),
                    "settings": plain({k: v for k, v in group.settings.items() if k != "lr"}),
                    "schedule": group.schedule and group.schedule.path,
                    "frozen_until": group.freeze and self.run_schedule.frozen_until[group.freeze],
                    "rules": [f"groups[{i}]" for i in group.rules],
                    "members": list(group.parameters),
                }
                for group, rates in zip(self.groups, self._rates(), strict=True)
            ],
            "frozen": list(self.grouping.frozen),
            "tied": [list(names) for names in self.tied],
            "phases": [
                {"name": phase.name, "start": phase.start, "steps": phase.steps}
                for phase in self.curve.phases
            ],
            "state_bytes": self.state_bytes,
            "warnings": [{"path": w.path, "message": w.message} for w in self.warnings],
        }

    def html(self) -> str:
        """Return a page that shows the table and every group's lr over time, by itself.

        To point at a group lights up its curve and shows its parameters. Nothing is fetched.
        """
        steps = self._times(_PAGE_POINTS) if self._length() else []
        return page.render(
            self.to_dict(),
            self._title(),
            list(self._summary()),
            steps,
            self._traces(steps),
            self._shades(),
        )

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw lr over time for every group into a PNG, SVG or PDF file.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ValueError: the total number of steps is unknown, so there is nothing to draw.
        """
        if self.horizon.total_steps is None:
            raise ValueError("a curve over the run needs to know Horizon.total_steps")
        steps = self._times(_POINTS)
        names = [group.name for group in self.groups]
        plot.draw_curves(
            path,
            steps,
            dict(zip(names, self._traces(steps), strict=True)),
            [(phase.name, phase.start) for phase in self.curve.phases],
            dict(zip(names, self._shades(), strict=True)),
        )

    def _length(self) -> int:
        """Return the steps of the run, or, where that is unknown, of the phases."""
        total = self.horizon.total_steps
        return max(curve.end for curve in self._curves()) if total is None else total

    def _times(self, points: int) -> list[int]:
        length = self._length()
        sampled = {round(i * length / points) for i in range(points + 1)}
        return sorted(sampled | {phase.start for c in self._curves() for phase in c.phases})

    def _curves(self) -> list[Curve]:
        return [self.curve, *map(self.curve_of, self.groups)]

    def _traces(self, steps: Sequence[int]) -> list[list[float]]:
        """Return each group's rates; a curve is computed once for all that follow it."""
        factors: dict[int, list[float]] = {}
        for curve in map(self.curve_of, self.groups):
            if id(curve) not in factors:
                factors[id(curve)] = [curve(t) for t in steps]
        return [
            [group.lr * factor for factor in factors[id(self.curve_of(group))]]
            for group in self.groups
        ]

    def _shades(self) -> list[float]:
        """Return where each group lies between bottom (0) and top (1), by its parameters' depth.

        Where the model gives no depth, it is the order of the groups.
        """
        top = max(self.depth.values(), default=0)
        if top == 0:
            return [i / max(1, len(self.groups) - 1) for i in range(len(self.groups))]
        sums = [sum(self.depth[name] for name in group.parameters) for group in self.groups]
        return [
            total / len(group.parameters) / top
            for total, group in zip(sums, self.groups, strict=True)
        ]

    def _rates(self) -> list[tuple[float, float, float]]:
        """Return each group's rate at the first update, at its peak, and after the last update."""
        starts = {phase.start for c in self._curves() for phase in c.phases}
        early = {t for s in starts for t in range(s, min(s + _FIRST, self._length()))}
        traces = self._traces(sorted({*self._times(_POINTS), *early}))
        return [(trace[0], max(trace), trace[-1]) for trace in traces]

    def __rich__(self) -> RenderableType:
        return Group(self._table(), *self._notes())

    def _table(self) -> Table:
        others = self._columns()
        table = Table(box=box.SIMPLE_HEAD, title=Text(self._title()), title_justify="left")
        table.add_column("group", overflow="fold", min_width=16)
        columns = ["tensors", "parameters", "lr start", "peak", "end", *others]
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("rules")
        for group, rates in zip(self.groups, self._rates(), strict=True):
            table.add_row(
                Text(group.name),  # a name is no markup
                str(len(group.parameters)),
                f"{group.numel:,}",
                *(f"{rate:.3g}" for rate in rates),
                *(Text(str(self._setting(group, key))) for key in others),
                ", ".join(map(str, group.rules)),
            )
        return table

    def _columns(self) -> list[str]:
        """Return the hyperparameters to show: what rules have set, and the weight decay."""
        found = {key for group in self.groups for key in group.settings if key != "lr"}
        return sorted(found | ({"weight_decay"} & self.defaults.keys()))

    def _setting(self, group: ParameterGroup, key: str) -> Any:
        return group.settings.get(key, self.defaults.get(key))

    def _title(self) -> str:
        given = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        total = self.horizon.total_steps
        run = f"{total:,} steps" if total is not None else "unknown number of steps"
        return f"{self.optimizer}({given}), {run}"

    def _summary(self) -> Iterator[str]:
        numel = sum(group.numel for group in self.groups)
        tensors = sum(len(group.parameters) for group in self.groups)
        yield (
            f"{len(self.groups)} groups, {tensors} tensors, {numel:,} parameters to train; "
            f"rules are counted from 0; end is after the last update"
        )
        yield f"optimizer state: {self._memory()}"
        if self.grouping.frozen:
            size = sum(p.numel() for p in self.grouping.frozen.values())
            yield f"frozen: {len(self.grouping.frozen)} tensors, {size:,} parameters"
        for where, curve in self._named_curves():
            for phase in curve.phases:
                steps = f"steps {phase.start:,} to {phase.start + phase.steps:,}"
                yield f"{where}{steps}: {phase.name}"
        for group in self.groups:
            if group.schedule is not None:
                yield f"{group.name} has the schedule of {group.schedule}"
            if group.freeze is not None:
                until = self.run_schedule.frozen_until[group.freeze]
                yield f"{group.name} is frozen until step {until:,}, by {group.freeze}"

    def _named_curves(self) -> Iterator[tuple[str, Curve]]:
        """Walk every curve, each with what tells it from that of lr for all."""
        for of, curve in self.run_schedule.shared.items():
            yield ("" if of == "lr" else f"{of}, "), curve
        for rule, curves in self.run_schedule.own.items():
            yield from ((f"{rule}, {of}, ", curve) for of, curve in curves.items())

    def _notes(self) -> Iterator[Text]:
        for line in self._summary():
            yield Text(f"  {line}")
        for name in self.grouping.frozen:
            yield Text(f"  frozen: {name}")
        for names in self.tied:
            yield Text(f"  tied: {' = '.join(names)}")
        for warning in self.warnings:
            yield Text(f"  warning: {warning}", style="yellow")

    def _memory(self) -> str:
        if self.state_bytes is None:
            return f"unknown, {self.optimizer} is not of optimplug.optim"
        return f"{self.state_bytes:,} bytes"

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
        console.print(self)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
