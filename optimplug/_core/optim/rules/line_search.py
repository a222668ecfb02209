"""The line search of L-BFGS: a step length at which the strong Wolfe conditions hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Point", "strong_wolfe"]

_LEAST_DECREASE = 1e-4
_LARGEST_SLOPE = 0.9
_NARROWEST = 1e-9


class Point(NamedTuple):
    """What is known of a point on the line."""

    t: Any
    """How far along the direction it is; a number or a tensor of no dimension."""
    loss: float
    grad: Tensor
    slope: Tensor
    """The derivative of the loss along the direction."""


def strong_wolfe(
    evaluate: Callable[[Any], Point], start: Point, t: Any, most: int, size: Tensor
) -> tuple[Point, int]:
    """Return a point where the loss is lower and flatter, and how many points were evaluated.

    Args:
        evaluate: returns the point at a step length.
        start: the point at 0; its slope is negative.
        t: the first length to try.
        most: how many further ones may be tried.
        size: the largest element of the direction.
    """
    bracket, found, tried = _bracket(evaluate, start, t, most)
    low = 0 if bracket[0].loss <= bracket[-1].loss else 1
    stuck = False
    while not found and tried < most:
        if abs(bracket[1].t - bracket[0].t) * size < _NARROWEST:
            break
        t, stuck = _within(bracket, stuck)
        new = evaluate(t)
        tried += 1
        high = 1 - low
        if _is_too_high(new, start) or new.loss >= bracket[low].loss:
            bracket[high] = new
            low = 0 if bracket[0].loss <= bracket[1].loss else 1
            continue
        if _is_flat(new, start):
            found = True
        elif new.slope * (bracket[high].t - bracket[low].t) >= 0:
            bracket[high] = bracket[low]
        bracket[low] = new
    return bracket[low], tried + 1


def _bracket(
    evaluate: Callable[[Any], Point], start: Point, t: Any, most: int
) -> tuple[list[Point], bool, int]:
    """Go on until a good point lies between two, or is found.

    Returns:
        The two, or the good one alone; whether it is that; and how many were tried after the first.
    """
    previous, new, tried = start, evaluate(t), 0
    while tried < most:
        if _is_too_high(new, start) or (tried > 1 and new.loss >= previous.loss):
            return [previous, new], False, tried
        if _is_flat(new, start):
            return [new], True, tried
        if new.slope >= 0:
            return [previous, new], False, tried
        bounds = new.t + 0.01 * (new.t - previous.t), new.t * 10
        previous, new = new, evaluate(_lowest(previous, new, *bounds))
        tried += 1
    return [start, new], False, tried


def _is_too_high(point: Point, start: Point) -> bool:
    return bool(point.loss > start.loss + _LEAST_DECREASE * point.t * start.slope)


def _is_flat(point: Point, start: Point) -> bool:
    return bool(abs(point.slope) <= -_LARGEST_SLOPE * start.slope)


def _within(bracket: list[Point], stuck: bool) -> tuple[Any, bool]:
    """Return a length between two points, and whether it is near an end of what they enclose.

    Twice in a row near an end is no progress: then it is moved away by a tenth of the distance.
    """
    one, other = bracket
    least, most = min(one.t, other.t), max(one.t, other.t)
    t = _lowest(one, other, least, most)
    margin = 0.1 * (most - least)
    if not min(most - t, t - least) < margin:
        return t, False
    if not (stuck or t >= most or t <= least):
        return t, True
    return (most - margin if abs(t - most) < abs(t - least) else least + margin), False


def _lowest(a: Point, b: Point, least: Any, most: Any) -> Any:
    """Return where the cubic through two points, with their slopes, is lowest within bounds."""
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    square = d1**2 - a.slope * b.slope
    if not square >= 0:
        return (least + most) / 2.0
    d2 = square.sqrt()
    if a.t <= b.t:
        t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2))
    else:
        t = a.t - (a.t - b.t) * ((a.slope + d2 - d1) / (a.slope - b.slope + 2 * d2))
    return min(max(t, least), most)
