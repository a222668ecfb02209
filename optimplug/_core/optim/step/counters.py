"""How often parameters have been updated: each has a counter of its own, all are advanced at once.

To add one to thousands of tensors takes longer than some updates, and so does reading them. So the
counters are views of one tensor: whoever zeroes one resets one, and one addition advances them all.
The further numbers that some rules keep for each parameter are kept in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from itertools import starmap
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from optimplug._core.internals import in_dispatch_mode
from optimplug._core.optim.batch import are_plain, pick

__all__ = [
    "AnyCounters",
    "Count",
    "Counters",
    "Place",
    "SingleCounters",
    "gather",
    "rows",
    "take_apart",
    "with_own_count",
]

Kept = dict[str, Any]
"""The state of one parameter."""


class Count(NamedTuple):
    """Tensors that follow the numbers of every parameter that stands where some others stand."""

    step: Tensor | None
    """None where the rule does not count."""
    scalars: dict[str, Tensor]
    """The further numbers, by name."""


class Counters:
    """The step counters of some parameters, all on one device and of one type.

    Each stands in the state of its parameter as ``step``, further numbers under their names.

    Args:
        kept: the states of the parameters, with their numbers, which are replaced by views.
        device: where they count.
        names: of the numbers, ``step`` first.
    """

    def __init__(self, kept: list[Kept], device: torch.device, names: Sequence[str]) -> None:
        found = {
            name: torch.stack([state[name].detach().reshape(()).to(device) for state in kept])
            for name in names
        }
        # Written beside them: where the two differ, somebody else has written to a number. To look
        # at those on a GPU would wait for it; what needs their values reads them itself.
        twice = {n: torch.stack([a, a] if a.is_cpu else [a]) for n, a in found.items()}
        self._both = twice["step"]
        # To add a number takes three times as long: torch makes a tensor of it first.
        self._one = torch.ones_like(self._both[0, 0])
        self._all = {name: both[0] for name, both in twice.items()}
        self._expected = {name: both[-1] for name, both in twice.items()}
        pairs = zip(self._all.values(), self._expected.values(), strict=True)
        self._pairs = [pair for pair in pairs if pair[0].is_cpu]
        for name, numbers in self._all.items():
            for state, number in zip(kept, numbers.unbind(), strict=True):
                state[name] = number

    def rows(self) -> list[tuple[float, ...]]:
        """Return for each parameter where it stands: the values of its numbers."""
        return list(zip(*(numbers.tolist() for numbers in self._all.values()), strict=True))

    def values(self) -> list[float]:
        """Return how often each parameter has stepped."""
        found: list[float] = self._all["step"].tolist()
        return found

    def count(self, at: int) -> Count:
        """Return what follows the numbers of one parameter, and of all that go on with it."""
        return _count({name: numbers[at] for name, numbers in self._expected.items()})

    @property
    def untouched(self) -> bool:
        """Whether nobody else has written to a number, so far as can be told without waiting."""
        return all(starmap(torch.equal, self._pairs))

    def advance(self, steps: Tensor | float, places: Sequence[int] | None = None) -> None:
        """Count ``steps`` updates for the parameters at these places; None for every one."""
        if places is not None:
            marks = bytearray(self._both.shape[1])
            for at in places:
                marks[at] = 1
            # Made of a list, it would take longer than all of the addition.
            marked = torch.frombuffer(marks, dtype=torch.uint8).to(self._both)
            self._both += marked * steps
        elif isinstance(steps, Tensor):
            self._both += steps.to(self._both.device)
        else:
            self._both += self._one if steps == 1 else steps

    def read(self, places: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        """Return further numbers of the parameters at these places."""
        return {name: self._all[name][torch.tensor(places, device="cpu")] for name in names}

    def write(self, places: Sequence[int], values: Mapping[str, Tensor]) -> None:
        """Write further numbers for the parameters at these places."""
        at = torch.tensor(places, device="cpu")
        for name, numbers in values.items():
            for found in {id(c): c for c in (self._all[name], self._expected[name])}.values():
                found[at] = numbers


class SingleCounters:
    """Counters one by one, each the tensor that was there.

    For those that other processes have too; and where torch only plays that there are tensors: a
    fake one knows its value only for as long as nothing but additions has been done to it.
    """

    untouched = False  # to look would cost as much as to gather them anew

    def __init__(self, kept: list[Kept], names: Sequence[str]) -> None:
        self._all: list[dict[str, Tensor]] = [{n: state[n] for n in names} for state in kept]

    def rows(self) -> list[tuple[float, ...]]:
        """Return for each parameter where it stands: the values of its numbers."""
        return [tuple(map(float, numbers.values())) for numbers in self._all]

    def count(self, at: int) -> Count:
        """Return the numbers of one parameter, for all that go on with it."""
        return _count(self._all[at])

    def advance(self, steps: Tensor | float, places: Sequence[int] | None = None) -> None:
        """Count ``steps`` updates for the parameters at these places; None for every one."""
        for numbers in self._all if places is None else [self._all[at] for at in places]:
            numbers["step"] += steps

    def read(self, places: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        """Return further numbers of the parameters at these places."""
        return {name: torch.stack([self._all[i][name] for i in places]) for name in names}

    def write(self, places: Sequence[int], values: Mapping[str, Tensor]) -> None:
        """Write further numbers for the parameters at these places."""
        for name, numbers in values.items():
            for place, number in zip(places, numbers.tolist(), strict=True):
                self._all[place][name].fill_(number)


AnyCounters: TypeAlias = Counters | SingleCounters


class Place(NamedTuple):
    """One parameter's numbers among all."""

    counters: AnyCounters
    at: int
    """Its place among those."""


