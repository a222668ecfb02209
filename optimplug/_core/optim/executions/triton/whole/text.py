"""A program for whole tensors as the text of Triton kernels.

It is cut into passes as for C (:mod:`optimplug._core.optim.executions.passes.cut`). What a program
of a pass has summed up stands in scratch memory, where a kernel that is the same for all rules adds
it up; what follows from these totals is small, and whoever has use for it computes it anew. So
every kernel is one launch for all tensors: the passes; after some, that for means of means, of
every plane; and one at the end for states with an element for each row or column, and for what the
rule measures.

Where a rule knows nothing of axes, a tensor is one row, and a part of it is read as by the kernel
of any other rule (:mod:`..source`). Else a part is some rows of some columns, whose means it takes
side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from optimplug._core.optim.executions.passes.cut import Cut
from optimplug._core.optim.executions.program import Argument, Scalar
from optimplug._core.optim.executions.text import indented
from optimplug._core.optim.executions.triton.columns import Columns, value_text
from optimplug._core.optim.executions.triton.whole.templates import (
    FLAT,
    HEAD,
    LAST,
    PLANES,
    TILES,
)
from optimplug._core.optim.executions.triton.whole.work import PLACES, Stored, Work

__all__ = ["ROWS", "WIDTH", "WholeText"]

ROWS, WIDTH = 8, 128
"""The rows and columns that a part with axes reads at once: a row's elements stand side by side."""


