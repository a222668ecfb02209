"""The groups of a plan as rows: one for all layers that differ in nothing but their rates."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimplug._core.optim.memory import Memory
from optimplug.recipe.parameters.groups import Group
from optimplug.recipe.plan import Plan, Rates

__all__ = ["Member", "Row", "folded_names", "rows_of", "settings_shown"]

_FEWEST = 3  # layers that become one row: two are read faster than what stands for them


@dataclass(frozen=True)
class Member:
    """A group with what a plan says of it."""

    index: int
    """Its place among the plan's groups."""
    group: Group
    rates: Rates
    memory: Memory
    settings: Mapping[str, Any]
    """What a table has a column for, by name."""


@dataclass(frozen=True)
class Row:
    """A group, or those of several layers in a row that differ in nothing but their rates."""

    name: str
    members: tuple[Member, ...]
    """From the lowest number of a layer to the highest; their rates go one way."""

    @property
    def first(self) -> Member:
        """The group of the lowest number."""
        return self.members[0]

    @property
    def last(self) -> Member:
        """The group of the highest number."""
        return self.members[-1]

    @property
    def tensors(self) -> int:
        """How many tensors all its groups have together."""
        return sum(len(member.group.parameters) for member in self.members)

    @property
    def numel(self) -> int:
        """How many elements all its groups have together."""
        return sum(member.group.numel for member in self.members)

    @property
    def memory(self) -> Memory:
        """What all its groups take together."""
        weights, gradients, state = zip(*(member.memory for member in self.members), strict=True)
        known = None if None in state else sum(state)
        return Memory(sum(weights), sum(gradients), known)


def rows_of(plan: Plan, unfold: bool = False) -> list[Row]:
    """Return the rows of a plan's table, in the order of the first groups in them.

    Args:
        plan: whose groups.
        unfold: a row for every group.
    """
    keys = settings_shown(plan)
    rows = [
        Row(group.name, (Member(i, group, rates, memory, _settings(plan, group, keys)),))
        for i, (group, rates, memory) in enumerate(
            zip(plan.groups, plan.rates(), plan.memory, strict=True)
        )
    ]
    place = 0
    # A name may hold several numbers, the layer's the first of them, or a later one.
    while not unfold and any(place < len(_numbers(row.first.group)) for row in rows):
        rows = _folded(rows, place)
        place += 1
    return rows


def settings_shown(plan: Plan) -> list[str]:
    """Return the hyperparameters that a table has: what rules have set, and the weight decay."""
    found = {key for group in plan.groups for key in group.settings if key != "lr"}
    return sorted(found | ({"weight_decay"} & plan.optimizers.hyperparameters.keys()))


def _settings(plan: Plan, group: Group, keys: Sequence[str]) -> dict[str, Any]:
    """Return those of these hyperparameters that the group's optimizer has."""
    has = group.settings.keys() | group.optimizer.hyperparameters.keys()
    return {key: plan.setting(group, key) for key in keys if key in has}


@dataclass(frozen=True)
class _Layer:
    """Where the group of a row lies: in the module ``stem`` + ``number``."""

    stem: str
    number: int
    rest: str
    """What follows in the group's name."""


def _folded(rows: Sequence[Row], place: int) -> list[Row]:
    """Fold those rows whose groups differ in the number at this place of their names alone."""
    alike: dict[object, list[tuple[_Layer, Row]]] = defaultdict(list)
    for row in rows:
        layer = _layer(row, place)
        key = row.name if layer is None else _all_but_rates(row.first, layer)
        alike[key].append((layer or _Layer(row.name, 0, ""), row))
    folded = [row for each in alike.values() for row in _runs(each)]
    return sorted(folded, key=lambda row: min(member.index for member in row.members))


def _numbers(group: Group) -> list[int]:
    """Return where in the names of all its parameters the same numbers stand, part by part."""
    names = [name.split(".") for name in group.parameters]
    shared = zip(*names, strict=False)
    found = []
    for i, parts in enumerate(shared):
        if len(set(parts)) > 1:
            break
        if parts[0].isdecimal() and str(int(parts[0])) == parts[0]:  # and no "01", which is not 1
            found.append(i)
    return found


