"""The parameters of all groups, laid out as few batches, found once and checked at each step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from types import NoneType
from typing import Any, cast

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch, Cell, Form
from optimplug._core.optim.counters import AnyCounters, Place
from optimplug._core.optim.members import State, ensure_state, forget, gather_numbers, stepping
from optimplug._core.optim.refusals import refuse_parameter, refuse_sparse
from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.shards import Shards, is_sharded, local
from optimplug._core.optim.totals import Totals

__all__ = ["Layout"]


@dataclass
class _BatchLayout:
    """The part of a batch that stays from step to step.

    It holds neither parameters nor states, only where they stand: what the user lets go is free.
    """

    rule: Rule
    form: Form
    cells: list[Cell] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """The position of each parameter among those of all groups."""
    kept: list[int] = field(default_factory=list)
    """The position of each parameter's state among all states; empty where the rule has none."""
    steps: list[Tensor] = field(default_factory=list)
    """The step counter of each parameter; empty where the rule does not count."""
    numbers: list[Place] = field(default_factory=list)
    """Where each parameter's numbers are kept; empty where its rule has none beside the count."""
    addresses: list[int] = field(default_factory=list)
    """Where all these numbers stand in memory; empty where nobody asks again."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What an execution keeps here; see :class:`Batch`."""

    def add(self, place: int, cell: Cell) -> None:
        """Append a tensor, to the last cell if it belongs there, else to a new one."""
        if not self.cells or not self.cells[-1].takes(cell):
            self.cells.append(cell)
            cell.part = slice(len(self.places), len(self.places))
        self.places.append(place)
        self.cells[-1].part = slice(self.cells[-1].part.start, len(self.places))

    def batch(
        self,
        groups: Sequence[dict[str, Any]],
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: Sequence[dict[str, Any]],
    ) -> Batch | None:
        """Return this step's work; None where it is not what was laid out.

        Args:
            groups: the optimizer's param_groups.
            params: the parameters of all groups.
            grads: the gradient of each.
            states: all states, in their order.
        """
        columns = self._columns(params, grads, states)
        if columns is None:
            return None
        owners = columns["params"]
        sharded = is_sharded(owners[0])
        if sharded:
            columns = _local(columns)
        if owners[0].is_complex():
            # Rules treat a complex number as two real ones, as torch does.
            columns["grads"] = [g.resolve_conj() for g in columns["grads"]]
            columns = {name: list(map(torch.view_as_real, c)) for name, c in columns.items()}
        hypers: list[Hyper] = [groups[cell.group] for cell in self.cells]
        tensors = columns.pop("params"), columns.pop("grads"), columns, self.steps
        known = sharded, self.memo, owners, self.form
        return Batch(self.rule, self.cells, hypers, *tensors, *known, places=self.places)

    def _columns(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: Sequence[dict[str, Any]],
    ) -> dict[str, list[Any]] | None:
        """Return the tensors of this step; None where a state is not what it was."""
        kept = _pick(self.kept, states)
        try:
            # Whoever has put another counter into a state, or other memory under one, wants it to
            # be used.
            numbers = self.rule.number_names if self.steps else ()
            if self.addresses and self.addresses != _addresses(kept, numbers):
                return None
            columns = {name: list(map(itemgetter(name), kept)) for name in self.rule.state_names}
        except (KeyError, TypeError):  # one is gone, or a number stands in its place
            return None
        if any(NoneType in set(map(type, column)) for column in columns.values()):
            return None
        return {"params": _pick(self.places, params), "grads": _pick(self.places, grads), **columns}


