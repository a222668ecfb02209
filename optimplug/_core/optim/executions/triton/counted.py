"""The scalars of a batch whose counts stand on the device, computed there.

For steps that a CUDA graph may record. Nothing is read from the device, so nothing is known of how
often each parameter has stepped: every tensor has scalars of its own, computed for many at once
from the vector of their counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch, Cell
from optimplug._core.optim.executions.capture import refuse_in_capture
from optimplug._core.optim.executions.program import Numbers
from optimplug._core.optim.executions.triton.tables import Constants, upload
from optimplug._core.optim.rule import Hyper

__all__ = ["CountedScalars"]

_MAY_DIFFER = ("lr", "weight_decay")
"""Settings by which no rule decides anything: groups that differ in these alone go together."""
_UNREAD = ("params", "param_names", "name", "initial_lr")
"""What groups have beside settings. Other keys of the user's own only keep groups apart."""


@dataclass
class CountedScalars:
    """Those of each tensor of a batch, on the device."""

    cells: Numbers
    """What is known of them on the host; NaN, which is no given number, for the others."""
    rows: array[int]
    """For each tensor its row among the scalars."""
    table: Tensor
    after: dict[str, Tensor]
    """For each tensor what its numbers become, by the names of :attr:`Rule.scalars`."""

    @classmethod
    def of(cls, batch: Batch, device: torch.device, held: list[Any]) -> CountedScalars:
        """Compute them, for the next update.

        Args:
            batch: its counters stand on the device.
            device: where.
            held: gets what a graph reads that is being captured.
        """
        return _Work(batch, device, held).done()

    def uploaded(self, device: torch.device) -> Tensor:
        """Return all of them on the device."""
        return self.table


@dataclass
class _Plan:
    """Which tensors are computed together; it stays for as long as cells and settings do."""

    cells: list[Cell]
    parts: list[list[int]]
    """The numbers of the cells of each part."""
    members: list[Tensor]
    """For each part the tensors in it, on the device."""
    owners: list[Tensor]
    """For each of these the place of its cell in the part."""
    rows: array[int]
    back: Tensor
    """The same as ``rows``, on the device."""

    @classmethod
    def of(cls, cells: list[Cell], parts: list[list[int]], device: torch.device) -> _Plan:
        refuse_in_capture("which tensors share their settings")
        members, owners, order = [], [], []
        for part in parts:
            own = [i for n in part for i in range(cells[n].part.start, cells[n].part.stop)]
            sizes = [cells[n].part.stop - cells[n].part.start for n in part]
            members.append(_there(own, device))
            owners.append(
                _there([at for at, size in enumerate(sizes) for _ in range(size)], device)
            )
            order += own
        rows = array("q", [0] * len(order))
        for row, tensor in enumerate(order):
            rows[tensor] = row
        return cls(cells, parts, members, owners, rows, _there(rows, device))


def _there(places: Sequence[int], device: torch.device) -> Tensor:
    return upload(torch.tensor(places, dtype=torch.int64, device="cpu"), device)


