"""What is computed between the passes of a program for whole tensors, as C."""

from __future__ import annotations

from collections.abc import Iterator

from optimplug._core.optim.executions.ops import OPERATIONS
from optimplug._core.optim.executions.passes.cut import MEANS
from optimplug._core.optim.executions.passes.part import Part, lines, number, start
from optimplug._core.optim.executions.passes.templates import LENGTHS, SMALL_MEAN, SUM_UP_COLUMNS
from optimplug._core.optim.executions.program import Result

__all__ = ["Stages"]


class Stages(Part):
    """The functions that compute, before and after a pass, what is smaller than a tensor."""

    def text(self, level: int) -> str:
        """Return the function of a stage; the last one writes what has become of small states."""
        cut = self.cut
        text = [SUM_UP_COLUMNS.format(step=i) for i in cut.means("column", level - 1)]
        for i in cut.stage(level):
            if cut.kinds[i] == "number":
                text += self._number(i)
            elif not cut.is_reduction(i):
                text.append(self._mean(i) if cut.steps[i].operation in MEANS else self._loop(i))
        if level == cut.passes:
            text += [*self._small_states(), *self._measured()]
        return f"\nstatic void stage{level}({self.parameters()}) {{\n{''.join(text)}}}\n"

    def _number(self, step: int) -> Iterator[str]:
        """Walk the lines that compute a number, in double."""
        cut, own = self.cut, self.cut.steps[step]
        if cut.is_reduction(step):
            sums = cut.sums()
            yield f"    a->number[{step}] = 0;\n    for (int64_t c = 0; c < z->chunks; c++)\n"
            yield f"        a->number[{step}] += a->parts[c * {len(sums)} + {sums.index(step)}];\n"
        else:
            given = [number(cut, a) for a in own.arguments]
            yield f"    a->number[{step}] = {_NUMBER_FORMS[own.operation].format(*given)};\n"

    def _mean(self, step: int) -> str:
        """Return the loop that takes the mean of every plane's rows, or columns."""
        of = self.cut.steps[step].arguments[0]
        length = "z->R" if self.cut.kind(of) == "row" else "z->C"
        load = self.load(of, f"{start(of)}[b * {length} + j]")
        return SMALL_MEAN.format(step=step, length=length, load=load, term=self.term(step))

    def _loop(self, step: int) -> str:
        """Return the loop that computes one step for every row, column or plane."""
        cut, kind = self.cut, self.cut.kinds[step]
        steps = cut.closure([Result(step)], kind)
        given = list(self.given(steps, ()))
        plane = {"row": "i / z->R", "column": "i / z->C"}.get(kind)
        body = [
            *(self.load(a, f"{start(a)}[i]") for a in given if cut.kind(a) == kind),
            *(
                self.load(a, f"{start(a)}[{plane}]")
                for a in given
                if cut.kind(a) == "plane" != kind
            ),
            *self.steps(steps),
            f"a->s{step}[i] = t{step};",
        ]
        loop = f"        for (int64_t i = 0; i < {LENGTHS[kind]}; i++) {{\n"
        numbers = lines(8, self.numbers(given))
        return f"    {{\n{numbers}{loop}{lines(12, body)}        }}\n    }}\n"

    def _small_states(self) -> Iterator[str]:
        cut = self.cut
        for name, end in cut.program.outputs:
            kind = cut.inputs[name]
            if kind == "full":
                continue
            if cut.kind(end) != kind or not isinstance(end, Result):
                raise TypeError(f"{name!r} must become a value with an element for each {kind}")
            value = f"store_{self.types[name]}(a->s{end.step}[i])"
            yield f"    for (int64_t i = 0; i < {LENGTHS[kind]}; i++) at_{name}[i] = {value};\n"

    def _measured(self) -> Iterator[str]:
        for n, end in enumerate(self.cut.program.measured):
            yield f"    measured[{n}] = {number(self.cut, end)};\n"


_NUMBER_FORMS = {
    **{name: OPERATIONS[name].c or "" for name in ("neg", "add", "mul", "div", "reciprocal")},
    "sqrt": "number_root({0})",
    "maximum": "number_larger({0}, {1})",
    "minimum": "number_smaller({0}, {1})",
    "where_positive": "({0} > 0 ? {0} : {1})",
    "size": "(double)(z->B * z->R * z->C)",
}
"""What numbers go through, which are double whatever the tensors are; see :class:`.Numbers`."""
