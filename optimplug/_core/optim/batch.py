"""What one call of an execution can update.

The cost of a step must not grow with the number of groups, so a batch holds tensors of every group
that shares its rule, device and dtype; hyperparameters that differ go in as one scalar per tensor.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from optimplug._core.optim.rule import Hyper, Rule

if TYPE_CHECKING:
    from optimplug._core.optim.step.counters import Place

__all__ = ["Batch", "Cell", "Form", "are_plain", "is_expanded", "pick"]


def pick(places: Sequence[int], found: Sequence[Any]) -> list[Any]:
    """Return what stands at these places."""
    # For one alone, itemgetter returns no tuple.
    return list(itemgetter(*places)(found)) if len(places) > 1 else [found[i] for i in places]


def are_plain(tensors: Iterable[Tensor]) -> bool:
    """Tell whether each tensor has its elements in a memory of its own, and is no wrapper."""
    own = {getattr(cls, "__torch_dispatch__", None) for cls in set(map(type, tensors))}
    return own <= {Tensor.__torch_dispatch__}


def is_expanded(tensor: Tensor) -> bool:
    """Tell whether one place in memory holds several elements, as ``expand`` leaves it."""
    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return False  # other layouts have no strides
    return any(
        step == 0 < size - 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


class Form(NamedTuple):
    """What the parameters of a batch have in common."""

    cls: type
    layout: torch.layout
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, p: Tensor) -> Form:
        """Return the form of a parameter."""
        return cls(type(p), p.layout, p.device, p.dtype)

    def is_that_of(self, params: Sequence[Tensor]) -> bool:
        """Tell whether all these have it."""
        return (
            set(map(type, params)) == {self.cls}
            and {p.device for p in params} == {self.device}
            and {p.dtype for p in params} == {self.dtype}
            and params[0].layout == self.layout
        )


@dataclass
class Cell:
    """Tensors of one group that have stepped equally often, so that they share every scalar.

    Each has a step counter of its own; ``counter`` is one that shows what all of them show.
    """

    group: int
    """The position of the group among the optimizer's."""
    counter: Tensor | None
    """How often each tensor has stepped; None where the rule does not count."""
    first: bool
    """Whether some of their state begins with the next update."""
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    """The numbers of :attr:`Rule.scalars`, which these tensors have in common."""
    part: slice = field(default_factory=lambda: slice(0, 0))
    """Where its tensors stand in their batch."""

    def takes(self, other: Cell) -> bool:
        """Tell whether the tensors of the other cell could stand in this one."""
        return (
            self.group == other.group
            and self.counter is other.counter
            and self.first == other.first
        )

    @property
    def t(self) -> float:
        """The number of this update, from 1; without a counter 1 or, for any later one, 2."""
        if self.counter is None:
            return 1.0 if self.first else 2.0
        return float(self.counter)


