"""The parameters of all groups, laid out as few batches, found once and checked at each step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch, Cell
from optimplug._core.optim.rule import Hyper, Rule
from optimplug.errors import ArgumentError, GradientError

__all__ = ["Layout", "State"]

State: TypeAlias = MutableMapping[Tensor, dict[str, Any]]


@dataclass
class _BatchLayout:
    """The part of a batch that stays from step to step."""

    rule: Rule
    cells: list[Cell] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)
    """The state of each parameter, as it stands in the optimizer."""
    places: list[int] = field(default_factory=list)
    """The position of each parameter among those of all groups."""
    steps: list[Tensor] = field(default_factory=list)
    """The step counter of each parameter; empty where the rule does not count."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What an execution keeps here; see :class:`Batch`."""

    def add(self, p: Tensor, kept: dict[str, Any], place: int, cell: Cell) -> None:
        """Append a tensor, to the last cell if it belongs there, else to a new one."""
        if not self.cells or not self.cells[-1].takes(cell):
            self.cells.append(cell)
            cell.part = slice(len(self.params), len(self.params))
        self.params.append(p)
        self.kept.append(kept)
        self.places.append(place)
        if cell.counter is not None:
            self.steps.append(cell.counter)
        self.cells[-1].part = slice(self.cells[-1].part.start, len(self.params))

    def of(self, cell: Cell) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Walk the parameters of a cell, with their states."""
        return zip(self.params[cell.part], self.kept[cell.part], strict=True)

    def still_holds(self) -> bool:
        """Tell whether the next step may use it again."""
        if not self.steps:
            # A rule without a count has other scalars at a parameter's first update.
            return not any(cell.first for cell in self.cells)
        # Whoever has put another counter into a state wants it to be used.
        return _same(self.steps, [kept["step"] for kept in self.kept])

    def batch(self, groups: Sequence[dict[str, Any]], grads: Sequence[Tensor | None]) -> Batch:
        """Return this step's work."""
        columns = {
            "params": self.params,
            "grads": [g for g in (grads[place] for place in self.places) if g is not None],
            **{name: [kept[name] for kept in self.kept] for name in self.rule.state_names},
        }
        sharded = _is_sharded(self.params[0])
        if sharded:
            columns = _local(columns)
        if self.params[0].is_complex():
            # Rules treat a complex number as two real ones, as torch does.
            columns["grads"] = [g.resolve_conj() for g in columns["grads"]]
            columns = {name: list(map(torch.view_as_real, c)) for name, c in columns.items()}
        hypers: list[Hyper] = [groups[cell.group] for cell in self.cells]
        params, own = columns.pop("params"), columns.pop("grads")
        tensors = params, own, columns, self.steps
        return Batch(self.rule, self.cells, hypers, *tensors, sharded, self.memo)


