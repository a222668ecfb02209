"""Who steps together where some gradients are missing, kept for each pattern that comes back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from optimplug._core.optim.step.batch_layout import BatchLayout
from optimplug._core.optim.step.counters import AnyCounters

__all__ = ["Pattern", "Patterns"]

_PATTERNS = 64
"""So many patterns of missing gradients are kept; of eight experts, two at a time, there are 28."""


@dataclass
class Pattern:
    """Those that step together where some gradients are missing."""

    layouts: list[BatchLayout]
    counted: list[tuple[AnyCounters, list[int] | None]]
    """Which counters go on: the places among them; None for all."""
    who: list[tuple[AnyCounters, list[int]]]
    """For each of these counters the parameters that have gone on."""

    @classmethod
    def of(cls, layouts: list[BatchLayout], everyone: bool) -> Pattern:
        """Gather what counts for these."""
        counted: dict[int, tuple[AnyCounters, dict[int, int]]] = {}
        for layout in layouts:
            for (counters, at), place in zip(layout.numbers, layout.places, strict=False):
                counted.setdefault(id(counters), (counters, {}))[1][at] = place
        who = [(c, [places[at] for at in sorted(places)]) for c, places in counted.values()]
        found = [(c, None if everyone else sorted(places)) for c, places in counted.values()]
        return cls(layouts, found, who)

    def advance(self, steps: Tensor | float) -> None:
        """Count ``steps`` updates for each of them."""
        for counters, places in self.counted:
            counters.advance(steps, places)


class Patterns:
    """The patterns of a layout, the latest of them kept.

    Args:
        layouts: of all that are laid out, whether they have a gradient or not.
    """

    def __init__(self, layouts: list[BatchLayout]) -> None:
        self.everyone = Pattern.of(layouts, everyone=True)
        self._kept: OrderedDict[bytes, Pattern] = OrderedDict()
        self._now: Pattern | None = None

    @property
    def now(self) -> Pattern:
        """The one of the step at hand."""
        return cast("Pattern", self._now)

    @property
    def was_turned(self) -> bool:
        """Whether :meth:`turn_to` was called after :meth:`count`."""
        return self._now is not None

    def is_at(self, present: list[bool] | None) -> bool:
        """Tell whether :meth:`turn_to` was last called with the same."""
        kept = self.everyone if present is None else self._kept.get(bytes(present))
        return kept is not None and kept is self._now

    def turn_to(self, present: list[bool] | None) -> None:
        """Make ready for those that have a gradient now; None: all that are laid out."""
        pattern = self.everyone if present is None else self._pattern(present)
        if pattern is not self._now:
            # Others have gone on meanwhile, or these with others.
            for layout in pattern.layouts:
                layout.cut()
            self._now = pattern

    def _pattern(self, present: list[bool]) -> Pattern:
        """Return what is laid out for these, kept or found."""
        key = bytes(present)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        parts = [layout.part(present) for layout in self.everyone.layouts]
        # In the order in which they would be laid out without the others: so sums have one order.
        found = sorted((part for part in parts if part), key=lambda part: part.places[0])
        pattern = self._kept[key] = Pattern.of(found, everyone=False)
        if len(self._kept) > _PATTERNS:
            self._kept.popitem(last=False)
        return pattern

    def count(self, present: Sequence[bool] | None) -> None:
        """Count an update for those that have a gradient, in another way than by turning to them.

        Args:
            present: for every parameter whether it has one; None: all have.
        """
        for counters, places in self.everyone.who:
            if present is None:
                counters.advance(1)
            elif ats := [at for at, place in enumerate(places) if present[place]]:
                counters.advance(1, ats)
        self._now = None
