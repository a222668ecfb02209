"""Where names stand beside lines, so that none overlaps another."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["spread"]


def spread(wanted: Sequence[float], room: float) -> list[float]:
    """Return places as near to those wanted as they can be, in their order, this far apart."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    # Places that would overlap become a block around their mean; blocks that meet become one.
    blocks: list[list[int]] = []
    for i in order:
        blocks.append([i])
        while len(blocks) > 1 and _foot(blocks[-1], wanted, room) < (
            _foot(blocks[-2], wanted, room) + len(blocks[-2]) * room
        ):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    found = [0.0] * len(wanted)
    for block in blocks:
        foot = _foot(block, wanted, room)
        for n, i in enumerate(block):
            found[i] = foot + (n + 0.5) * room
    return found


def _foot(block: Sequence[int], wanted: Sequence[float], room: float) -> float:
    """Return where a block of places begins: within the axes, which go from 0 to 1."""
    middle = sum(wanted[i] for i in block) / len(block)
    return min(max(middle - len(block) * room / 2, -room / 2), 1 + room / 2 - len(block) * room)