@dataclass
class Batch:
    """What one call can update: same rule, device and dtype, whatever the groups.

    Each of the lists has one entry per tensor: of a DTensor the shard that is here, of a complex
    tensor its numbers as pairs of real ones.
    ``cells`` says which of them share their scalars, and ``hypers`` what these are.
    """

    rule: Rule
    cells: list[Cell]
    hypers: list[Hyper]
    params: list[Tensor]
    grads: list[Tensor]
    states: dict[str, list[Tensor]]
    steps: list[Tensor]
    """The step counter of each tensor; empty where the rule does not count."""
    is_sharded: bool
    """Whether the tensors are parts of larger ones, the rest of which are with other processes."""
    memo: dict[str, Any]
    """What an execution has found out and wants to keep for as long as the layout stays."""
    owners: list[Tensor]
    """The parameters themselves, of which :attr:`params` may be shards or other views."""
    form: Form
    """What the parameters had in common when they were put together."""
    places: list[int] = field(default_factory=list)
    """The position of each parameter among those of all groups."""
    counted: list[Place] = field(default_factory=list)
    """Where the numbers of each tensor are kept; empty where the rule does not count."""
    ats: list[int] = field(default_factory=list)
    """The places of these among all, the same list for as long as the layout stays."""
    after_each: dict[str, Tensor] | None = None
    """For each tensor what its numbers become, where the host knows no more than that."""
    _after: dict[str, Tensor] = field(default_factory=dict)
    """For each cell what its numbers become, as :meth:`coefficients` has found."""

    @property
    def has_its_form(self) -> bool:
        """Whether the parameters still are what they were when they were put together.

        One that has moved to another device or changed its type belongs to another batch.
        """
        return self.form.is_that_of(self.owners)

    @property
    def cell_of(self) -> array[int]:
        """For each tensor the number of its cell."""
        found: array[int] | None = self.memo.get("cells")
        if found is None:
            sizes = (cell.part.stop - cell.part.start for cell in self.cells)
            numbers = (i for i, size in enumerate(sizes) for _ in range(size))
            found = self.memo["cells"] = array("q", numbers)
        return found

    def coefficients(self, ahead: int = 0) -> list[dict[str, Any]]:
        """Return the scalars of each cell; tensors where a hyperparameter is one.

        Args:
            ahead: for how many updates after the one that is counted last.
        """
        self._split_cells()
        counts = self._counts(ahead)
        # Cells may take turns, where their tensors have stepped unequally often.
        found: dict[Any, dict[str, Any]] = {}
        kinds = [(cell.group, id(cell.counter), cell.first) for cell in self.cells]
        for kind, hyper, t in zip(kinds, self._known(counts), counts, strict=True):
            if kind not in found:
                found[kind] = self.rule.coefficients(hyper, t)
        return [found[kind] for kind in kinds]

    def _counts(self, ahead: int) -> list[float]:
        """Return for each cell the number of an update; as :meth:`coefficients`."""
        kinds = {(id(cell.counter), cell.first): cell for cell in self.cells}
        # To read a number from a tensor takes long, and most cells share a counter: once for each.
        ahead *= self.rule.counts_steps
        if len(kinds) > 1 and self.rule.counts_steps:
            read = torch.stack([cast("Tensor", cell.counter) for cell in kinds.values()]).tolist()
        else:
            read = [cell.t for cell in kinds.values()]
        counts = dict(zip(kinds, read, strict=True))
        return [counts[id(cell.counter), cell.first] + ahead for cell in self.cells]

    def _known(self, counts: Sequence[float]) -> Sequence[Hyper]:
        """Return for each cell all that its scalars are computed from, for update ``counts``."""
        names = [spec.name for spec in self.rule.scalars]
        if not names:
            return self.hypers
        kept = {n: torch.stack([cell.scalars[n] for cell in self.cells]) for n in names}
        after = self._moved(kept, counts)
        self._after = after
        columns = {**kept, **{f"next_{name}": values for name, values in after.items()}}
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [
            {**hyper, **dict(zip(columns, row, strict=True))}
            for hyper, row in zip(self.hypers, rows, strict=True)
        ]

    def _moved(self, kept: dict[str, Tensor], counts: Sequence[float]) -> dict[str, Tensor]:
        """Return what the numbers that are kept become, in their own types."""
        rows = zip(self.hypers, counts, strict=True)
        given = [self.rule.next_scalars(hyper, t) for hyper, t in rows]
        found = {}
        for spec in self.rule.scalars:
            old = kept[spec.name]
            numbers = [float(each[spec.name]) for each in given]
            new = torch.tensor(numbers, dtype=old.dtype, device=old.device)
            found[spec.name] = old * new if spec.is_product else new
        return found

    def next_scalars(self) -> dict[str, Tensor]:
        """Return for each tensor what :attr:`Rule.scalars` become by the update at hand."""
        if self.after_each is not None:
            return self.after_each
        sizes = [cell.part.stop - cell.part.start for cell in self.cells]
        return {
            name: values.repeat_interleave(torch.tensor(sizes, device=values.device))
            for name, values in self._after.items()
        }

    def of_each(self, name: str) -> Tensor:
        """Return a number of each tensor, the count or one kept beside it, where they stand."""
        counters = self.counted[0].counters
        if all(place.counters is counters for place in self.counted):
            return counters.read(self.ats, [name])[name]
        return torch.cat([own.read([at], [name])[name] for own, at in self.counted])

    def _split_cells(self) -> None:
        """Take tensors apart whose counters, on a device of their own, somebody has changed.

        Whoever asks for their values has to wait for the device anyhow.
        """
        if not self.steps or self.steps[0].is_cpu:
            return
        counts, cells, hypers = torch.stack(self.steps).tolist(), [], []
        for cell, hyper in zip(self.cells, self.hypers, strict=True):
            places = range(cell.part.start, cell.part.stop)
            for count, members in groupby(places, key=counts.__getitem__):
                found = list(members)
                part = slice(found[0], found[-1] + 1)
                cells.append(replace(cell, counter=torch.tensor(count, device="cpu"), part=part))
                hypers.append(hyper)
        self.cells, self.hypers = cells, hypers

    def numbers(self, ahead: int = 0) -> list[dict[str, float]]:
        """Return the scalars of each cell as numbers; as :meth:`coefficients`."""
        return [{name: float(v) for name, v in k.items()} for k in self.coefficients(ahead)]

    @property
    def is_plain(self) -> bool:
        """Whether the tensors are torch's own kind, strided: no wrapper, no other layout."""
        p = self.params[0]
        return are_plain([p]) and p.layout is torch.strided

    @property
    def goes_together(self) -> bool:
        """Whether torch's operators for many tensors can take these."""
        return self.is_plain and not self.has_sparse and not self.is_mixed

    @property
    def is_mixed(self) -> bool:
        """Whether the tensors of an update are of several types."""
        columns = [self.params, self.grads, *self.states.values()]
        return len({tensor.dtype for column in columns for tensor in column}) > 1

    @property
    def has_sparse(self) -> bool:
        """Whether the gradients are sparse; then all of them are."""
        return self.grads[0].is_sparse
