"""How often parameters have been updated: each has a counter of its own, all are advanced at once.

To add one to thousands of tensors takes longer than some updates, and so does reading them. So the
counters are views of one tensor: whoever zeroes one resets one, and one addition advances them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimplug._core.internals import in_dispatch_mode
from optimplug._core.optim.batch import are_plain

__all__ = ["AnyCounters", "Counters", "SingleCounters", "gather", "take_apart", "with_own_count"]

Kept = dict[str, Any]
"""The state of one parameter."""


class Counters:
    """The step counters of some parameters, all on one device and of one type.

    Each stands in the state of its parameter as ``step``.

    Args:
        kept: the states of the parameters, with their counters, which are replaced by views.
        device: where they count.
    """

    def __init__(self, kept: list[Kept], device: torch.device) -> None:
        self._all = torch.stack([state["step"].detach().reshape(()).to(device) for state in kept])
        # Advanced beside them: where the two differ, somebody else has written to a counter. To
        # look at those on a GPU would wait for it; what needs their values reads them itself.
        self._expected = self._all.clone() if self._all.is_cpu else self._all
        for state, counter in zip(kept, self._all.unbind(), strict=True):
            state["step"] = counter

    def shared(self) -> list[Tensor]:
        """Return for each counter one that follows all that stand where it stands."""
        first: dict[float, Tensor] = {}
        counts = enumerate(self._all.tolist())
        return [first.setdefault(count, self._expected[i]) for i, count in counts]

    @property
    def untouched(self) -> bool:
        """Whether nobody else has written to a counter, so far as can be told without waiting."""
        return self._expected is self._all or torch.equal(self._all, self._expected)

    def advance(self, steps: Tensor | float) -> None:
        """Count ``steps`` updates for every parameter."""
        for counts in {id(c): c for c in (self._all, self._expected)}.values():
            counts += steps if isinstance(steps, float | int) else steps.to(counts.device)


class SingleCounters:
    """Counters one by one, each the tensor that was there.

    For those that other processes have too; and where torch only plays that there are tensors: a
    fake one knows its value only for as long as nothing but additions has been done to it.
    """

    untouched = False  # to look would cost as much as to gather them anew

    def __init__(self, kept: list[Kept]) -> None:
        self._all: list[Tensor] = [state["step"] for state in kept]

    def shared(self) -> list[Tensor]:
        """Return for each counter one of those that stand where it stands."""
        first: dict[float, Tensor] = {}
        return [first.setdefault(float(counter), counter) for counter in self._all]

    def advance(self, steps: Tensor | float) -> None:
        """Count ``steps`` updates for every parameter."""
        for counter in self._all:
            counter += steps


AnyCounters: TypeAlias = Counters | SingleCounters


def gather(
    places: Iterable[tuple[Kept, torch.device]],
) -> tuple[list[AnyCounters], list[Tensor]]:
    """Gather the counters of parameters, given each one's state and where it counts.

    Returns:
        All counters, and for each parameter the one that it shares with others at its count.
    """
    places = list(places)
    rows: dict[Any, list[int]] = {}
    for i, (kept, device) in enumerate(places):
        if not isinstance(kept["step"], Tensor):
            kept["step"] = torch.tensor(float(kept["step"]))  # as older versions of torch had it
        rows.setdefault((device, kept["step"].dtype), []).append(i)
    own = [kept["step"] for kept, _ in places]
    plain = not in_dispatch_mode() and are_plain(own) and not any(map(_is_shared, own))
    found: list[AnyCounters] = []
    shared = [torch.empty(0)] * len(places)
    for (device, _), members in rows.items():
        states = [places[i][0] for i in members]
        counters: AnyCounters = Counters(states, device) if plain else SingleCounters(states)
        found.append(counters)
        for i, counter in zip(members, counters.shared(), strict=True):
            shared[i] = counter
    return found, shared


def with_own_count(kept: Any) -> Any:
    """Return a state with a counter apart from all others; anything else as it is."""
    if not isinstance(kept, Mapping) or not isinstance(kept.get("step"), Tensor):
        return kept
    return {**kept, "step": kept["step"].clone()}


def take_apart(states: Iterable[Any]) -> None:
    """Give each state a counter in memory of its own again, where it is a part of one for all."""
    for kept in states:
        step = kept.get("step") if isinstance(kept, MutableMapping) else None
        if isinstance(step, Tensor) and step.untyped_storage().nbytes() > step.nbytes:
            kept["step"] = step.clone()


def _is_shared(counter: Tensor) -> bool:
    """Tell whether other processes count with it too."""
    return counter.is_cpu and counter.untyped_storage().is_shared()