def rows(places: Sequence[Place]) -> list[tuple[Any, ...]]:
    """Return for each parameter where it stands: its counters, and the values of its numbers."""
    found = {id(place.counters): place.counters for place in places}
    if len(found) == 1:
        return pick([at for _, at in places], places[0].counters.rows())
    values = {key: counters.rows() for key, counters in found.items()}
    return [(id(counters), values[id(counters)][at]) for counters, at in places]


def gather(members: Iterable[tuple[Kept, torch.device, tuple[str, ...]]]) -> list[Place]:
    """Gather the numbers of parameters.

    Args:
        members: for each its state, where it counts, the names of its numbers, ``step`` first.
    """
    members = list(members)
    rows: dict[Any, list[int]] = {}
    for i, (kept, device, names) in enumerate(members):
        for name in names:
            if not isinstance(kept[name], Tensor):
                kept[name] = torch.tensor(
                    float(kept[name]), device="cpu"
                )  # as older versions of torch had it
        rows.setdefault((device, names, *(kept[n].dtype for n in names)), []).append(i)
    own = [kept[name] for kept, _, names in members for name in names]
    plain = not in_dispatch_mode() and are_plain(own) and not any(map(_is_shared, own))
    found: dict[int, Place] = {}
    for (device, names, *_), numbers in rows.items():
        states = [members[i][0] for i in numbers]
        counters: AnyCounters = (
            Counters(states, device, names) if plain else SingleCounters(states, names)
        )
        for at, i in enumerate(numbers):
            found[i] = Place(counters, at)
    return [found[i] for i in range(len(members))]


def with_own_count(kept: Any) -> Any:
    """Return a state with numbers apart from all others; anything else as it is."""
    if not isinstance(kept, Mapping):
        return kept
    # Not by a function: of thousands of states, to call it would take as long as all else.
    return {
        name: value.clone() if isinstance(value, Tensor) and not value.dim() else value
        for name, value in kept.items()
    }


def take_apart(states: Iterable[Any]) -> None:
    """Give each state numbers in memory of their own again, where they are parts of one for all."""
    for kept in states:
        for name, value in list(kept.items()) if isinstance(kept, MutableMapping) else ():
            if _is_number(value) and value.untyped_storage().nbytes() > value.nbytes:
                kept[name] = value.clone()


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0


def _count(numbers: Mapping[str, Tensor]) -> Count:
    scalars = dict(numbers)
    return Count(scalars.pop("step"), scalars)


def _is_shared(counter: Tensor) -> bool:
    """Tell whether other processes count with it too."""
    return counter.is_cpu and counter.untyped_storage().is_shared()
