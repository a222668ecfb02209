"""The part of a batch that stays from step to step, for all its parameters or for some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch, Cell, Form, pick
from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.shards import is_sharded, local
from optimplug._core.optim.step.counters import Count, Place, rows
from optimplug._core.optim.step.members import Member

__all__ = ["BatchLayout"]


@dataclass
class BatchLayout:
    """The part of a batch that stays from step to step.

    It holds neither parameters nor states, only where they stand: what the user lets go is free.
    """

    rule: Rule
    form: Form
    places: list[int] = field(default_factory=list)
    """The position of each parameter among those of all groups."""
    kept: list[int] = field(default_factory=list)
    """The position of each parameter's state among all states; empty where the rule has none."""
    steps: list[Tensor] = field(default_factory=list)
    """The step counter of each parameter; empty where the rule does not count."""
    numbers: list[Place] = field(default_factory=list)
    """Where each parameter's numbers are kept; empty where its rule does not count."""
    ats: list[int] = field(default_factory=list)
    """Their places among all that are kept together."""
    groups: list[int] = field(default_factory=list)
    """The group of each parameter."""
    firsts: list[bool] = field(default_factory=list)
    """For each parameter, whether some of its state begins with the next update."""
    cells: list[Cell] = field(default_factory=list)
    """Which of them share their scalars, as :meth:`cut` has found."""
    addresses: list[int] = field(default_factory=list)
    """Where all these numbers stand in memory; empty where nobody asks again."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What an execution keeps here; see :class:`Batch`."""

    def add(self, member: Member, position: int | None) -> None:
        """Append a parameter.

        Args:
            member: the parameter.
            position: that of its state among all states; None where it has none.
        """
        self.places.append(member.place)
        self.groups.append(member.group)
        self.firsts.append(member.is_first)
        if position is not None:
            self.kept.append(position)
        if member.number is not None:
            self.steps.append(member.kept["step"])
            self.numbers.append(member.number)
            self.ats.append(member.number.at)

    def remember(self, states: Sequence[dict[str, Any]]) -> None:
        """Remember where the numbers stand in memory, for whoever puts others there."""
        if self.steps:
            self.addresses = _addresses(pick(self.kept, states), self.rule.number_names)

    def part(self, is_in: Sequence[bool]) -> BatchLayout | None:
        """Return the same for some of the parameters; None where there is none of them.

        Args:
            is_in: for every parameter of all groups whether it is one of them.
        """
        its = [i for i, place in enumerate(self.places) if is_in[place]]
        if not its:
            return None
        some = BatchLayout(self.rule, self.form)
        for name in ("places", "kept", "steps", "numbers", "ats", "groups", "firsts"):
            column = getattr(self, name)
            setattr(some, name, pick(its, column) if column else [])
        names, count = len(self.rule.number_names), len(self.steps)
        starts = range(0, names * count, count) if self.addresses else ()
        some.addresses = [self.addresses[start + i] for start in starts for i in its]
        return some

    def cut(self) -> None:
        """Put neighbours that share their scalars into cells, as their numbers are by now."""
        stands = rows(self.numbers) if self.numbers else self.firsts
        shared: dict[Any, Count] = {}
        self.cells = []
        self.memo.pop("cells", None)
        start = 0
        for kind, alike in groupby(zip(self.groups, stands, self.firsts, strict=True)):
            stop = start + sum(1 for _ in alike)
            group, stand, first = kind
            # Numbers beside the count go on as the settings of the group say.
            key = (stand, group if self.rule.scalars else None)
            count = shared.get(key)
            if count is None:
                count = shared[key] = self._count(start)
            self.cells.append(Cell(group, count.step, first, count.scalars, slice(start, stop)))
            start = stop

    def _count(self, row: int) -> Count:
        """Return what follows the numbers of one parameter, and of all that go on with it."""
        if self.rule.scalars:
            counters, at = self.numbers[row]
            return counters.count(at)
        return Count(self.steps[row] if self.steps else None, {})

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
        where = self.places, self.numbers, self.ats
        return Batch(self.rule, self.cells, hypers, *tensors, *known, *where)

    def _columns(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: Sequence[dict[str, Any]],
    ) -> dict[str, list[Any]] | None:
        """Return the tensors of this step; None where a state is not what it was."""
        kept = pick(self.kept, states)
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
        return {"params": pick(self.places, params), "grads": pick(self.places, grads), **columns}


def _addresses(kept: Sequence[dict[str, Any]], names: Sequence[str]) -> list[int]:
    """Return where the numbers of these states stand in memory."""
    return [at for n in names for at in map(Tensor.data_ptr, map(itemgetter(n), kept))]


def _local(columns: dict[str, list[Any]]) -> dict[str, list[Tensor]]:
    """Return the shards that are here: an update works on each element by itself."""
    columns["grads"] = [
        g if g.placements == p.placements else g.redistribute(placements=p.placements)
        for p, g in zip(columns["params"], columns["grads"], strict=True)
    ]
    return {name: list(map(local, column)) for name, column in columns.items()}
