"""One batch of a step like the last one: see :mod:`.repeat`."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from optimplug._core.internals import remembered_forms
from optimplug._core.optim.batch import Batch, pick
from optimplug._core.optim.executions.compiled import Compiled, ReadyCompiled, program_for
from optimplug._core.optim.executions.known_memory import FACTS, Memory, current_memory, fit
from optimplug._core.optim.executions.memory_layout import without_memory
from optimplug._core.optim.rule import Hyper
from optimplug._core.optim.step.batch_layout import BatchLayout
from optimplug._core.optim.step.counters import Counters

if TYPE_CHECKING:
    from optimplug._core.optim.executions.program import Program

__all__ = ["Part"]

_step = itemgetter("step")
_is_sparse = attrgetter("is_sparse")


class Part:
    """What was found of one batch: of all tensors in it, whether they have a gradient or not."""

    def __init__(self, laid_out: BatchLayout, batch: Batch, memory: Memory) -> None:
        self.rule, self.memory = batch.rule, memory
        self.places, self.kept, self.groups = laid_out.places, laid_out.kept, laid_out.groups
        self.counters = cast(
            "Counters | None", laid_out.numbers[0].counters if laid_out.numbers else None
        )
        self.ats = [at for _, at in laid_out.numbers]
        names = self.rule.state_names
        self.names = itemgetter(*names) if names else None
        self.is_one = len(names) == 1
        columns = batch.params, batch.grads, *batch.states.values()
        self.dtypes = tuple(column[0].dtype for column in columns)
        self.libraries: list[tuple[Program, ctypes.CDLL]] = []
        self.cut: _Cut | None = None
        self.grad_forms: Callable[..., bool] | None = None

    @classmethod
    def of(cls, laid_out: BatchLayout, batch: Batch) -> Part | None:
        """Keep what was found of a batch; None where a step must look at it in another way."""
        from optimplug._core.optim.executions.c_source import C_TYPES

        memory = current_memory(batch, C_TYPES) if _is_simple(batch, laid_out) else None
        if memory is None or not memory.contiguous:
            return None
        part = cls(laid_out, batch, memory)
        tensors = list(chain(batch.params, *batch.states.values()))
        forms = remembered_forms(tensors)
        if forms is None or not forms(*tensors):
            return None
        part.forms, part.stood_at = forms, list(map(Tensor.data_ptr, tensors))
        part.counted_at = list(map(Tensor.data_ptr, batch.steps))
        return part

    forms: Callable[..., bool]
    """Tells whether the parameters, then their states, kind by kind, have the forms they had."""
    stood_at: list[int]
    """Where these tensors stand."""
    counted_at: list[int]
    """Where the step counters stand."""

    def prepare(
        self,
        groups: Sequence[Hyper],
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: Sequence[dict[str, Any]],
        present: Sequence[bool] | None,
    ) -> list[tuple[int, ReadyCompiled]] | None:
        """Return the work, and the first place that it is for; None where something has changed."""
        if len(params) != len(self.places):
            params, grads = pick(self.places, params), pick(self.places, grads)
            present = present and pick(self.places, present)
        here = None
        if present is not None and not all(present):
            here = [i for i, is_in in enumerate(present) if is_in]
        if here == []:
            return []
        own: Any = grads if here is None else pick(here, grads)
        params = params if here is None else pick(here, params)
        addresses = array("Q", map(Tensor.data_ptr, own))
        same = self._looks_the_same(params, states, here) and self._fit(own, here)
        if not same or without_memory(own, addresses):
            return None
        cut = self.cut = self._cut(here)
        scalars = self._scalars(groups, cut)
        library = self._library(scalars)
        if library is None:
            return None
        numbers = array("d", chain.from_iterable([k.values() for k in scalars]))
        starts = self.memory.starts
        if here is not None:
            starts = self._starts(here)
            addresses = _spread(here, addresses, array("Q", bytes(8 * len(self.places))))
        where = list(params), self.memory, starts, addresses
        first = self.places[0 if here is None else here[0]]
        return [(first, ReadyCompiled(*where, cut.cells, numbers, library))]

    def _looks_the_same(
        self, params: Sequence[Tensor], states: Sequence[dict[str, Any]], here: list[int] | None
    ) -> bool:
        """Tell whether these tensors are where they were, as they were."""
        counted_at = self.counted_at
        if self.kept:
            states = pick(self.kept, states)
        if here is not None:
            states = pick(here, states) if self.kept else states
            counted_at = pick(here, counted_at) if counted_at else counted_at
        try:
            if counted_at and counted_at != list(map(Tensor.data_ptr, map(_step, states))):
                return False
            columns = [params, *self._by_kind(states)]
            if here is None:
                tensors = list(chain.from_iterable(columns))
                # An address and a form say all: another tensor may be in its place.
                return list(map(Tensor.data_ptr, tensors)) == self.stood_at and self.forms(*tensors)
            # Of some of them no forms are kept, and to look at those of all would take longer.
            for column, span in zip(columns, self.memory.spans, strict=True):
                for of, known in zip(FACTS, span, strict=True):
                    if list(map(of, column)) != pick(here, known):
                        return False
        except (KeyError, TypeError):  # one is gone, or a number stands in its place
            return False
        return self._has_kinds(columns)

    def _by_kind(self, states: Sequence[dict[str, Any]]) -> Iterable[Sequence[Tensor]]:
        """Return the tensors of each kind of state."""
        if self.names is None:
            return ()
        found = list(map(self.names, states))
        return [found] if self.is_one else zip(*found, strict=True)

    def _has_kinds(self, columns: Sequence[Sequence[Tensor]]) -> bool:
        """Tell whether types of two bytes are those that they were, and parameters in order."""
        for i, dtype in self.memory.narrow.items():
            if {t.dtype for t in columns[i]} != {dtype}:
                return False
        return all(map(Tensor.is_contiguous, columns[0]))

    def _fit(self, grads: Sequence[Tensor], here: list[int] | None) -> bool:
        """Tell whether the gradients, other tensors at every step, are of the right form."""
        if here is None and self.grad_forms is not None and self.grad_forms(*grads):
            return True
        sizes = self.memory.sizes if here is None else pick(here, self.memory.sizes)
        fits = (
            not any(map(_is_sparse, grads))
            and fit(grads, self.memory.grad_dtype, sizes)
            and all(map(Tensor.is_contiguous, grads))
        )
        if fits and here is None:
            self.grad_forms = remembered_forms(grads)
        return fits

    def _cut(self, here: list[int] | None) -> _Cut:
        """Return which of them share their scalars."""
        if here is None and self.cut is not None and self.cut.is_whole:
            return self.cut  # all have gone on together since
        rows = range(len(self.places)) if here is None else here
        counts = (
            pick(self.ats, self.counters.values()) if self.counters else [0.0] * len(self.places)
        )
        numbers: dict[tuple[int, float], int] = {}
        firsts: list[int] = []
        cells = array("q", bytes(8 * len(self.places)))
        for row in rows:
            key = self.groups[row], counts[row]
            cell = numbers.get(key)
            if cell is None:
                cell = numbers[key] = len(firsts)
                firsts.append(row)
            cells[row] = cell
        return _Cut(here is None, cells, firsts)

    def _scalars(self, groups: Sequence[Hyper], cut: _Cut) -> list[dict[str, Any]]:
        """Return the scalars of each cell, for the next update."""
        rule, counters = self.rule, self.counters
        if counters is None:
            return [rule.coefficients(groups[self.groups[row]], 2.0) for row in cut.firsts]
        counts = counters.values()
        return [
            rule.coefficients(groups[self.groups[row]], counts[self.ats[row]] + 1)
            for row in cut.firsts
        ]

    def _library(self, scalars: Sequence[Mapping[str, float]]) -> ctypes.CDLL | None:
        for program, library in self.libraries:
            if program.suits(scalars):
                return library
        program = program_for(self.rule, scalars, self.dtypes)
        found = Compiled().library(program, self.rule, self.dtypes)
        if found is not None:
            self.libraries.append((program, found))
        return found

    def _starts(self, here: list[int]) -> array[int]:
        """Return where each tensor begins among the elements of those that are here."""
        sizes = _spread(here, pick(here, self.memory.sizes), [0] * len(self.places))
        return array("q", accumulate(sizes, initial=0))


@dataclass
class _Cut:
    """Which tensors of a batch share their scalars."""

    is_whole: bool
    """Whether all of them have a gradient."""
    cells: array[int]
    """The number of each one's cell."""
    firsts: list[int]
    """The first tensor of each cell."""


def _is_simple(batch: Batch, laid_out: BatchLayout) -> bool:
    """Tell whether all that a step of the batch depends on is looked at here."""
    rule, p = batch.rule, batch.params[0]
    more = rule.scalars or rule.counts_in_groups or rule.measures or rule.draws or rule.codes
    counters = {id(place.counters): place.counters for place in laid_out.numbers}.values()
    counted = not laid_out.numbers or (
        len(counters) == 1
        and all(isinstance(c, Counters) for c in counters)
        and batch.steps[0].is_cpu
    )
    plain = batch.is_plain and not batch.is_sharded and not batch.owners[0].is_complex()
    return bool(
        not more
        and counted
        and plain
        and p.is_cpu
        and not batch.has_sparse
        and Compiled().compiles(rule)
    )


def _spread(here: Sequence[int], values: Iterable[Any], among: Any) -> Any:
    """Put values in their places among those that are there."""
    for i, value in zip(here, values, strict=True):
        among[i] = value
    return among
