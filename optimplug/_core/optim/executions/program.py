"""A rule written down as a program, by running it once on symbols.

Most rules are a program for one element. Those that see whole tensors have sums and means among
their steps: :mod:`.passes` cuts such a program where one must be known before it can go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch

from optimplug._core.optim.executions.operands import Functional
from optimplug._core.optim.executions.ops import OPERATIONS
from optimplug._core.optim.rule import Rule

__all__ = [
    "Argument",
    "Constant",
    "Decision",
    "Input",
    "Numbers",
    "Program",
    "Result",
    "Scalar",
    "Step",
    "Symbol",
    "trace",
]

Numbers = Sequence[Mapping[str, float]]
"""The scalars of each cell of a batch."""


@dataclass(frozen=True)
class Input:
    """An operand as it was before the update: ``p``, ``g``, or a state."""

    name: str


@dataclass(frozen=True)
class Scalar:
    """One of the rule's coefficients."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A number that stands in the rule itself."""

    value: float


@dataclass(frozen=True)
class Result:
    """What a step of the program has computed."""

    step: int


Argument: TypeAlias = "Input | Scalar | Constant | Result"


@dataclass(frozen=True)
class Step:
    """One operation, a row of :data:`.ops.OPERATIONS` or of those below, on what is known by then.

    Of whole tensors: ``sum`` and ``squares``, the sum of the squares, of all of it; ``mean`` and
    ``mean_of_squares`` over an axis; ``size``, the number of elements. Of such numbers
    ``where_positive`` as well.
    """

    operation: str
    arguments: tuple[Argument, ...]


class Decision(NamedTuple):
    """A branch that a rule took: whether some cell's coefficient differs from a constant."""

    name: str
    constant: float
    differs: bool

    def holds(self, numbers: Numbers) -> bool:
        """Tell whether these scalars lead to the same branch."""
        name, constant = self.name, self.constant
        for k in numbers:  # without a generator: it is asked at each step
            if k[name] != constant:
                return self.differs
        return not self.differs


@dataclass(frozen=True, eq=False)
class Program:
    """What a rule does to one element, or to one tensor.

    It is known by its identity: a step looks its compiled form up, and must not compare programs.
    """

    steps: tuple[Step, ...]
    outputs: tuple[tuple[str, Argument], ...]
    """The operands that change, and what they change to."""
    measured: tuple[Argument, ...]
    """What the rule returns of each tensor, in the order of :attr:`.Rule.measures`."""
    coefficients: tuple[str, ...]
    """The names of all scalars, in the order in which they are passed."""
    decisions: tuple[Decision, ...]
    """Under which it is right: another outcome needs another trace."""

    def suits(self, numbers: Numbers) -> bool:
        """Tell whether the rule would take the same branches with these scalars."""
        return all(decision.holds(numbers) for decision in self.decisions)


@dataclass
class _Record:
    """The program so far."""

    numbers: Numbers
    steps: list[Step] = field(default_factory=list)
    decisions: dict[Decision, None] = field(default_factory=dict)

    def step(self, operation: str, *operands: Any) -> Result:
        self.steps.append(Step(operation, tuple(map(_argument, operands))))
        return Result(len(self.steps) - 1)

    def differs(self, name: str, constant: float) -> bool:
        outcome = any(k[name] != constant for k in self.numbers)
        self.decisions[Decision(name, constant, outcome)] = None
        return outcome


class Symbol:
    """A number that is not known yet: every operation on it becomes a step of the program."""

    def __init__(self, record: _Record, stands_for: Argument) -> None:
        self.record = record
        self.stands_for = stands_for

    def after(self, operation: str, *others: Any) -> Symbol:
        """Return what an operation on this and others results in."""
        return Symbol(self.record, self.record.step(operation, self, *others))

    def __neg__(self) -> Symbol:
        return self.after("neg")

    def __add__(self, other: Any) -> Symbol:
        return self.after("add", other)

    def __mul__(self, other: Any) -> Symbol:
        return self.after("mul", other)

    def __truediv__(self, other: Any) -> Symbol:
        return self.after("div", other)

    def __getattr__(self, operation: str) -> Any:
        if operation not in OPERATIONS or OPERATIONS[operation].c is None:
            raise AttributeError(f"{operation!r} is no step of a program; add it to OPERATIONS")
        return lambda *others: self.after(operation, *others)

    def __bool__(self) -> bool:
        raise TypeError("a rule may branch on nothing but whether a coefficient is a given number")


