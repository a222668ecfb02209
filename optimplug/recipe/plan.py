"""Plan: what a recipe will do to a model, before it does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from optimplug._core.optim.memory import Memory, memory_of
from optimplug.errors import Problem
from optimplug.recipe.parameters.depth.depth import Layout
from optimplug.recipe.parameters.explain import Explanation, explain, plain
from optimplug.recipe.parameters.groups import Group, Grouping
from optimplug.recipe.resolve import Choice, Optimizers
from optimplug.recipe.schedule.curves import Curve, Phase
from optimplug.recipe.schedule.timeline import Curves, RunSchedule
from optimplug.recipe.text.durations import Horizon
from optimplug.recipe.text.schema.recipe import ResumeSpec
from optimplug.recipe.text.schema.rules import RuleSpec

if TYPE_CHECKING:
    from optimplug.show.table import PlanTable

__all__ = ["Plan", "Rates"]

_POINTS = 2000  # of a run, at which rates are computed; the starts of the phases are added
# The peak of a cycle is within its first turn. That may be much shorter than the distance between
# two points, so the first steps of each phase are looked at one by one.
_FIRST_STEPS = 5000


class Rates(NamedTuple):
    """A group's learning rate over a run: at its start, its highest, and at its end."""

    start: float
    peak: float
    end: float
    """After the last update."""


