"""What pictures of a plan draw: values over the run, of rates and of what else is scheduled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from optimplug.recipe.plan import Plan

__all__ = ["Picture", "log_range", "pictures"]

_LOG_FROM = 10  # a ratio of the highest peak to the lowest that a linear axis does not show
_DECADES = 1e-3  # of the lowest peak: a cosine ends as near to 0 as one likes


class Picture(NamedTuple):
    """A hyperparameter of every group, over the run."""

    name: str
    """Such as ``lr``, or ``betas[0]``, for what is several numbers."""
    traces: list[list[float]]
    """For each group its values; none for a group that has no such hyperparameter."""
    is_scheduled: bool


def pictures(plan: Plan, steps: Sequence[int]) -> list[Picture]:
    """Return the rates, the weight decay, and whatever else changes in the run, in this order.

    Args:
        plan: of which they are.
        steps: at which the values are taken.
    """
    scheduled = {of for group in plan.groups for of in plan.curves_of(group)}
    has_decay = any(plan.setting(group, "weight_decay") is not None for group in plan.groups)
    names = ["lr", *(["weight_decay"] if has_decay else [])]
    names += sorted(scheduled - set(names))
    return [
        Picture(_called(plan, name), plan.traces(steps, name), name in scheduled) for name in names
    ]


def _called(plan: Plan, name: str) -> str:
    values = (plan.setting(group, name) for group in plan.groups)
    return f"{name}[0]" if any(isinstance(value, tuple | list) for value in values) else name


def log_range(traces: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Return from where to where an axis goes that is a logarithm; None where it need be none."""
    peaks = [peak for trace in traces if trace and (peak := max(trace)) > 0]
    if not peaks or max(peaks) <= _LOG_FROM * min(peaks):
        return None
    lowest = min(value for trace in traces for value in trace if value > 0)
    return max(lowest, min(peaks) * _DECADES), max(peaks) * 1.2
