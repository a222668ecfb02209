"""Which depths a rule is for: 3, -1, "0-3", ">=6"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Depth", "Levels"]

_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)|(>=|<=)\s*(-?\d+)")


class Depth(NamedTuple):
    """Where a parameter stands in its tower.

    Args:
        layer: 0 below the layers, 1 to n in them, n + 1 above them.
        below_top: how far below n + 1 that is.
    """

    layer: int
    below_top: int


@dataclass(frozen=True)
class Levels:
    """Depths from ``low`` to ``high``, both included; below 0 they count from the top: -1 is it.

    Example:
        >>> first = Levels.parse("0-3")
        >>> first.holds(Depth(layer=3, below_top=10)), first.holds(Depth(4, 9))
        (True, False)
        >>> Levels.parse(-1).holds(Depth(layer=13, below_top=0))
        True
    """

    text: str
    low: int | None = None
    high: int | None = None

    @classmethod
    def parse(cls, value: Any) -> Levels:
        """Read an int, "a-b", ">=a" or "<=a".

        Raises:
            ValueError: it is none of these, or a range from high to low.
        """
        if isinstance(value, Levels):
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

    def holds(self, depth: Depth) -> bool:
        """Tell whether a depth is one of these."""

        def above(bound: int) -> int:
            return (depth.layer if bound >= 0 else -1 - depth.below_top) - bound

        return (self.low is None or above(self.low) >= 0) and (
            self.high is None or above(self.high) <= 0
        )

    def __repr__(self) -> str:
        return repr(int(self.text) if self.text.lstrip("-").isdigit() else self.text)
