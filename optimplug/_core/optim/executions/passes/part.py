"""What every function of a program for whole tensors is written with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from optimplug._core.optim.executions.c_source import c_name, c_text
from optimplug._core.optim.executions.passes.cut import Cut
from optimplug._core.optim.executions.program import Argument, Constant, Input, Result, Scalar

__all__ = ["Part", "lines", "number", "start", "step_of"]


@dataclass(frozen=True)
class Part:
    """What writes functions of one sort."""

    cut: Cut
    types: Mapping[str, str]
    """The C type of each operand's elements."""

    def parameters(self) -> str:
        """Return what every function is given."""
        pointers = [f"{kind} *restrict at_{name}" for name, kind in self.types.items()]
        own = ["const shape *z", "const areas *a", *pointers]
        return ", ".join([*own, "const double *k", "work scale", "double *measured"])

    def given(self, steps: Sequence[int], ends: Sequence[Argument]) -> Iterator[Argument]:
        """Walk what a loop needs that it does not compute, each once."""
        computed = {Result(i) for i in steps}
        used = [*(a for i in steps for a in self.cut.steps[i].arguments), *ends]
        return (a for a in dict.fromkeys(used) if a not in computed)

    def load(self, argument: Argument, where: str) -> str:
        """Return the line that reads a value from a place in memory."""
        if isinstance(argument, Input):
            where = f"load_{self.types[argument.name]}({where})"
            where += " * scale" if argument.name == "g" else ""
        return f"const work {c_name(argument)} = {where};"

    def numbers(self, given: Iterable[Argument]) -> Iterator[str]:
        """Walk the lines that read the numbers among these arguments."""
        for a in given:
            if isinstance(a, Scalar):
                yield f"const work {c_name(a)} = k[{self.cut.program.coefficients.index(a.name)}];"
            elif self.cut.kind(a) == "number" and not isinstance(a, Constant):
                yield f"const work {c_name(a)} = {number(self.cut, a)};"

    def steps(self, steps: Iterable[int]) -> Iterator[str]:
        """Walk the lines that compute these steps."""
        return (f"const work t{i} = {c_text(self.cut.steps[i])};" for i in steps)

    def term(self, step: int) -> str:
        """Return what a sum or mean adds up, in double."""
        value = c_name(self.cut.steps[step].arguments[0])
        squares = self.cut.steps[step].operation in ("squares", "mean_of_squares")
        return f"(double){value} * {value}" if squares else value


def number(cut: Cut, argument: Argument) -> str:
    """Return a number as a C expression in double."""
    match argument:
        case Scalar(name):
            return f"k[{cut.program.coefficients.index(name)}]"
        case Result(step):
            return f"a->number[{step}]"
        case Constant(value):
            return f"({value!r})"
        case Input(name):
            return name  # only the size of a tensor has one for its argument, and needs no value


def start(argument: Argument) -> str:
    """Return where the values of a tensor begin."""
    return f"at_{argument.name}" if isinstance(argument, Input) else f"a->s{step_of(argument)}"


def step_of(argument: Argument) -> int:
    """Return the step that has stored a value."""
    assert isinstance(argument, Result)  # nothing else is in memory
    return argument.step


def lines(indent: int, texts: Iterable[str]) -> str:
    """Return these as lines of C."""
    return "".join(f"{' ' * indent}{text}\n" for text in texts)