class Layout:
    """Which parameters step together, found once and valid until something changes.

    Args:
        groups: the optimizer's param_groups.
        grads: the gradient of every parameter, in their order; None for one that will not step.
        rules: the rule of each group.
        state: the optimizer's state. Parameters new to it start from zeros; the state of a
            parameter without gradient is not touched.
        count_on: the types of device that count the steps of their parameters themselves, for
            rules that have a fused operator; all else is counted on the CPU.

    Raises:
        GradientError: a gradient is sparse where the rule takes none. Nothing has changed then.
        ArgumentError: a parameter is sharded, and its rule needs to see the whole of it.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        grads: Sequence[Tensor | None],
        rules: Sequence[Rule],
        state: State,
        count_on: Collection[str],
    ) -> None:
        refuse_sparse(groups, grads, rules)
        members = list(stepping(groups, grads, rules))
        for member in members:
            refuse_parameter(member.p, member.rule)
        for member in members:
            hyper = groups[member.group]
            member.kept, member.begun = ensure_state(member.p, member.rule, state, hyper)
        self._begun = [(member.place, member.begun) for member in members if member.begun]
        gather_numbers(members, count_on)
        self._counters: list[AnyCounters] = list(
            {id(m.number.counters): m.number.counters for m in members if m.number}.values()
        )
        self._kinds = _kinds(grads)
        self._rules = list(rules)
        # Whoever is compared by its number alone may be gone, and another one have that number:
        # that is why a batch looks at its tensors' forms again.
        self._params = list(map(id, _flat(groups)))
        self._sizes = _sizes(groups)
        self._owners = list(map(id, state))
        positions = {number: i for i, number in enumerate(self._owners)}
        layouts: dict[Any, _BatchLayout] = {}
        for member in members:
            # What agrees in all of this can be updated by one call, whatever its group.
            form = Form.of(member.p)
            types = tuple(member.kept[name].dtype for name in member.rule.state_names)
            counters = member.number.counters if member.number and member.rule.scalars else None
            lies = Shards.of([member.p]).lies if member.rule.scope != "element" else None
            key = (member.rule, form, self._kinds[member.place], types, id(counters), lies)
            layout = layouts.setdefault(key, _BatchLayout(member.rule, form))
            layout.add(member.place, member.cell)
            if member.kept:
                layout.kept.append(positions[id(member.p)])
            if member.number is not None:
                layout.steps.append(member.kept["step"])
                layout.numbers.append(member.number)
        self.layouts = list(layouts.values())
        states = list(state.values())
        for layout in self.layouts if self._lasts else ():
            if layout.steps:
                kept = _pick(layout.kept, states)
                layout.addresses = _addresses(kept, layout.rule.number_names)

    def fits(
        self,
        groups: Sequence[dict[str, Any]],
        grads: Sequence[Tensor | None],
        rules: Sequence[Rule],
        state: State,
    ) -> bool:
        """Tell whether the next step may use it, so far as is known without looking at states."""
        return (
            self._lasts
            and self._params == list(map(id, _flat(groups)))
            and self._sizes == _sizes(groups)  # one may have gone to the group next to its own
            and self._kinds == _kinds(grads)
            and self._rules == rules
            and self._owners == list(map(id, state))
        )

    def batches(
        self, groups: Sequence[dict[str, Any]], grads: Sequence[Tensor | None], state: State
    ) -> list[Batch] | None:
        """Return this step's work; None where some state is not what was laid out."""
        params, states = _flat(groups), list(state.values())
        found = [layout.batch(groups, params, grads, states) for layout in self.layouts]
        return None if None in found else cast("list[Batch]", found)

    @property
    def _lasts(self) -> bool:
        for layout in self.layouts:
            # A rule without a count has other scalars at a parameter's first update.
            if not layout.steps and any(cell.first for cell in layout.cells):
                return False
        return all(counters.untouched for counters in self._counters)

    def forget_begun(self, groups: Sequence[dict[str, Any]], state: State) -> bool:
        """Take back states that began for an update which was then left out; tell if there are."""
        params = _flat(groups)
        for place, names in self._begun:
            forget(params[place], names, state)
        return bool(self._begun)

    @property
    def has_first(self) -> bool:
        """Whether there are parameters whose first update decides how the next ones go."""
        return any(
            cell.first and not layout.rule.counts_steps
            for layout in self.layouts
            for cell in layout.cells
        )

    @property
    def must_know_of_skips(self) -> bool:
        """Whether more than tensors and counts changes, so that a skipped update is to be known."""
        rules = self._rules
        return self.has_first or any(rule.scalars or rule.counts_in_groups for rule in rules)

    def next_numbers(self, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        """Return for each batch what :attr:`Rule.scalars` are after the update."""
        return [batch.next_scalars() for batch in batches if batch.rule.scalars]

    def write(self, numbers: Sequence[Mapping[str, Tensor]]) -> None:
        """Write what :meth:`next_numbers` has returned."""
        with_scalars = [layout for layout in self.layouts if layout.rule.scalars]
        for layout, values in zip(with_scalars, numbers, strict=True):
            places = [place.at for place in layout.numbers]
            layout.numbers[0].counters.write(places, values)

    def next_settings(
        self, groups: Sequence[Hyper], state: State, totals: Mapping[int, Totals]
    ) -> dict[int, dict[str, Any]]:
        """Return for each group that counts, by its position, what changes in its settings.

        ``totals`` are what the groups have measured in the step; see :mod:`.totals`. A group whose
        parameters have had no gradient yet, as it is frozen, say, has not begun.
        """
        counting = [i for i, rule in enumerate(self._rules) if rule.counts_in_groups]
        stepping = {cell.group for layout in self.layouts for cell in layout.cells}
        # Who shares what others have measured goes on with them, with a gradient or without.
        shared = self._pooled(groups, totals)
        return {
            i: self._rules[i].next_settings(groups[i], shared.get(i, {}))
            for i in counting
            if i in stepping or shared.get(i) or any(state.get(p) for p in groups[i]["params"])
        }

    def _pooled(self, groups: Sequence[Hyper], totals: Mapping[int, Totals]) -> dict[int, Totals]:
        """Return for each group the sums over all groups that share them with it."""
        measuring: dict[type[Rule], list[int]] = {}
        for i, rule in enumerate(self._rules):
            if rule.measures:
                measuring.setdefault(rule.kind, []).append(i)
        found: dict[int, Totals] = {}
        for places in measuring.values():
            rule = self._rules[places[0]]
            for pool in rule.pools([groups[i] for i in places]):
                own = [totals[places[i]] for i in pool if places[i] in totals]
                sums = {name: sum(each[name] for each in own) for name in rule.measures if own}
                found.update({places[i]: sums for i in pool})
        return found

    def advance(self, steps: Tensor | float) -> None:
        """Count ``steps`` updates for every parameter that has a gradient."""
        self._begun = []  # what has been updated has begun
        for counters in self._counters:
            counters.advance(steps)


def _kinds(grads: Sequence[Tensor | None]) -> list[bool | None]:
    """Return for each gradient whether it is sparse; None where there is none."""
    return [None if g is None else g.is_sparse for g in grads]


def _addresses(kept: Sequence[dict[str, Any]], names: Sequence[str]) -> list[int]:
    """Return where the numbers of these states stand in memory."""
    return [at for n in names for at in map(Tensor.data_ptr, map(itemgetter(n), kept))]


def _pick(places: Sequence[int], found: Sequence[Any]) -> list[Any]:
    """Return what stands at these places."""
    # For one alone, itemgetter returns no tuple.
    return list(itemgetter(*places)(found)) if len(places) > 1 else [found[i] for i in places]


def _sizes(groups: Iterable[Mapping[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _flat(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    return list(chain.from_iterable(group["params"] for group in groups))


def _local(columns: dict[str, list[Any]]) -> dict[str, list[Tensor]]:
    """Return the shards that are here: an update works on each element by itself."""
    columns["grads"] = [
        g if g.placements == p.placements else g.redistribute(placements=p.placements)
        for p, g in zip(columns["params"], columns["grads"], strict=True)
    ]
    return {name: list(map(local, column)) for name, column in columns.items()}