@dataclass(frozen=True)
class Plan:
    """What a recipe does to a model: which parameters get which settings, and lr over time.

    Print it for a table, which :meth:`table` gives with every row as well; :meth:`html` makes a
    page of it, :meth:`plot` a picture; :meth:`to_dict` gives it to a program.
    """

    optimizer: str
    settings: Mapping[str, Any]
    """The hyperparameters that the recipe gives to the whole optimizer."""
    optimizers: Optimizers
    """The recipe's optimizer, and those that it has for some parameters besides."""
    grouping: Grouping
    run_schedule: RunSchedule
    horizon: Horizon
    rules: Sequence[RuleSpec]
    """The recipe's rules, in order."""
    layout: Layout | None
    """The layers of the model, and the depth of every parameter; None where it has no layers."""
    memory: tuple[Memory, ...]
    """What each group takes, in the order of :attr:`groups`: its weights, gradients and state. The
    state of an optimizer that is not of optimplug.optim is not known."""
    absent: tuple[Problem, ...]
    """Families that the recipe names and the model lacks, which is no mistake."""
    warnings: tuple[Problem, ...]
    """Parts of the recipe that have no effect, or probably not the one that was meant."""
    resume: ResumeSpec
    """How the run goes on from a checkpoint."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The parameter groups, in the optimizer's order."""
        return self.grouping.groups

    @property
    def total_memory(self) -> Memory:
        """What all groups take together; frozen parameters have weights alone."""
        weights, gradients = (sum(of) for of in tuple(zip(*self.memory, strict=True))[:2])
        return Memory(weights, gradients, self.state_bytes)

    @property
    def frozen_bytes(self) -> int:
        """The bytes of the parameters that stay as they are for the whole run."""
        return memory_of(self.grouping.frozen.values(), None).weights

    @property
    def state_bytes(self) -> int | None:
        """How many bytes the optimizer's state has after its first step; None if not known."""
        known = [memory.state for memory in self.memory if memory.state is not None]
        return sum(known) if len(known) == len(self.memory) else None

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The hyperparameters of the recipe's optimizer, its own defaults included."""
        return self.optimizers.main.hyperparameters

    @property
    def rewarm_updates(self) -> int | None:
        """Over how many updates a rate climbs, where the run goes on; None where it does not.

        Curves do not show it: from where, and when, a checkpoint tells.
        """
        return None if self.resume.rewarm is None else self.resume.rewarm.steps(self.horizon)

    @property
    def depth(self) -> Mapping[str, int]:
        """The depth of every parameter by its name; empty where the model has no layers."""
        found = self.layout.depths if self.layout else {}
        return {name: depth.layer for name, depth in found.items()}

    @property
    def curve(self) -> Curve:
        """The factor on lr over time, of the groups that have no schedule of their own."""
        return self.run_schedule.shared["lr"]

    def curve_of(self, group: Group) -> Curve:
        """Return the factor on lr over time that a group follows."""
        return self.curves_of(group)["lr"]

    def curves_of(self, group: Group) -> Curves:
        """Return the factors over time that a group follows, by the hyperparameter."""
        return self.run_schedule.curves_of(group.schedule)

    def frozen_until(self, group: Group) -> int:
        """Return for how many updates a group stays as it is."""
        return self.run_schedule.frozen_until[group.freeze] if group.freeze else 0

    def lr(self, group: Group, t: int) -> float:
        """Return a group's rate after ``t`` updates, the one that update ``t + 1`` will use.

        ReduceLROnPlateau is assumed to leave it alone, as no metric is known yet.
        """
        return group.lr * self.curve_of(group)(t)

    def explain(self, name: str) -> Explanation:
        """Tell why a parameter has its settings: the rules in order, and what each did.

        Args:
            name: any of its names, if it is tied.

        Raises:
            ArgumentError: the model has no parameter of that name.
        """
        return explain(name, self.grouping, self.rules)

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """All names of each parameter that has several; groups list it by the first of them."""
        return tuple(m.names for m in self.grouping.parameters.values() if len(m.names) > 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, such as JSON has."""
        several = self.optimizers.are_several
        return {
            "optimizer": {"name": self.optimizer, **plain(self.settings)},
            **({"optimizers": list(map(_optimizer_dict, self.optimizers))} if several else {}),
            "total_steps": self.horizon.total_steps,
            "steps_per_epoch": self.horizon.steps_per_epoch,
            "groups": list(map(self._group_dict, self.groups, self.rates(), self.memory)),
            "frozen": list(self.grouping.frozen),
            "tied": [list(names) for names in self.tied],
            "resume": {"policy": self.resume.policy, "rewarm": self.rewarm_updates},
            "phases": [
                {"name": phase.name, "start": phase.start, "steps": phase.steps}
                for phase in self.curve.phases
            ],
            "layers": list(self.layout.heights) if self.layout else None,
            "state_bytes": self.state_bytes,
            "memory": {**self.total_memory._asdict(), "frozen": self.frozen_bytes},
            "absent": [each._asdict() for each in self.absent],
            "warnings": [each._asdict() for each in self.warnings],
        }

    def _group_dict(self, group: Group, rates: Rates, memory: Memory) -> dict[str, Any]:
        return {
            "name": group.name,
            "tensors": len(group.parameters),
            "parameters": group.numel,
            "memory": memory._asdict(),
            "lr": {"start": rates.start, "peak": rates.peak, "end": rates.end},
            "weight_decay": plain(self.setting(group, "weight_decay")),
            "settings": plain({k: v for k, v in group.settings.items() if k != "lr"}),
            "schedule": group.schedule and group.schedule.path,
            "frozen_until": group.freeze and self.run_schedule.frozen_until[group.freeze],
            "rules": [f"groups[{i}]" for i in group.rules],
            "members": list(group.parameters),
        }

    def setting(self, group: Group, key: str) -> Any:
        """Return a hyperparameter of a group, or None if its optimizer has no such one."""
        return group.settings.get(key, group.optimizer.hyperparameters.get(key))

    def rates(self) -> list[Rates]:
        """Return for each group the rate at the first update, the highest, and that at the end."""
        starts = {phase.start for phase in self._phases()}
        early = {t for s in starts for t in range(s, min(s + _FIRST_STEPS, self._length()))}
        traces = self.traces(sorted({*self.sample(_POINTS), *early}))
        return [Rates(trace[0], max(trace), trace[-1]) for trace in traces]

    def sample(self, points: int) -> list[int]:
        """Return steps at which to draw the rates: so many over the run, and where phases start."""
        length = self._length()
        evenly = {round(i * length / points) for i in range(points + 1)}
        return sorted(evenly | {phase.start for phase in self._phases()})

    def traces(self, steps: Sequence[int], of: str = "lr") -> list[list[float]]:
        """Return each group's values of a hyperparameter at these steps: learning rates.

        Of one that is several numbers (``betas``) it is the first. A group whose optimizer has no
        such number has none.
        """
        # Most groups share a curve, and curves cost more than products: each is computed once.
        factors: dict[int, list[float]] = {}
        found = []
        for group in self.groups:
            value, curve = _first(self.setting(group, of)), self.curves_of(group).get(of)
            if curve is not None and id(curve) not in factors:
                factors[id(curve)] = [curve(t) for t in steps]
            known = [1.0] * len(steps) if curve is None else factors[id(curve)]
            found.append([] if value is None else [value * factor for factor in known])
        return found

    def shades(self) -> list[float]:
        """Return how deep each group is in the model: 0 at its bottom, 1 at its top.

        It is the mean over the group's parameters. Where the model has no layers, groups are spread
        evenly, in their order.
        """
        depth = self.depth
        top = max(depth.values(), default=0)
        if top == 0:  # the model has no depths, or all are 0
            return [i / max(1, len(self.groups) - 1) for i in range(len(self.groups))]
        sums = [sum(depth[name] for name in group.parameters) for group in self.groups]
        return [
            total / len(group.parameters) / top
            for total, group in zip(sums, self.groups, strict=True)
        ]

    def _length(self) -> int:
        """Return the steps of the run, or, where that is unknown, of the phases."""
        total = self.horizon.total_steps
        return max(curve.end for curve in self._curves()) if total is None else total

    def _curves(self) -> list[Curve]:
        return [self.curve, *map(self.curve_of, self.groups)]

    def _phases(self) -> Iterator[Phase]:
        for curve in self._curves():
            yield from curve.phases

    # What shows a plan needs rich. It is imported when it is asked for, so that nothing that trains
    # has to load it.

    def table(self, unfold: bool = False) -> PlanTable:
        """Return the plan as a table, to be printed, or shown by a notebook.

        Args:
            unfold: a row for every group. Without it, groups of several layers are one row where
                they differ in nothing but rates that only rise, or only fall.
        """
        from optimplug.show.table import PlanTable

        return PlanTable(self, unfold)

    def html(self) -> str:
        """Return a page that shows the table and every group's lr over time, by itself.

        To point at a group lights up its curve and shows its parameters. Nothing is fetched.
        """
        from optimplug.show import page

        return page.render(self)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw lr over time into a PNG, SVG or PDF file; what else is scheduled; what is frozen.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ValueError: the total number of steps is unknown, so there is nothing to draw.
        """
        from optimplug.show import plot

        plot.draw(self, path)

    def __repr__(self) -> str:
        """Return it in a line; ``str`` is the table."""
        numel = sum(group.numel for group in self.groups)
        steps = self.horizon.total_steps
        run = "unknown number of" if steps is None else f"{steps:,}"
        size = self.total_memory.together
        memory = "" if size is None else f", {size:,} bytes with gradients and state"
        return (
            f"<Plan: {self.optimizer}, {len(self.groups)} groups, {numel:,} parameters{memory}, "
            f"{run} steps>"
        )

    def __rich__(self) -> Any:
        return self.table()

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the table."""
        return self.table()._repr_html_()


def _first(value: Any) -> float | None:
    """Return a number, or the first of several; None for what is no number."""
    number = value[0] if isinstance(value, tuple | list) and value else value
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return float(number) if is_number else None


def _optimizer_dict(choice: Choice) -> dict[str, Any]:
    return {"name": choice.name, **plain(choice.settings), "path": choice.path}
