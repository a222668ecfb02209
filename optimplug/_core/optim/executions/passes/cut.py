"""A program for whole tensors, cut where a sum over elements must be known before it can go on.

Each pass is one loop over the elements of a tensor that sums up what the next one needs. Whatever
it has use for it computes anew from what stands in memory: to write and read results as large as a
tensor would take longer. Between passes, stages compute what is smaller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from optimplug._core.optim.executions.program import (
    Argument,
    Constant,
    Input,
    Program,
    Result,
    Step,
)
from optimplug._core.optim.executions.text import fused_sums
from optimplug._core.optim.rule import Rule

__all__ = ["MEANS", "SUMS", "Cut", "Kind", "cut"]

Kind: TypeAlias = str
"""What a value has an element for: ``full``, every element; ``row``, ``column``, a mean over the
last axis, or over the one before; ``plane``, a mean over both; ``number``, the tensor."""

SUMS = ("sum", "squares")
MEANS = ("mean", "mean_of_squares")

_KINDS: Mapping[frozenset[int], Kind] = {
    frozenset(): "full",
    frozenset({-1}): "row",
    frozenset({-2}): "column",
    frozenset({-1, -2}): "plane",
}
_GONE = {kind: axes for axes, kind in _KINDS.items()}


@dataclass(frozen=True)
class Cut:
    """A program in passes and stages: stage 0, pass 0, stage 1, and so on; a stage is the last."""

    program: Program
    steps: Mapping[int, Step]
    """Those that lead to a result, by their number, with fused sums."""
    inputs: Mapping[str, Kind]
    kinds: Mapping[int, Kind]
    """Of each step."""
    levels: Mapping[int, int]
    """For each step the first stage, or pass, that can compute it."""
    kept: frozenset[int]
    """The steps, of a kind between full and number, that are stored from a stage on."""
    passes: int

    @property
    def has_axes(self) -> bool:
        """Whether anything is known by rows or by columns."""
        return bool({*self.inputs.values(), *self.kinds.values()} - {"full", "number"})

    def kind(self, argument: Argument) -> Kind:
        """Return the kind of a value."""
        return _kind(argument, self.inputs, self.kinds)

    def sums(self, level: int | None = None) -> list[int]:
        """Return the steps that a pass sums up over all elements; of every pass where None."""
        return [i for i in self._reductions(level) if self.steps[i].operation in SUMS]

    def means(self, kind: Kind, level: int | None = None) -> list[int]:
        """Return the steps that a pass, or any, takes means for, over rows or over columns."""
        return [i for i in self._reductions(level) if self.kinds[i] == kind]

    def stage(self, level: int) -> list[int]:
        """Return the steps that are known from a stage on, and not before."""
        return [
            i
            for i in self.steps
            if self.levels[i] == level and (self.kinds[i] == "number" or i in self.kept)
        ]

    def closure(self, targets: Iterable[Argument], kind: Kind) -> list[int]:
        """Return the steps of a kind that targets of it are computed by, from what is stored."""
        found: set[int] = set()
        todo = [t.step for t in targets if isinstance(t, Result) and self.kinds[t.step] == kind]
        while todo:
            step = todo.pop()
            if step in found:
                continue
            found.add(step)
            for a in self.steps[step].arguments:
                if isinstance(a, Result) and self.kinds[a.step] == kind and a.step not in self.kept:
                    todo.append(a.step)
        return sorted(found)

    def is_reduction(self, step: int) -> bool:
        """Tell whether a pass computes a step, by a sum over elements."""
        return _sums_elements(self.steps[step], self.inputs, self.kinds)

    def _reductions(self, level: int | None) -> list[int]:
        return [
            i for i in self.steps if self.is_reduction(i) and level in (None, self.levels[i] - 1)
        ]


def cut(program: Program, rule: Rule) -> Cut:
    """Cut a program.

    Raises:
        TypeError: the rule takes a norm, a sum or a mean that has no place in passes.
    """
    inputs = {"p": "full", "g": "full"}
    inputs |= {s.name: _KINDS[frozenset([s.over] if s.over else [])] for s in rule.saved}
    inputs |= {"random": "full"} if rule.draws else {}
    kinds: dict[int, Kind] = {}
    for i, step in enumerate(program.steps):
        kinds[i] = _kind_of_step(step, inputs, kinds)

    def in_one_loop(product: int, total: int) -> bool:
        return kinds[product] == kinds[total] != "number"

    steps = _needed(dict(fused_sums(program, in_one_loop)), program)
    levels: dict[int, int] = {}
    for i, step in steps.items():
        before = [levels[a.step] for a in step.arguments if isinstance(a, Result)]
        levels[i] = max(before, default=0) + _sums_elements(step, inputs, kinds)
    ends = [end for name, end in program.outputs if inputs[name] == "full"]
    last = max((levels[end.step] for end in ends if isinstance(end, Result)), default=0)
    sums = [levels[i] - 1 for i, s in steps.items() if _sums_elements(s, inputs, kinds)]
    kept = _kept(steps, kinds, program)
    return Cut(program, steps, inputs, kinds, levels, kept, max([last, *sums]) + 1)


def _kind(argument: Argument, inputs: Mapping[str, Kind], kinds: Mapping[int, Kind]) -> Kind:
    match argument:
        case Input(name):
            return inputs[name]
        case Result(step):
            return kinds[step]
        case _:
            return "number"


def _kind_of_step(step: Step, inputs: Mapping[str, Kind], kinds: Mapping[int, Kind]) -> Kind:
    found = [_kind(a, inputs, kinds) for a in step.arguments]
    if step.operation in (*SUMS, "size"):
        if found[0] != "full":
            raise TypeError(f"a rule may take the {step.operation} of a whole tensor alone")
        return "number"
    if step.operation in MEANS:
        axis = step.arguments[1]
        assert isinstance(axis, Constant)
        gone = _GONE.get(found[0], frozenset({-1, -2}))
        if axis.value not in {-1, -2} - gone:
            raise TypeError("a rule may take means over each of the last two axes, once")
        return _KINDS[gone | {int(axis.value)}]
    tensors = [_GONE[kind] for kind in found if kind != "number"]
    return _KINDS[frozenset.intersection(*tensors)] if tensors else "number"


def _sums_elements(step: Step, inputs: Mapping[str, Kind], kinds: Mapping[int, Kind]) -> bool:
    if step.operation not in (*SUMS, *MEANS):
        return False
    return _kind(step.arguments[0], inputs, kinds) == "full"


def _needed(steps: Mapping[int, Step], program: Program) -> dict[int, Step]:
    """Return the steps that lead to what changes, or to what is measured."""
    found: set[int] = set()
    todo = [*(end for _, end in program.outputs), *program.measured]
    while todo:
        argument = todo.pop()
        if isinstance(argument, Result) and argument.step not in found:
            found.add(argument.step)
            todo.extend(steps[argument.step].arguments)
    return {i: step for i, step in steps.items() if i in found}


def _kept(steps: Mapping[int, Step], kinds: Mapping[int, Kind], program: Program) -> frozenset[int]:
    """Return the steps whose results another loop than their own has use for."""
    found = {i for i, step in steps.items() if step.operation in MEANS}
    found |= {end.step for _, end in program.outputs if isinstance(end, Result)}
    for i, step in steps.items():
        for argument in step.arguments:
            if isinstance(argument, Result) and kinds[argument.step] != kinds[i]:
                found.add(argument.step)
    return frozenset(i for i in found if kinds[i] not in ("full", "number"))