def _layer(row: Row, place: int) -> _Layer | None:
    """Return the layer of a row; None where its groups have no number there, or it is folded."""
    group = row.first.group
    numbers = _numbers(group)
    if len(row.members) > 1 or place >= len(numbers):
        return None
    parts = next(iter(group.parameters)).split(".")[: numbers[place] + 1]
    path = ".".join(parts)
    if not group.name.startswith(path):
        return None
    stem = path[: len(path) - len(parts[-1])]
    return _Layer(stem, int(parts[-1]), group.name[len(path) :])


def _all_but_rates(member: Member, layer: _Layer) -> tuple[object, ...]:
    """Return all that must be the same in groups of one row."""
    group = member.group
    path = f"{layer.stem}{layer.number}"
    tensors = tuple((name[len(path) :], tuple(p.shape)) for name, p in group.parameters.items())
    told = (group.rules, group.schedule, group.freeze, group.optimizer.path, member.memory)
    settings = {**group.settings, "lr": None}
    return (layer.stem, layer.rest, tensors, *told, repr(sorted(settings.items())))


def _runs(alike: Sequence[tuple[_Layer, Row]]) -> Iterator[Row]:
    """Fold layers that follow each other for as long as the rates go one way."""
    rest = sorted(alike, key=lambda each: each[0].number)
    while rest:
        run = _run(rest)
        if len(run) < _FEWEST:
            run = run[:1]
            yield run[0][1]
        else:
            (low, _), (high, _) = run[0], run[-1]
            name = f"{_from_to(low.stem, low.number, high.number)}{low.rest}"
            yield Row(name, tuple(member for _, row in run for member in row.members))
        rest = rest[len(run) :]


def _run(rest: Sequence[tuple[_Layer, Row]]) -> Sequence[tuple[_Layer, Row]]:
    """Return the first layers, each the next of the one before it, whose rates go one way."""
    for n in range(1, len(rest)):
        follows = rest[n][0].number == rest[n - 1][0].number + 1
        if not follows or not _one_way([row.first.rates for _, row in rest[: n + 1]]):
            return rest[:n]
    return rest


def _one_way(rates: Sequence[Rates]) -> bool:
    """Tell whether start, peak and end all only rise with the layers, or all only fall."""
    steps = [
        after - before
        for low, high in itertools.pairwise(rates)
        for before, after in zip(low, high, strict=True)
    ]
    return all(step >= 0 for step in steps) or all(step <= 0 for step in steps)


def _from_to(stem: str, low: int, high: int) -> str:
    """Return ``encoder.layer.0 - layer.11``, for the stem ``encoder.layer.``."""
    module = stem.removesuffix(".").rpartition(".")[2]
    return f"{stem}{low} - {f'{module}.{high}' if module else high}"


def folded_names(names: Iterable[str]) -> Iterator[str]:
    """Write modules that are numbered one after another, and follow each other, as one name.

    Example:
        >>> list(folded_names(["embeddings", "layer.0", "layer.1", "layer.2", "layer.5"]))
        ['embeddings', 'layer.0 - layer.2', 'layer.5']
    """
    runs: list[tuple[str, list[int]]] = []
    for name in names:
        stem, dot, last = name.rpartition(".")
        numbers = [int(last)] if last.isdecimal() and str(int(last)) == last else []
        stem = f"{stem}{dot}" if numbers else name
        if numbers and runs and runs[-1][0] == stem and runs[-1][1][-1:] == [numbers[0] - 1]:
            runs[-1][1].extend(numbers)
        else:
            runs.append((stem, numbers))
    for stem, numbers in runs:
        if len(numbers) > 1:
            yield _from_to(stem, numbers[0], numbers[-1])
        else:
            yield f"{stem}{numbers[0]}" if numbers else stem