@dataclass(frozen=True)
class WholeText:
    """The kernels of one program."""

    cut: Cut
    columns: Columns

    def text(self) -> str:
        """Return all of them."""
        passes = [self._tiles(n) if self.cut.has_axes else self._flat(n) for n in self.levels]
        planes = [self._planes(level) for level in self.plane_levels]
        return "\n".join([*passes, *planes, *([self._last()] if self.has_last else [])])

    @property
    def levels(self) -> range:
        """The numbers of the passes."""
        return range(self.cut.passes)

    @cached_property
    def stored(self) -> Stored:
        """What is kept between kernels."""
        return Stored.of(self.cut, self.columns)

    @cached_property
    def plane_levels(self) -> list[int]:
        """The stages that take means of means."""
        return sorted(
            {self.cut.levels[i] for i in self.stored.steps if not self.cut.is_reduction(i)}
        )

    def totals(self, level: int) -> list[int]:
        """Return the steps that a pass finds the parts of."""
        return [
            i
            for i in self.stored.steps
            if self.cut.is_reduction(i) and self.cut.levels[i] == level + 1
        ]

    @cached_property
    def small(self) -> list[tuple[str, Argument]]:
        """The states that are smaller than a tensor, and what they change to."""
        outputs = self.cut.program.outputs
        return [(name, end) for name, end in outputs if self.cut.inputs[name] != "full"]

    @property
    def has_last(self) -> bool:
        """Whether something is left to do after the passes."""
        return bool(self.small or self.cut.program.measured)

    def _outputs(self, level: int) -> list[tuple[str, Argument]]:
        """Return what a pass writes: the last one everything, as none needs the old values then."""
        if level < self.cut.passes - 1:
            return []
        return [(n, end) for n, end in self.cut.program.outputs if self.cut.inputs[n] == "full"]

    def _flat(self, level: int) -> str:
        """Return a pass over tensors of which only totals are taken."""
        totals, outputs = self.totals(level), self._outputs(level)
        before = Work(self.stored, self._ends(level))
        numbers = before.lines("number")
        known = [line.partition(" = ")[0] for line in numbers]
        known += [f"to_{i}" for i in totals]
        body = [
            *map(self.columns.load, before.inputs),
            *before.steps("full"),
            *(f"tl.store(to_{i} + part, total({self._term(i)}, i, size, WHOLE))" for i in totals),
            *(self.columns.store(n, value_text(end, self.columns.work)) for n, end in outputs),
        ]
        return FLAT.format(
            level=level,
            head=self._head(),
            given=", ".join([*self.columns.addresses, *known]),
            places=indented(self.columns.places(), 4),
            body=indented(body, 4),
            numbers=indented([*numbers, *self._where(totals)], 4),
            every=" | ".join(self.columns.aligned),
        )

    def _tiles(self, level: int) -> str:
        """Return a pass over tensors of which means by rows and columns are known, or taken."""
        totals, outputs = self.totals(level), self._outputs(level)
        work = Work(self.stored, self._ends(level))
        kinds = {i: self.cut.kinds[i] for i in totals}
        sums = [i for i in totals if kinds[i] != "row"]
        before = [
            *work.lines("number"),
            *self._where(totals),
            *work.lines("plane"),
            *work.lines("column"),
            *(f"sum_{i} = tl.zeros((ROWS, WIDTH), {self.columns.work})" for i in sums),
        ]
        inside = [
            *work.lines("row"),
            *work.lines("full"),
            *(f"sum_{i} += tl.where(here, {self._term(i)}, 0.0)" for i in sums),
            *(
                f"tl.store(to_{i} + tile * rows + r, among({self._term(i)}, here), mask=r < rows)"
                for i in totals
                if kinds[i] == "row"
            ),
            *(self.columns.store(n, value_text(end, self.columns.work)) for n, end in outputs),
        ]
        after = [
            f"tl.store(to_{i} + part, total(sum_{i}, column, C, True))"
            if kinds[i] == "number"
            else f"tl.store(to_{i} + section * columns + c, down(sum_{i}), mask=c < columns)"
            for i in sums
        ]
        return TILES.format(
            level=level,
            head=self._head(),
            before=indented(before, 4),
            inside=indented(inside, 8),
            after=indented(after, 4),
        )

    def _planes(self, level: int) -> str:
        """Return the kernel that takes means of means, each of a plane."""
        steps = [
            i
            for i in self.stored.steps
            if self.cut.levels[i] == level and not self.cut.is_reduction(i)
        ]
        body: list[str] = []
        every = Work(self.stored, [self.cut.steps[i].arguments[0] for i in steps], apart=steps)
        for i in steps:
            of = self.cut.steps[i].arguments[0]
            kind = self.cut.kind(of)
            work = Work(self.stored, [of], apart=steps)
            length, limit = ("R", "rows") if kind == "row" else ("C", "columns")
            place = PLACES[kind]
            body += [
                *work.lines("plane"),
                f"sum_{i} = tl.zeros((BLOCK,), tl.float64)",
                f"for at in range(0, {length}, BLOCK):",
                "    j = at + tl.arange(0, BLOCK)",
                f"    {place} = tl.where(j < {length}, b * {length} + j, {limit})",
                *(f"    {line}" for line in work.lines(kind)),
                f"    sum_{i} += tl.where(j < {length}, ({self._term(i)}).to(tl.float64), 0.0)",
                f"found = quotient(tl.sum(sum_{i}, 0), {length}.to(tl.float64))",
                f"tl.store({self.stored.result(i)} + b, found)",
                f"t{i} = found.to({self.columns.work})",
            ]
        return PLANES.format(
            level=level,
            head=self._head(),
            numbers=indented(every.lines("number"), 4),
            body=indented(body, 4),
        )

    def _last(self) -> str:
        """Return the kernel that writes small states, and what is measured."""
        measured = self.cut.program.measured
        work = Work(self.stored, [*(end for _, end in self.small), *measured])
        body: list[str] = []
        kinds = [kind for kind in PLACES if kind in {self.cut.inputs[n] for n, _ in self.small}]
        for kind in kinds:
            own = [(name, end) for name, end in self.small if self.cut.inputs[name] == kind]
            for name, end in own:
                if self.cut.kind(end) != kind:
                    raise TypeError(f"{name!r} must become a value with an element for each {kind}")
            part = Work(self.stored, [end for _, end in own])
            length, limit = {"row": ("R", "rows"), "column": ("C", "columns")}[kind]
            place = PLACES[kind]
            body += [
                f"{place} = tl.where(j < {limit}, j, {limit})",
                f"b = tl.where(j < {limit}, j // tl.maximum({length}, 1), B)",
                *part.lines("plane"),
                *part.lines(kind),
                *(
                    self.columns.store(
                        name, value_text(end, self.columns.work), place, f"kept_{limit}", "False"
                    )
                    for name, end in own
                ),
            ]
        place = f"measured + tensor * {len(measured)}"
        body += [
            f"tl.store({place} + {n}, {work.number(end)}, mask=part == 0)"
            for n, end in enumerate(measured)
        ]
        return LAST.format(
            head=self._head(),
            numbers=indented(work.lines("number"), 4),
            body=indented(body, 4),
        )

    def _head(self) -> str:
        """Return what every kernel begins with: where the tensor of a program stands."""
        rows = [name for name in self.columns.dtypes if name != "g"]
        scalars = len(self.cut.program.coefficients)
        pointers = [f"at_{n} = tl.load(row + {2 + i})" for i, n in enumerate(rows)]
        return HEAD.format(
            width=2 + len(rows),
            spots=2 * len(self.stored.steps),
            scalars=scalars,
            pointers=indented(pointers, 4),
            work=self.columns.work,
        )

    def _ends(self, level: int) -> list[Argument]:
        ends = [self.cut.steps[i].arguments[0] for i in self.totals(level)]
        ends += [end for _, end in self._outputs(level)]
        return [*ends, Scalar("offset")] if self.columns.rule.codes else ends

    def _term(self, step: int) -> str:
        """Return what a total adds up."""
        value = value_text(self.cut.steps[step].arguments[0], self.columns.work)
        squares = self.cut.steps[step].operation in ("squares", "mean_of_squares")
        return f"{value} * {value}" if squares else value

    def _where(self, totals: Iterable[int]) -> list[str]:
        """Return the lines that say where parts of totals go."""
        return [f"to_{i} = {self.stored.source(i)}" for i in totals]
