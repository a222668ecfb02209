"""Depths, and the ranges of them that a rule can be for: 3, -1, "0-3", ">=6"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, InstanceOf, WithJsonSchema

__all__ = ["Depth", "DepthRange", "Depths"]

_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)|(>=|<=)\s*(-?\d+)")


class Depth(NamedTuple):
    """How deep in its tower a parameter is, counted from both ends.

    Args:
        layer: 0 before the first layer, 1 to n in the layers, n + 1 after the last.
        below_top: how far that is below the top: n + 1, or n where nothing comes after the layers.
    """

    layer: int
    below_top: int


@dataclass(frozen=True)
class DepthRange:
    """The depths from ``low`` to ``high``, both included.

    A bound below 0 counts from the top: -1 is the head, or, in a model without one, the last layer.

    Example:
        >>> first = DepthRange.parse("0-3")
        >>> Depth(layer=3, below_top=10) in first, Depth(layer=4, below_top=9) in first
        (True, False)
        >>> Depth(layer=13, below_top=0) in DepthRange.parse(-1)
        True
    """

    text: str
    """As it was written."""
    low: int | None = None
    high: int | None = None

    @classmethod
    def parse(cls, value: Any) -> DepthRange:
        """Read an int, "a-b", ">=a" or "<=a".

        Raises:
            ValueError: it is none of these, or a range from high to low.
        """
        if isinstance(value, DepthRange):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(str(value), value, value)
        found = _RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"must be a depth such as 3 or -1, '0-3', '>=6' (got {value!r})")
        low, high, sign, bound = found.groups()
        if sign:
            at = int(bound)
            return cls(value, at, None) if sign == ">=" else cls(value, None, at)
        if int(low) > int(high):
            raise ValueError(f"must go from low to high (got {value!r})")
        return cls(value, int(low), int(high))

    def __contains__(self, depth: Depth) -> bool:
        low = self.low is None or _distance(self.low, depth) >= 0
        return low and (self.high is None or _distance(self.high, depth) <= 0)

    def __repr__(self) -> str:
        return repr(int(self.text) if self.text.lstrip("-").isdigit() else self.text)


def _distance(bound: int, depth: Depth) -> int:
    """Return how far above a bound a depth is."""
    # Counted from the top as the bound is, the top itself is -1, and one layer below it -2.
    counted_alike = depth.layer if bound >= 0 else -1 - depth.below_top
    return counted_alike - bound


def _as_ranges(value: Any) -> list[DepthRange]:
    return [DepthRange.parse(item) for item in (value if isinstance(value, list) else [value])]


# An editor cannot run DepthRange.parse, so that this says once more what it takes.
_DEPTH = {
    "anyOf": [
        {"type": "integer"},
        {"type": "string", "pattern": r"^\s*(\d+\s*-\s*\d+|[<>]=\s*-?\d+)\s*$"},
    ]
}
Depths = Annotated[
    list[InstanceOf[DepthRange]],
    BeforeValidator(_as_ranges),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [*_DEPTH["anyOf"], {"type": "array", "items": _DEPTH}]}),
]
"""A depth, a range of depths, or a list of which any may apply."""
