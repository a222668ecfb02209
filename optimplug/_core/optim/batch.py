"""Parameters of all groups, laid out as few batches.

The cost of a step must not grow with the number of groups, so a batch holds tensors of every group
that shares its rule, device and dtype; hyperparameters that differ go in as one scalar per tensor.
What does not change from step to step is laid out once and checked cheaply at each step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimplug._core.optim.rule import Hyper, Rule
from optimplug.errors import GradientError

__all__ = ["Batch", "Cell", "Layout", "State"]

State: TypeAlias = MutableMapping[Tensor, dict[str, Any]]


@dataclass
class Cell:
    """Parameters of one group that have stepped equally often, so that they share every scalar.

    They share one step counter as well: ``counter`` stands in each one's state as ``step``.
    """

    group: int
    rule: Rule
    params: list[Tensor] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    counter: Tensor | None = None
    fresh: bool = False

    @property
    def t(self) -> float:
        """The number of this update, from 1."""
        if self.counter is None:
            return 1.0 if self.fresh else 2.0
        return float(self.counter)


@dataclass
class Batch:
    """What one call can update: same rule, device and dtype, whatever the groups.

    Each of the lists has one entry per tensor; complex tensors are given as pairs of real numbers.
    ``cells`` says, in order, how many of them share their scalars, and ``hypers`` what these are.
    """

    rule: Rule
    cells: list[Cell]
    hypers: list[Hyper]
    params: list[Tensor]
    grads: list[Tensor]
    states: dict[str, list[Tensor]]

    @property
    def has_sparse(self) -> bool:
        """Whether the gradients are sparse; then all of them are."""
        return self.grads[0].is_sparse

    def parts(self) -> Iterator[tuple[Cell, Hyper, slice]]:
        """Walk the cells with the place of their tensors."""
        start = 0
        for cell, hyper in zip(self.cells, self.hypers, strict=True):
            yield cell, hyper, slice(start, start + len(cell.params))
            start += len(cell.params)


class Layout:
    """Which parameters step together, found once and valid until something changes.

    Args:
        groups: the optimizer's param_groups.
        grads: the gradient of every parameter, in their order; None for one that will not step.
        rules: the rule of each group.
        state: the optimizer's state. Parameters new to it start from zeros; the state of a
            parameter without gradient is not touched.
        count_on_device: whether a parameter's step is counted on its own device, by its group.

    Raises:
        GradientError: a gradient is sparse where the rule takes none. Nothing has changed then.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        grads: Sequence[Tensor | None],
        rules: Sequence[Rule],
        state: State,
        count_on_device: bool,
    ) -> None:
        self.params = _flat(groups)
        self.missing = [g is None for g in grads]
        self.sparse = [g is not None and g.is_sparse for g in grads]
        self.rules = list(rules)
        _refuse_sparse(groups, grads, rules)
        self._counters: dict[Any, Tensor] = {}
        self._count_on_device = count_on_device
        cells: dict[Any, Cell] = {}
        place = 0
        for i, (group, rule) in enumerate(zip(groups, rules, strict=True)):
            for p in group["params"]:
                if not self.missing[place]:
                    kept, fresh = _ensure_state(p, rule, state)
                    counter = self._shared_counter(p, kept) if rule.counts_steps else None
                    form = (p.device, p.dtype, self.sparse[place], *_mesh(p))
                    key = (form, i, id(counter), fresh and counter is None)
                    cell = cells.setdefault(key, Cell(i, rule, counter=counter))
                    cell.fresh = fresh
                    cell.params.append(p)
                    cell.kept.append(kept)
                    cell.places.append(place)
                place += 1
        self.cells = list(cells.values())
        self._batches: dict[Any, list[Cell]] = defaultdict(list)
        for (form, *_), cell in cells.items():
            self._batches[cell.rule, form].append(cell)

    def fits(
        self,
        groups: Sequence[dict[str, Any]],
        grads: Sequence[Tensor | None],
        rules: Sequence[Rule],
        state: State,
    ) -> bool:
        """Tell whether nothing has changed: the parameters, who has a gradient, rules, state."""
        return (
            _same(self.params, _flat(groups))
            and self.missing == [g is None for g in grads]
            and self.rules == list(rules)
            and all(self._holds(cell, grads, state) for cell in self.cells)
        )

    def _holds(self, cell: Cell, grads: Sequence[Tensor | None], state: State) -> bool:
        return (
            not (cell.fresh and cell.counter is None)
            and (not cell.kept[0] or _same(cell.kept, [state.get(p) for p in cell.params]))
            and (cell.counter is None or all(k["step"] is cell.counter for k in cell.kept))
            and not (cell.rule.takes_sparse and self._sparsity_changed(cell, grads))
        )

    def _sparsity_changed(self, cell: Cell, grads: Sequence[Tensor | None]) -> bool:
        return [g.is_sparse for g in _given(grads, cell.places)] != [
            self.sparse[place] for place in cell.places
        ]

    def advance(self, steps: Tensor | float) -> None:
        """Count ``steps`` updates for every parameter that has a gradient."""
        for counter in self._counters.values():
            counter += steps if isinstance(steps, float | int) else steps.to(counter.device)

    def batches(
        self, groups: Sequence[dict[str, Any]], grads: Sequence[Tensor | None]
    ) -> list[Batch]:
        """Return this step's work."""
        return [_batch(cells, groups, grads) for cells in self._batches.values()]

    def _shared_counter(self, p: Tensor, kept: dict[str, Any]) -> Tensor:
        """Let parameters that have stepped equally often share one counter, in ``kept`` too."""
        own = kept["step"]
        device = p.device if self._count_on_device else torch.device("cpu")
        key = (float(own), own.dtype, device)
        if key not in self._counters:
            # A new one: the old may still count for a parameter that has no gradient now.
            self._counters[key] = own.detach().clone().to(device)
        kept["step"] = self._counters[key]
        return self._counters[key]