class _Work:
    """The computation of one step."""

    def __init__(self, batch: Batch, device: torch.device, held: list[Any]) -> None:
        self.batch, self.rule, self.device, self.held = batch, batch.rule, device, held
        memo = batch.memo
        self.constants: Constants = memo.setdefault("constants", Constants(device))
        self.plan = self._planned()
        held.append(self.plan)
        self.counts = batch.of_each("step").double() + 1 if self.rule.counts_steps else None
        self.kept = {spec.name: batch.of_each(spec.name) for spec in self.rule.scalars}

    def done(self) -> CountedScalars:
        """Return what has been computed."""
        tables, after, numbers = [], [], []
        for i, part in enumerate(self.plan.parts):
            found, moved = self._computed(i, part)
            after.append(moved)
            numbers.append({n: v if _is_number(v) else torch.nan for n, v in found.items()})
            tables.append(self._table(i, list(found.values())))
        ends = {
            spec.name: torch.cat([each[spec.name] for each in after])[self.plan.back]
            for spec in self.rule.scalars
        }
        table = tables[0] if len(tables) == 1 else torch.cat(tables)
        return CountedScalars(numbers, self.plan.rows, table, ends)

    def _known(self, hyper: Hyper) -> dict[str, Any]:
        """Return settings as numbers, and as tensors of float64 where the device has them."""
        return {key: self._value(value) for key, value in hyper.items() if key not in _UNREAD}

    def _value(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(map(self._value, value))
        if not isinstance(value, Tensor) or value.numel() != 1:
            return value
        if value.device != self.device:
            return float(value)
        return value.detach().reshape(()).double()

    def _planned(self) -> _Plan:
        """Return which tensors are computed together, as it was or anew."""
        batch, memo = self.batch, self.batch.memo
        parts: dict[Any, list[int]] = {}
        for i, (cell, hyper) in enumerate(zip(batch.cells, batch.hypers, strict=True)):
            names = sorted(hyper.keys() - {*_MAY_DIFFER, *_UNREAD})
            own = tuple((name, _comparable(hyper[name])) for name in names)
            parts.setdefault((own, None if self.rule.counts_steps else cell.t), []).append(i)
        plan: _Plan | None = memo.get("plan")
        found = list(parts.values())
        if plan is None or plan.cells is not batch.cells or plan.parts != found:
            plan = memo["plan"] = _Plan.of(batch.cells, found, self.device)
        return plan

    def _computed(self, at: int, part: list[int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the scalars of a part, and what its numbers become."""
        members = self.plan.members[at]
        hyper = self._known(self.batch.hypers[part[0]])
        for name in _MAY_DIFFER:
            if name in hyper:
                hyper[name] = self._of_part(at, name, [self.batch.hypers[n][name] for n in part])
        t = self.batch.cells[part[0]].t if self.counts is None else self.counts[members]
        moved = {}
        for spec in self.rule.scalars:
            old = self.kept[spec.name][members]
            new = self.rule.next_scalars(hyper, t)[spec.name]
            new = self._column(at, new).to(old.dtype)
            moved[spec.name] = old * new if spec.is_product else new
            hyper[spec.name] = old.double()
            hyper[f"next_{spec.name}"] = moved[spec.name].double()
        return self.rule.coefficients(hyper, t), moved

    def _of_part(self, at: int, name: str, values: list[Any]) -> Any:
        """Return a setting of a part: as it is where all have the same, else for each tensor."""
        first = values[0]
        if all(value is first for value in values):
            return self._value(first)
        if all(map(_is_number, values)):
            if len(set(values)) == 1:
                return first
            known = self.constants.there((at, name), values, self.held)
        else:
            own = (self._one((at, name, n), value) for n, value in enumerate(values))
            known = torch.stack(list(own)).double()
        return known[self.plan.owners[at]]

    def _one(self, name: Hashable, value: Any) -> Tensor:
        if isinstance(value, Tensor) and value.device == self.device:
            return value.detach().reshape(())
        return self.constants.there(name, [float(value)], self.held)[0]

    def _table(self, at: int, values: list[Any]) -> Tensor:
        """Return a row of scalars for each tensor of a part."""
        size = len(self.plan.members[at])
        if not values:
            return torch.empty(size, 0, dtype=torch.float64, device=self.device)
        numbers = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
        host = self.constants.there(at, numbers, self.held)
        columns = (
            self._column(at, value if isinstance(value, Tensor) else host[i])
            for i, value in enumerate(values)
        )
        return torch.stack(list(columns), 1)

    def _column(self, at: int, value: Any) -> Tensor:
        """Return a scalar for each tensor of a part."""
        if not isinstance(value, Tensor):
            value = self.constants.there((at, value), [value], self.held)[0]
        found: Tensor = value.double()
        return found.expand(len(self.plan.members[at]))


def _comparable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_comparable, value))
    return value if isinstance(value, Hashable) and not isinstance(value, Tensor) else id(value)


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tensor)
