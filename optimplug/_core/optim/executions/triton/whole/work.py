"""The lines of a kernel that lead from what stands in memory to some values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from optimplug._core.optim.executions.ops import OPERATIONS
from optimplug._core.optim.executions.passes.cut import MEANS, Cut
from optimplug._core.optim.executions.program import Argument, Constant, Input, Result, Scalar
from optimplug._core.optim.executions.triton.columns import Columns, step_text

__all__ = ["PLACES", "Stored", "Work"]

PLACES = {"row": "r", "column": "c", "plane": "b"}
"""By the kind of a value, the variable that says which of its elements a kernel works on."""
_LENGTHS = {"row": "rows", "column": "columns", "plane": "B"}
"""The variable that says how many it has."""


@dataclass(frozen=True)
class Stored:
    """What is kept between kernels, in scratch memory: totals, and means of means."""

    cut: Cut
    columns: Columns
    steps: tuple[int, ...]
    """Those whose results it is."""

    @classmethod
    def of(cls, cut: Cut, columns: Columns) -> Stored:
        """Return that of a program."""
        steps = cut.steps
        found = (i for i in steps if cut.is_reduction(i) or steps[i].operation in MEANS)
        return cls(cut, columns, tuple(found))

    def source(self, step: int) -> str:
        """Return where the parts of a result stand."""
        return f"scratch + tl.load(spots + {2 * self.steps.index(step)})"

    def result(self, step: int) -> str:
        """Return where the result of a step stands."""
        return f"scratch + tl.load(spots + {2 * self.steps.index(step) + 1})"


@dataclass(frozen=True)
class Work:
    """What leads to some values.

    A number has two variables: ``n5`` and ``d_lr`` are float64, ``t5`` and ``k_lr`` of the type of
    the arithmetic.
    """

    stored: Stored
    ends: Sequence[Argument]
    apart: Sequence[int] = ()
    """Stored steps that the kernel itself computes, so that they are not to be loaded."""

    @cached_property
    def _found(self) -> tuple[list[int], list[Argument]]:
        """The steps to be computed, and what they begin with."""
        cut, stored = self.stored.cut, self.stored.steps
        steps: set[int] = set()
        given: dict[Argument, None] = {}
        todo = [*self.ends]
        while todo:
            a = todo.pop()
            if not isinstance(a, Result) or a.step in stored:
                given[a] = None
            elif a.step not in steps:
                steps.add(a.step)
                if cut.steps[a.step].operation != "size":
                    todo.extend(cut.steps[a.step].arguments)
        return sorted(steps), list(given)

    @property
    def inputs(self) -> list[str]:
        """The operands of a tensor's size that are read."""
        names = [a.name for a in self._found[1] if isinstance(a, Input)]
        return [n for n in self.stored.columns.operands if n in names]

    def lines(self, kind: str) -> list[str]:
        """Return the lines that load and compute all values of a kind."""
        return [*self._loads(kind), *self.steps(kind)]

    def steps(self, kind: str) -> list[str]:
        """Return the lines that compute values of a kind."""
        cut, work = self.stored.cut, self.stored.columns.work
        own = [i for i in self._found[0] if cut.kinds[i] == kind]
        if kind != "number":
            return [f"t{i} = {step_text(cut.steps[i], work)}" for i in own]
        found = []
        for i in own:
            form = _NUMBER_FORMS[cut.steps[i].operation]
            found += [
                f"n{i} = {form.format(*map(self.number, cut.steps[i].arguments))}",
                f"t{i} = n{i}.to({work})",
            ]
        return found

    def number(self, argument: Argument) -> str:
        """Return a number as an expression in float64."""
        match argument:
            case Scalar(name):
                return f"d_{name}"
            case Result(step):
                return f"n{step}"
            case Constant(value):
                return f"tl.full((), {value!r}, tl.float64)"
            case Input(name):  # that of a size, whose form has no place for it
                return name

    def _loads(self, kind: str) -> list[str]:
        """Return the lines that load values of a kind."""
        given = [a for a in self._found[1] if self.stored.cut.kind(a) == kind]
        return [line for a in sorted(given, key=str) for line in self._load(a, kind)]

    def _load(self, argument: Argument, kind: str) -> list[str]:
        cut, columns, work = self.stored.cut, self.stored.columns, self.stored.columns.work
        place, length = PLACES.get(kind, "i"), _LENGTHS.get(kind, "size")
        match argument:
            case Scalar(name):
                number = f"tl.load(scalars + {cut.program.coefficients.index(name)})"
                return [f"d_{name} = {number}", f"k_{name} = d_{name}.to({work})"]
            case Input(name) if kind == "full":
                return [columns.load(name)]
            case Input(name):
                return [columns.load(name, place, length, "False")]
            case Result(step) if step not in self.apart:
                at = self.stored.result(step)
                if kind == "number":
                    return [f"n{step} = tl.load({at})", f"t{step} = n{step}.to({work})"]
                found = f"tl.load({at} + {place}, mask={place} < {length}, other=0)"
                return [f"t{step} = {found}.to({work})"]
            case _:
                return []


_NUMBER_FORMS = {
    **{
        name: OPERATIONS[name].in_triton or ""
        for name in ("neg", "add", "mul", "div", "reciprocal", "sqrt", "maximum", "minimum")
    },
    "where_positive": "tl.where({0} > 0, {0}, {1})",
    "size": "elements_of.to(tl.float64)",
}
"""What numbers go through, which are float64 whatever the tensors are; see :class:`.Numbers`."""