def _batch(
    cells: list[Cell], groups: Sequence[dict[str, Any]], grads: Sequence[Tensor | None]
) -> Batch:
    rule = cells[0].rule
    columns = {
        "params": [p for cell in cells for p in cell.params],
        "grads": [g for cell in cells for g in _given(grads, cell.places)],
        **{name: [k[name] for cell in cells for k in cell.kept] for name in rule.state},
    }
    if columns["params"][0].is_complex():
        # Rules treat a complex number as two real ones, as torch does.
        columns = {name: _real(tensors) for name, tensors in columns.items()}
    hypers: list[Hyper] = [groups[cell.group] for cell in cells]
    return Batch(rule, cells, hypers, columns.pop("params"), columns.pop("grads"), columns)


def _given(grads: Sequence[Tensor | None], places: Sequence[int]) -> list[Tensor]:
    return [g for g in (grads[place] for place in places) if g is not None]


def _ensure_state(p: Tensor, rule: Rule, state: State) -> tuple[dict[str, Any], bool]:
    """Fill in what the state lacks; tell whether a tensor of it starts with this update."""
    if not rule.counts_steps and not rule.state:
        return {}, False
    kept = state[p]
    if rule.counts_steps and "step" not in kept:
        # In float32, as in torch, unless the default is wider.
        wide = torch.get_default_dtype() == torch.float64
        kept["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32)
    missing = [name for name in rule.state if kept.get(name) is None]
    for name in missing:
        kept[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
    return kept, bool(missing)


def _refuse_sparse(
    groups: Sequence[dict[str, Any]], grads: Sequence[Tensor | None], rules: Sequence[Rule]
) -> None:
    found = iter(grads)
    for group, rule in zip(groups, rules, strict=True):
        for i, (p, g) in enumerate(zip(group["params"], found, strict=False)):
            if g is not None and g.is_sparse and not rule.takes_sparse:
                raise GradientError(_sparse_message(group, i, p))


def _sparse_message(group: Mapping[str, Any], i: int, p: Tensor) -> str:
    name = group["param_names"][i] if "param_names" in group else f"of shape {tuple(p.shape)}"
    return (
        f"gradients must be dense, but that of parameter {name} is sparse; "
        "build its embedding with sparse=False, or give it to torch.optim.SparseAdam"
    )


def _flat(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    return list(chain.from_iterable(group["params"] for group in groups))


def _same(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _real(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.view_as_real(tensor) for tensor in tensors]


def _mesh(p: Tensor) -> tuple[Any, ...]:
    """Return what tells DTensors apart that cannot go into one call."""
    return (type(p), getattr(p, "device_mesh", None), getattr(p, "placements", None))