class Layout:
    """Which parameters step together, found once and valid until something changes.

    Args:
        groups: the optimizer's param_groups.
        grads: the gradient of every parameter, in their order; None for one that will not step.
        rules: the rule of each group.
        state: the optimizer's state. Parameters new to it start from zeros; the state of a
            parameter without gradient is not touched.
        count_on_device: whether a parameter's steps are counted on its own device, or on the CPU.

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
        count_on_device: bool,
    ) -> None:
        _refuse_sparse(groups, grads, rules)
        self._params = _flat(groups)
        self._kinds = _kinds(grads)
        self._rules = list(rules)
        self._counters: dict[Any, Tensor] = {}
        layouts: dict[Any, _BatchLayout] = {}
        places = iter(range(len(grads)))
        for i, (group, rule) in enumerate(zip(groups, rules, strict=True)):
            for p, place in zip(group["params"], places, strict=False):
                if self._kinds[place] is None:
                    continue
                _refuse_part(p, rule)
                kept, first = _ensure_state(p, rule, state)
                # Only an operator of torch's reads the count where it runs.
                there = count_on_device and bool(rule.fused_dtypes)
                counter = self._counter(p, kept, there) if rule.counts_steps else None
                types = tuple(kept[name].dtype for name in rule.state_names)
                # What agrees in all of this can be updated by one call, whatever its group.
                form = (rule, type(p), p.layout, p.device, p.dtype, self._kinds[place], types)
                layout = layouts.setdefault(form, _BatchLayout(rule))
                layout.add(p, kept, place, Cell(i, counter, first))
        self.layouts = list(layouts.values())
        # To compare whole lists is quicker than to look every parameter up in the state.
        self._owners, self._kept = list(state), list(state.values())

    def fits(
        self,
        groups: Sequence[dict[str, Any]],
        grads: Sequence[Tensor | None],
        rules: Sequence[Rule],
        state: State,
    ) -> bool:
        """Tell whether nothing has changed: parameters, kinds of gradients, rules, state."""
        return (
            _same(self._params, _flat(groups))
            and self._kinds == _kinds(grads)
            and self._rules == rules
            and _same(self._kept, list(state.values()))
            and _same(self._owners, list(state))
            and all(layout.still_holds() for layout in self.layouts)
        )

    def forget_first(self, state: State) -> None:
        """Take back states that began with an update which was then left out."""
        for layout in self.layouts:
            for cell in layout.cells if not layout.rule.counts_steps else ():
                for p, kept in layout.of(cell) if cell.first else ():
                    for name in layout.rule.state_names:
                        kept.pop(name, None)
                    if not kept:
                        state.pop(p, None)

    @property
    def has_first(self) -> bool:
        """Whether there are parameters whose first update decides how the next ones go."""
        return any(
            cell.first and not layout.rule.counts_steps
            for layout in self.layouts
            for cell in layout.cells
        )

    def advance(self, steps: Tensor | float) -> None:
        """Count ``steps`` updates for every parameter that has a gradient."""
        for counter in self._counters.values():
            counter += steps if isinstance(steps, float | int) else steps.to(counter.device)

    def batches(
        self, groups: Sequence[dict[str, Any]], grads: Sequence[Tensor | None]
    ) -> list[Batch]:
        """Return this step's work."""
        return [layout.batch(groups, grads) for layout in self.layouts]

    def _counter(self, p: Tensor, kept: dict[str, Any], on_device: bool) -> Tensor:
        """Let parameters that have stepped equally often share one counter, in ``kept`` too."""
        own = kept["step"]
        device = p.device if on_device else torch.device("cpu")
        key = (float(own), own.dtype, device)
        if key not in self._counters:
            # A new one: the old may still count for a parameter that has no gradient now.
            self._counters[key] = own.detach().clone().to(device)
        kept["step"] = self._counters[key]
        return self._counters[key]


def _kinds(grads: Sequence[Tensor | None]) -> list[bool | None]:
    """Return for each gradient whether it is sparse; None where there is none."""
    return [None if g is None else g.is_sparse for g in grads]


def _ensure_state(p: Tensor, rule: Rule, state: State) -> tuple[dict[str, Any], bool]:
    """Fill in what the state lacks; tell whether a tensor of it starts with this update."""
    if not rule.counts_steps and not rule.state:
        return {}, False
    kept = state[p]
    if rule.counts_steps and "step" not in kept:
        # In float32, as in torch, unless the default is wider.
        wide = torch.get_default_dtype() == torch.float64
        kept["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32)
    missing = [spec for spec in rule.state if kept.get(spec.name) is None]
    for spec in missing:
        kept[spec.name] = spec.create(p)
    return kept, bool(missing)


def _refuse_sparse(
    groups: Sequence[dict[str, Any]], grads: Sequence[Tensor | None], rules: Sequence[Rule]
) -> None:
    found = iter(grads)
    for group, rule in zip(groups, rules, strict=True):
        for i, (p, g) in enumerate(zip(group["params"], found, strict=False)):
            if g is not None and g.is_sparse and not rule.takes_sparse:
                raise GradientError(_sparse_message(group, i, p))


def _refuse_part(p: Tensor, rule: Rule) -> None:
    """Refuse a parameter of which only a part is here, for a rule that needs the whole."""
    if rule.scope != "element" and _is_sharded(p):
        raise ArgumentError(
            f"{type(rule).__name__} must see a whole {rule.scope} at once, but of a parameter of "
            f"shape {tuple(p.shape)} only a shard is in this process; use an optimizer that "
            "updates each element by itself, such as AdamW"
        )


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


def _is_sharded(p: Tensor) -> bool:
    return hasattr(p, "to_local")  # a DTensor, known without importing torch.distributed


def _local(columns: dict[str, list[Any]]) -> dict[str, list[Tensor]]:
    """Return the shards that are here: an update works on each element by itself."""
    columns["grads"] = [
        g if g.placements == p.placements else g.redistribute(placements=p.placements)
        for p, g in zip(columns["params"], columns["grads"], strict=True)
    ]
    return {name: [tensor.to_local() for tensor in column] for name, column in columns.items()}