class _Coefficient(Symbol):
    """A scalar of the rule, of which a rule may ask whether it is a given number."""

    __hash__ = None  # type: ignore[assignment] # equality is a question to the record

    def __init__(self, record: _Record, name: str) -> None:
        super().__init__(record, Scalar(name))
        self.name = name

    def __ne__(self, other: object) -> bool:
        return self.record.differs(self.name, _number(other))

    def __eq__(self, other: object) -> bool:
        return not self != other


class _Number(Symbol):
    """One number for a tensor that is not known yet; see :class:`.numbers.Numbers`."""

    def after(self, operation: str, *others: Any) -> _Number:
        return _Number(self.record, self.record.step(operation, self, *others))

    def clamp_min(self, least: Any) -> Symbol:
        return self.after("maximum", least)

    def clamp_max(self, most: Any) -> Symbol:
        return self.after("minimum", most)

    def where_positive(self, other: Any) -> Symbol:
        return self.after("where_positive", other)


class _Whole(Functional):
    """A tensor that is not known yet, of which a rule may take norms and means.

    See :class:`.whole.WholeTensors`.
    """

    __slots__ = ("dtype",)

    def __init__(self, symbol: Symbol, dtype: torch.dtype) -> None:
        super().__init__(symbol)
        self.dtype = dtype

    def like(self, value: Any) -> _Whole:
        return _Whole(value, self.dtype)

    def norm(self) -> Symbol:
        return self._number("squares").after("sqrt")

    def rms(self) -> Symbol:
        return self.norm() / self.root_sizes()

    def root_sizes(self) -> Symbol:
        return self._number("size").after("sqrt")

    def sum(self) -> Symbol:
        return self._number("sum")

    def mean(self, axis: int) -> _Whole:
        return self.like(self.tensor.after("mean", axis))

    def mean_of_squares(self, axis: int) -> _Whole:
        return self.like(self.tensor.after("mean_of_squares", axis))

    def unsqueeze(self, axis: int) -> _Whole:
        return self  # a view; and in a program an axis that a mean was taken over is still there

    def _number(self, operation: str) -> Symbol:
        record: _Record = self.tensor.record
        return _Number(record, record.step(operation, self.tensor))


def trace(rule: Rule, numbers: Numbers, dtype: torch.dtype = torch.float32) -> Program:
    """Run a rule on symbols and return what it did.

    Where cells differ in whether a coefficient is a given number, the rule is told that it is not.

    Args:
        rule: for elements or for whole tensors.
        numbers: the scalars of each cell.
        dtype: what a rule for whole tensors computes in.
    """
    record = _Record(numbers)
    symbols = {name: Symbol(record, Input(name)) for name in _operands(rule)}
    whole = rule.scope == "tensor"
    inputs = {n: _Whole(s, dtype) if whole else Functional(s) for n, s in symbols.items()}
    state = {name: inputs[name] for name in rule.operand_names}
    k = {name: _Coefficient(record, name) for name in numbers[0]}
    found = rule.update(inputs["p"], inputs["g"], state, k)
    ends = {name: value.tensor.stands_for for name, value in inputs.items()}
    outputs = tuple((name, end) for name, end in ends.items() if end != Input(name))
    measured = tuple(_argument(found[name]) for name in rule.measures)
    return Program(tuple(record.steps), outputs, measured, tuple(k), tuple(record.decisions))


def _operands(rule: Rule) -> tuple[str, ...]:
    return ("p", "g", *rule.operand_names)


def _argument(operand: Any) -> Argument:
    return operand.stands_for if isinstance(operand, Symbol) else Constant(float(operand))


def _number(given: object) -> float:
    if not isinstance(given, int | float):
        raise TypeError(f"a coefficient can be compared with a number alone (got {given!r})")
    return float(given)
