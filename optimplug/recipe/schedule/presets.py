"""Presets: the schedules of the Hugging Face Trainer's ``lr_scheduler_type``, as functions of time.

Each takes the step ``t`` (from 0), the steps of its ``warmup`` and of the whole, ``total``, and
returns the factor on a group's own rate. Names, arguments and values are those of
``transformers.get_scheduler``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from optimplug.errors import ArgumentError

__all__ = [
    "PRESETS",
    "Preset",
    "Shape",
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_warmup_with_min_lr",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "inverse_sqrt",
    "least_of",
    "linear",
    "polynomial",
    "warmup_stable_decay",
    "without_least",
]

Preset = Callable[..., float]
Shape = Literal["linear", "cosine", "1-sqrt"]


def constant(t: int, *, warmup: int, total: int) -> float:
    """Return 1 throughout."""
    return 1.0


def constant_with_warmup(t: int, *, warmup: int, total: int) -> float:
    """Return 1 after a linear rise from 0."""
    return _rise(t, warmup) if t < warmup else 1.0


def linear(t: int, *, warmup: int, total: int) -> float:
    """Return a line down to 0 after a linear rise."""
    return _rise(t, warmup) if t < warmup else max(0.0, (total - t) / max(1, total - warmup))


def cosine(t: int, *, warmup: int, total: int, num_cycles: float = 0.5) -> float:
    """Return a cosine of ``num_cycles`` waves after a linear rise."""
    return _rise(t, warmup) if t < warmup else _wave(_progress(t, warmup, total), num_cycles)


def cosine_with_restarts(t: int, *, warmup: int, total: int, num_cycles: int = 1) -> float:
    """Return ``num_cycles`` times half a cosine down, each from the top, after a linear rise."""
    if t < warmup:
        return _rise(t, warmup)
    progress = _progress(t, warmup, total)
    return 0.0 if progress >= 1 else _wave((num_cycles * progress) % 1.0, 0.5)


def polynomial(
    t: int, *, warmup: int, total: int, lr: float, lr_end: float = 1e-7, power: float = 1.0
) -> float:
    """Return a power of the share of steps left, down to the rate ``lr_end``, after a rise."""
    if not lr > lr_end:
        raise ArgumentError(f"lr_end must be below the optimizer's lr, {lr} (got {lr_end})")
    if t < warmup:
        return _rise(t, warmup)
    left = 1 - (t - warmup) / (total - warmup) if t < total else 0.0
    return float(((lr - lr_end) * left**power + lr_end) / lr)


def inverse_sqrt(t: int, *, warmup: int, total: int, timescale: int | None = None) -> float:
    """Return one over the root of time after a linear rise."""
    if t < warmup:
        return _rise(t, warmup)
    scale = timescale or warmup or 10_000  # the last is transformers' choice, without a warmup
    return 1.0 / math.sqrt((t + scale - warmup) / scale)


def cosine_with_min_lr(
    t: int,
    *,
    warmup: int,
    total: int,
    lr: float,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> float:
    """Return a cosine down to ``min_lr``, or to ``min_lr_rate`` of the top, after a linear rise."""
    least = _minimum(lr, min_lr, min_lr_rate)
    if t < warmup:
        return _rise(t, warmup)
    return _above(least, _cosine(_progress(t, warmup, total), num_cycles))


def cosine_warmup_with_min_lr(
    t: int,
    *,
    warmup: int,
    total: int,
    lr: float,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> float:
    """Return a cosine down to ``min_lr``, ``min_lr_rate`` of the top; the rise begins above 0."""
    least = _minimum(lr, min_lr, min_lr_rate)
    if t < warmup:
        if warmup_lr_rate is None:  # as transformers, this one counts from 1
            return (t + 1) / warmup
        return warmup_lr_rate + (1 - warmup_lr_rate) * t / max(1, warmup - 1)
    return _above(least, _cosine(_progress(t + 1, warmup, total), num_cycles))


def warmup_stable_decay(
    t: int,
    *,
    warmup: int,
    total: int,
    num_decay_steps: int,
    num_stable_steps: int | None = None,
    warmup_type: Shape = "linear",
    decay_type: Shape = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> float:
    """Return a rise, then 1, then a decay, each of its own length and form."""
    _check_shapes(warmup_type=warmup_type, decay_type=decay_type)
    stable = total - warmup - num_decay_steps if num_stable_steps is None else num_stable_steps
    if stable < 0:
        raise ArgumentError(
            f"warmup and num_decay_steps must fit into the {total} steps "
            f"(got {warmup} and {num_decay_steps})"
        )
    if t < warmup:
        return _above(min_lr_ratio, _RISES[warmup_type](t / warmup))
    if t < warmup + stable:
        return 1.0
    if t >= warmup + stable + num_decay_steps:
        return min_lr_ratio
    progress = (t - warmup - stable) / num_decay_steps
    return _above(min_lr_ratio, _decay(decay_type, progress, num_cycles))


def _check_shapes(**shapes: str) -> None:
    for name, shape in shapes.items():
        if shape not in ("linear", "cosine", "1-sqrt"):
            raise ArgumentError(f"{name} must be linear, cosine or 1-sqrt (got {shape!r})")


def _decay(shape: Shape, progress: float, num_cycles: float) -> float:
    if shape == "cosine":
        return _cosine(progress, num_cycles)
    return 1 - (progress if shape == "linear" else math.sqrt(progress))


_RISES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: 0.5 * (1 - math.cos(math.pi * x)),
    "1-sqrt": lambda x: 1 - math.sqrt(1 - x),
}


def _rise(t: int, warmup: int) -> float:
    return t / max(1, warmup)


def _progress(t: int, warmup: int, total: int) -> float:
    # A warmup as long as the run leaves nothing to divide by.
    return (t - warmup) / max(1, total - warmup)


def _cosine(progress: float, num_cycles: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * num_cycles * 2 * progress))


def _wave(progress: float, num_cycles: float) -> float:
    # Rounded, a cosine may come out a bit below 0, which is no rate.
    return max(0.0, _cosine(progress, num_cycles))


def _above(least: float, factor: float) -> float:
    return max(0.0, factor * (1 - least) + least)


def _minimum(lr: float, min_lr: float | None, min_lr_rate: float | None) -> float:
    if (min_lr is None) == (min_lr_rate is None):
        raise ArgumentError("give one of min_lr and min_lr_rate")
    return min_lr / lr if min_lr is not None else float(min_lr_rate or 0.0)


# What presets call the least that they come to: a rate, or a ratio of the group's own. All of them
# fall from 1 to it in proportion.
_RATES, _RATIOS = ("lr_end", "min_lr"), ("min_lr_rate", "min_lr_ratio")


def least_of(preset: Preset, arguments: Mapping[str, Any]) -> float:
    """Return what a preset falls to, as a ratio of the group's own rate.

    Example:
        >>> least_of(polynomial, {"warmup": 0, "total": 9, "lr": 0.5, "lr_end": 0.125})
        0.25
    """
    defaults = {key: p.default for key, p in inspect.signature(preset).parameters.items()}
    given = {key: v for key, v in {**defaults, **arguments}.items() if v is not None}
    rates = [given[key] / given["lr"] for key in _RATES if key in given]
    return float(sum(rates) + sum(given[key] for key in _RATIOS if key in given))


def without_least(preset: Preset, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which a preset is the same, but falls to 0."""
    known = inspect.signature(preset).parameters
    none = {key: 0.0 for key in ("lr_end", *_RATIOS) if key in known}
    return {**{key: v for key, v in arguments.items() if key != "min_lr"}, **none}


PRESETS: dict[str, Preset] = {
    preset.__name__: preset
    for preset in (
        linear,
        cosine,
        cosine_with_restarts,
        polynomial,
        constant,
        constant_with_warmup,
        inverse_sqrt,
        cosine_with_min_lr,
        cosine_warmup_with_min_lr,
        warmup_stable_decay,
    )
}
"""By the name that a recipe gives. ``reduce_lr_on_plateau`` is a scheduler: see vocabulary.py."""
