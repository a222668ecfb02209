"""A rule written down as arithmetic on one element, by running it once on symbols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optimplug._core.optim.executions.functional import Functional
from optimplug._core.optim.rule import Rule

__all__ = ["Coefficient", "Decision", "Numbers", "Program", "Value", "trace"]

Numbers = Sequence[Mapping[str, float]]
"""The scalars of each cell of a batch."""


class Decision(NamedTuple):
    """A branch that a rule took: whether some cell's coefficient differs from a constant."""

    name: str
    constant: float
    differs: bool

    def holds(self, numbers: Numbers) -> bool:
        return any(k[self.name] != self.constant for k in numbers) == self.differs


class Program(NamedTuple):
    """What a rule does to one element.

    Operands are ``x_p``, ``x_g`` and after :attr:`Rule.state`, as in ``x_exp_avg``; coefficients
    begin with ``k_``. Beside ``+ - * /`` the lines use ``number(1.5)``, a constant, ``root(x)``,
    the square root, ``larger(x, y)``, which keeps NaN, and ``blend(x, y, w)``, which is
    :func:`torch.lerp`.
    """

    lines: tuple[tuple[str, str], ...]
    """Each a new name and its value, in order."""
    results: tuple[tuple[str, str], ...]
    """The operands that change, and the names of what they change to."""
    coefficients: tuple[str, ...]
    decisions: tuple[Decision, ...]
    """Under which it is right: another outcome needs another trace."""

    def suits(self, numbers: Numbers) -> bool:
        """Tell whether the rule would take the same branches with these scalars."""
        return all(decision.holds(numbers) for decision in self.decisions)


@dataclass
class _Record:
    numbers: Numbers
    lines: list[tuple[str, str]] = field(default_factory=list)
    decisions: dict[Decision, None] = field(default_factory=dict)

    def value(self, text: str) -> Value:
        self.lines.append((f"t{len(self.lines)}", text))
        return Value(self, self.lines[-1][0])

    def differs(self, name: str, constant: float) -> bool:
        outcome = any(k[name] != constant for k in self.numbers)
        self.decisions[Decision(name, constant, outcome)] = None
        return outcome


class Value:
    """A number that is not known yet: arithmetic on it is recorded."""

    def __init__(self, record: _Record, text: str) -> None:
        self.record = record
        self.text = text

    def __neg__(self) -> Value:
        return self.record.value(f"-{self.text}")

    def __add__(self, other: Value | float) -> Value:
        return self._with("+", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._with("-", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._with("*", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._with("/", other)

    def sqrt(self) -> Value:
        return self.record.value(f"root({self.text})")

    def lerp(self, end: Value, weight: Value) -> Value:
        return self.record.value(f"blend({self.text}, {end.text}, {weight.text})")

    def maximum(self, other: Value) -> Value:
        return self.record.value(f"larger({self.text}, {other.text})")

    def __bool__(self) -> bool:
        raise TypeError("a rule may branch on nothing but whether a coefficient is a given number")

    def _with(self, sign: str, other: Value | float) -> Value:
        text = other.text if isinstance(other, Value) else f"number({float(other)!r})"
        return self.record.value(f"{self.text} {sign} {text}")


class Coefficient(Value):
    """A scalar of the rule, of which a rule may ask whether it is a given number."""

    __hash__ = None  # type: ignore[assignment] # equality is a question to the record

    def __ne__(self, other: object) -> bool:
        return self.record.differs(self.text.removeprefix("k_"), _number(other))

    def __eq__(self, other: object) -> bool:
        return not self != other


def trace(rule: Rule, numbers: Numbers) -> Program:
    """Run a rule on symbols and return what it did.

    Where cells differ in whether a coefficient is a given number, the rule is told that it is not.
    """
    record = _Record(numbers)
    operands = {name: Functional(_symbol(record, name)) for name in ("p", "g", *rule.state)}
    state = {name: operands[name] for name in rule.state}
    k = {name: Coefficient(record, f"k_{name}") for name in numbers[0]}
    rule.update(operands["p"], operands["g"], state, k)
    ends: dict[str, Any] = {name: operand.tensor for name, operand in operands.items()}
    results = tuple((name, end.text) for name, end in ends.items() if end.text != f"x_{name}")
    return Program(tuple(record.lines), results, tuple(k), tuple(record.decisions))


def _symbol(record: _Record, name: str) -> Any:
    return Value(record, f"x_{name}")


def _number(given: object) -> float:
    if not isinstance(given, int | float):
        raise TypeError(f"a coefficient can be compared with a number alone (got {given!r})")
    return float(given)
