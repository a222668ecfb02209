"""The parameters of all groups, laid out as few batches, found once and checked at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch, Form
from optimplug._core.optim.refusals import refuse_parameter, refuse_sparse
from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.shards import Shards
from optimplug._core.optim.step.batch_layout import BatchLayout
from optimplug._core.optim.step.counters import AnyCounters, CountOn
from optimplug._core.optim.step.members import (
    State,
    ensure_state,
    forget,
    gather_numbers,
    has_all,
    stepping,
)
from optimplug._core.optim.step.patterns import Patterns
from optimplug._core.optim.step.totals import Totals

if TYPE_CHECKING:
    from optimplug._core.optim.step.repeat import Repeat

__all__ = ["Layout", "WayBack"]

WayBack: TypeAlias = "Callable[[Mapping[int, Mapping[str, Any]]], bool]"
"""What takes a step back, as :meth:`Layout.way_back` says."""

_KNOWN = {(None, None), (None, False), (None, True), (False, False), (True, True)}
"""Who has no gradient may have been laid out or not; who has one, with one of this kind."""


class Layout:
    """Which parameters step together, found once and valid until something changes.

    Args:
        groups: the optimizer's param_groups.
        grads: the gradient of every parameter, in their order; None for one that will not step.
        rules: the rule of each group.
        state: the optimizer's state. Parameters new to it start from zeros; the state of a
            parameter without gradient is not touched.
        count_on: which devices count the steps of their parameters themselves; all else is counted
            on the CPU.
        before: what was laid out for the last step, if that still holds: who stepped then, and
            now has no gradient, may step again.

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
        count_on: CountOn,
        before: Layout | None = None,
    ) -> None:
        refuse_sparse(groups, grads, rules)
        known: list[bool | None] = [] if before is None else before._kinds
        away = {i for i, kind in enumerate(known) if kind is not None and grads[i] is None}
        members = [
            member
            for member in stepping(groups, grads, rules, away)
            if member.place not in away or has_all(member.p, member.rule, state)
        ]
        for member in members:
            if member.place not in away:
                refuse_parameter(member.p, member.rule)
        for member in members:
            hyper = groups[member.group]
            member.kept, member.begun = ensure_state(member.p, member.rule, state, hyper)
        self._begun = [(member.place, member.begun) for member in members if member.begun]
        gather_numbers(members, count_on)
        self._kinds: list[bool | None] = _kinds(grads)
        for member in members:
            if member.place in away:
                self._kinds[member.place] = known[member.place]
        self._rules = list(rules)
        # Whoever is compared by its number alone may be gone, and another one have that number:
        # that is why a batch looks at its tensors' forms again.
        self._params = list(map(id, _flat(groups)))
        self._sizes = _sizes(groups)
        self._owners = list(map(id, state))
        positions = {number: i for i, number in enumerate(self._owners)}
        layouts: dict[Any, BatchLayout] = {}
        for member in members:
            # What agrees in all of this can be updated by one call, whatever its group.
            form = Form.of(member.p)
            types = tuple(member.kept[name].dtype for name in member.rule.state_names)
            counters = member.number.counters if member.number and member.rule.scalars else None
            lies = Shards.of([member.p]).lies if member.rule.scope != "element" else None
            key = (member.rule, form, self._kinds[member.place], types, id(counters), lies)
            layout = layouts.setdefault(key, BatchLayout(member.rule, form))
            layout.add(member, positions[id(member.p)] if member.kept else None)
        self._patterns = Patterns(list(layouts.values()))
        # A rule without a count has other scalars at a parameter's first update.
        self._begins = any(not layout.steps and any(layout.firsts) for layout in layouts.values())
        self.again: Repeat | None = None
        self.attempts = 3
        """How often it is tried yet to keep what a step has found."""
        states = list(state.values())
        for layout in layouts.values() if self._untouched and not self._begins else ():
            layout.remember(states)

    @property
    def everyone(self) -> list[BatchLayout]:
        """All that are laid out, whether they have a gradient in this step or not."""
        return self._patterns.everyone.layouts

    @property
    def rules(self) -> list[Rule]:
        """The rule of each group."""
        return self._rules

    @property
    def layouts(self) -> list[BatchLayout]:
        """Those of this step."""
        return self._patterns.now.layouts

    def fits(
        self,
        groups: Sequence[dict[str, Any]],
        grads: Sequence[Tensor | None],
        rules: Sequence[Rule],
        state: State,
    ) -> bool:
        """Tell whether the next step may use it, so far as is known without looking at states."""
        return not self._begins and self._knows(grads) and self.holds(groups, rules, state)

    def holds(self, groups: Sequence[dict[str, Any]], rules: Sequence[Rule], state: State) -> bool:
        """Tell whether what it knows is still so, whoever steps next."""
        return self._rules == rules and self.has_all(groups, _flat(groups), state)

    def has_all(
        self, groups: Sequence[dict[str, Any]], params: Sequence[Tensor], state: State
    ) -> bool:
        """Tell whether parameters and states are those that it knows, and counted as it knows."""
        return (
            self._untouched
            and self._params == list(map(id, params))
            and self._sizes == _sizes(groups)  # one may have gone to the group next to its own
            and self._owners == list(map(id, state))
        )

    def takes(self, present: Sequence[bool] | None) -> bool:
        """Tell whether all that have a dense gradient were laid out with one; None: all have."""
        if present is None:
            return None not in self._kinds
        return (True, None) not in zip(present, self._kinds, strict=True)

    @property
    def was_turned(self) -> bool:
        """Whether a step was done the longer way since :meth:`count` was last called."""
        return self._patterns.was_turned

    def count(self, present: Sequence[bool] | None) -> None:
        """Count an update for those that have a gradient; None: for all."""
        self._patterns.count(present)

    def _knows(self, grads: Sequence[Tensor | None]) -> bool:
        """Tell whether all that have a gradient are among those that were laid out."""
        kinds = _kinds(grads)
        if len(kinds) != len(self._kinds):
            return False  # some have been added, or taken out
        return kinds == self._kinds or {*zip(kinds, self._kinds, strict=True)} <= _KNOWN

    def batches(
        self, groups: Sequence[dict[str, Any]], grads: Sequence[Tensor | None], state: State
    ) -> list[Batch] | None:
        """Return this step's work; None where some state is not what was laid out."""
        present = [g is not None for g in grads]
        all_laid_out = present == [kind is not None for kind in self._kinds]
        self._patterns.turn_to(None if all_laid_out else present)
        params, states = _flat(groups), list(state.values())
        found = [layout.batch(groups, params, grads, states) for layout in self.layouts]
        return None if None in found else cast("list[Batch]", found)

    def goes_on(self, grads: Sequence[Tensor | None]) -> bool:
        """Tell whether those step that stepped last, so that nothing is to be laid out for them."""
        present = [g is not None for g in grads]
        all_laid_out = present == [kind is not None for kind in self._kinds]
        return self._patterns.is_at(None if all_laid_out else present)

    @property
    def begins(self) -> bool:
        """Whether a state begins with this update, or it is the first of a rule without a count."""
        return self._begins or bool(self._begun)

    @property
    def counters(self) -> list[AnyCounters]:
        """What all its parameters are counted with."""
        return [counters for counters, _ in self._patterns.everyone.counted]

    @property
    def _untouched(self) -> bool:
        return all(counters.untouched for counters in self.counters)

    def forget_begun(self, groups: Sequence[dict[str, Any]], state: State) -> bool:
        """Take back states that began for an update which was then left out; tell if there are."""
        params = _flat(groups)
        for place, names in self._begun:
            forget(params[place], names, state)
        return bool(self._begun)

    @property
    def has_first(self) -> bool:
        """Whether there are parameters whose first update decides how the next ones go."""
        return any(any(layout.firsts) and not layout.rule.counts_steps for layout in self.layouts)

    @property
    def must_know_of_skips(self) -> bool:
        """Whether more than tensors and counts changes, so that a skipped update is to be known."""
        rules = self._rules
        return self.has_first or any(rule.scalars or rule.counts_in_groups for rule in rules)

    def next_numbers(self, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        """Return for each batch what :attr:`Rule.scalars` are after the update."""
        return [batch.next_scalars() for batch in batches if batch.rule.scalars]

    def write(self, numbers: Sequence[Mapping[str, Tensor]], done: Tensor | None = None) -> None:
        """Write what :meth:`next_numbers` has returned; with ``done``, where that is not 0."""
        with_scalars = [layout for layout in self.layouts if layout.rule.scalars]
        for layout, values in zip(with_scalars, numbers, strict=True):
            counters = layout.numbers[0].counters
            if done is not None:
                before = counters.read(layout.ats, list(values))
                values = {
                    n: torch.where(done.to(v.device) != 0, v, before[n]) for n, v in values.items()
                }
            counters.write(layout.ats, values)

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

    def way_back(self, groups: Sequence[dict[str, Any]], state: State) -> WayBack:
        """Return what undoes a step, asked for before it.

        It is given what the step has changed in the groups' settings, as :meth:`next_settings`
        returns it, and tells whether states are gone. Tensors are left alone, but those that began.
        """
        begun = list(self._begun)
        numbers = [
            layout.numbers[0].counters.read(layout.ats, names)
            for layout in self.layouts
            if (names := [spec.name for spec in layout.rule.scalars])
        ]
        before = [dict(group) for group in groups]

        def restore(changed: Mapping[int, Mapping[str, Any]]) -> bool:
            self.advance(-1)
            self.write(numbers)
            for i, settings in changed.items():
                for key in settings.keys() - before[i].keys():
                    del groups[i][key]
                groups[i].update({k: before[i][k] for k in settings.keys() & before[i].keys()})
            self._begun = begun
            return self.forget_begun(groups, state)

        return restore

    def advance(self, steps: Tensor | float) -> None:
        """Count ``steps`` updates for every parameter that has a gradient."""
        self._begun = []  # what has been updated has begun
        self._patterns.now.advance(steps)


def _kinds(grads: Sequence[Tensor | None]) -> list[bool | None]:
    """Return for each gradient whether it is sparse; None where there is none."""
    return [None if g is None else g.is_sparse for g in grads]


def _sizes(groups: Iterable[Mapping[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _flat(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    return list(chain.from_iterable(group["params"] for group in groups))
