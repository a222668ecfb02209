"""The passes of a program for whole tensors, as C."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from optimplug._core.optim.executions.c_source import c_name
from optimplug._core.optim.executions.passes.part import Part, lines, start, step_of
from optimplug._core.optim.executions.passes.templates import BY_AXES, FLAT
from optimplug._core.optim.executions.program import Argument, Input

__all__ = ["Loop"]


@dataclass(frozen=True)
class Loop(Part):
    """The function that does one pass over one chunk."""

    level: int

    def text(self) -> str:
        """Return the function."""
        axes = self.cut.has_axes
        totals = [*(f"sum{i}" for i in self.sums), *(f"row{i}" for i in self.rows)]
        reduction = f"#pragma omp simd reduction(+ : {', '.join(totals)})\n" if totals else ""
        everywhere = self.cut.sums()
        return (BY_AXES if axes else FLAT).format(
            level=self.level,
            parameters=self.parameters(),
            numbers=lines(4, self.numbers(self.given_here)),
            sums=lines(4, (f"double sum{i} = 0;" for i in self.sums)),
            before_plane=lines(8, self._before_plane()),
            before_row=lines(12, self._before_row()),
            reduction=reduction,
            body=lines(16 if axes else 8, self._body()),
            after_row=lines(12, (f"a->s{i}[row] = row{i} / z->C;" for i in self.rows)),
            after_plane=lines(8, map(_COLUMN_MEANS.format, self.columns)),
            parts=lines(
                4,
                (
                    f"a->parts[chunk * {len(everywhere)} + {everywhere.index(i)}] = sum{i};"
                    for i in self.sums
                ),
            ),
        )

    @cached_property
    def sums(self) -> list[int]:
        """The steps that it sums up over all elements."""
        return self.cut.sums(self.level)

    @cached_property
    def rows(self) -> list[int]:
        """The steps that it takes means for, of each row."""
        return self.cut.means("row", self.level)

    @cached_property
    def columns(self) -> list[int]:
        """The same, of each column."""
        return self.cut.means("column", self.level)

    @cached_property
    def outputs(self) -> list[tuple[str, Argument]]:
        """What it writes: the last pass everything, since none needs the old values then."""
        if self.level != self.cut.passes - 1:
            return []
        return [(n, end) for n, end in self.cut.program.outputs if self.cut.inputs[n] == "full"]

    @cached_property
    def steps_here(self) -> list[int]:
        """The steps that it does for each element."""
        return self.cut.closure(self._ends(), "full")

    @cached_property
    def given_here(self) -> list[Argument]:
        """What these need."""
        return list(self.given(self.steps_here, self._ends()))

    def _ends(self) -> list[Argument]:
        reduced = (*self.sums, *self.rows, *self.columns)
        values = [self.cut.steps[i].arguments[0] for i in reduced]
        return [*values, *(end for _, end in self.outputs)]

    def _of(self, kind: str) -> Iterator[Argument]:
        return (a for a in self.given_here if self.cut.kind(a) == kind)

    def _before_plane(self) -> Iterator[str]:
        for a in self._of("plane"):
            yield self.load(a, f"{start(a)}[b]")
        for a in self._of("column"):
            yield self._pointer(a, "b")
        for i in self.columns:
            yield f"double *restrict c{i} = a->c{i} + chunk * z->C;"
            yield f"memset(c{i}, 0, z->C * sizeof(double));"

    def _before_row(self) -> Iterator[str]:
        for a in self._of("row"):
            yield self.load(a, f"{start(a)}[row]")
        for a in dict.fromkeys([*self._of("full"), *(Input(n) for n, _ in self.outputs)]):
            if not self._is_drawn(a):
                yield self._pointer(a, "row")
        for i in self.rows:
            yield f"double row{i} = 0;"

    def _body(self) -> Iterator[str]:
        """Walk what is done for each element."""
        for a in (*self._of("full"), *self._of("column")):
            yield self._draw(a) if self._is_drawn(a) else self.load(a, f"{self._begin(a)}[i]")
        yield from self.steps(self.steps_here)
        for prefix, found in (("sum{}", self.sums), ("row{}", self.rows), ("c{}[i]", self.columns)):
            for i in found:
                yield f"{prefix.format(i)} += {self.term(i)};"
        for name, end in self.outputs:
            value = f"store_{self.types[name]}({c_name(end)})"
            yield f"{self._begin(Input(name))}[i] = {value};"

    def _is_drawn(self, argument: Argument) -> bool:
        """Tell whether a value is a random number, and stands nowhere."""
        return isinstance(argument, Input) and self.types[argument.name] == "drawing"

    def _draw(self, argument: Argument) -> str:
        place = "row * z->C + i" if self.cut.has_axes else "i"
        return f"const work {c_name(argument)} = draw({start(argument)}, {place});"

    def _begin(self, argument: Argument) -> str:
        """Return the name of where a row begins, or what a plane has for its columns."""
        if not self.cut.has_axes:
            return start(argument)
        return f"e_{argument.name}" if isinstance(argument, Input) else f"e{step_of(argument)}"

    def _pointer(self, argument: Argument, part: str) -> str:
        """Return the line that gives a row, or a plane, this name."""
        kind = self.types[argument.name] if isinstance(argument, Input) else "work"
        return f"{kind} *restrict {self._begin(argument)} = {start(argument)} + {part} * z->C;"


_COLUMN_MEANS = (
    "for (int64_t i = 0; !sliced && i < z->C; i++) a->s{0}[b * z->C + i] = c{0}[i] / z->R;"
)
"""What a chunk does whose planes are whole; of others the next stage adds the slices up."""
