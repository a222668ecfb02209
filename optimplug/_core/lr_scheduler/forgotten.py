"""A scheduler that is built and never stepped: when that is certain, and what is said then."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from torch.optim import Optimizer

from optimplug._core.lr_scheduler.internals import (
    NotedSteps,
    frames_inside,
    note_steps,
    noted_steps,
)

__all__ = ["forget_watch", "is_beyond_epochs", "watch"]

# More updates than anybody trains.
_TOO_MANY = 10**8
# Fewer are nothing to speak of: somebody warms up, or makes the optimizer's state.
_FIRST = 8


def is_beyond_epochs(steps: float, updates: int) -> bool:
    """Tell whether a schedule of so many steps cannot be meant to take one per epoch.

    Not if an epoch has at least so many updates: the run would have more than anybody trains.

    Example:
        >>> is_beyond_epochs(300, 40_000), is_beyond_epochs(100_000, 2_000)
        (False, True)
    """
    return steps * updates >= _TOO_MANY


def watch(scheduler: Any) -> None:
    """Warn once if the optimizer is stepped and stepped, and the scheduler certainly forgotten.

    The last that is built on an optimizer is watched, and none from the first step on that any of
    them takes.
    """
    calls: int = 0
    skipped: Any = 0
    watched = weakref.ref(scheduler)

    def count() -> bool:
        nonlocal calls, skipped
        found = watched()
        if found is None:
            return True
        calls += 1
        # Under AMP a step may be called and left out; how many are is known when it is asked.
        infinite = getattr(found.optimizer, "found_inf", None)
        skipped = skipped if infinite is None else skipped + (infinite > 0)
        if calls < _FIRST or calls & (calls - 1):  # powers of 2 are often enough
            return False
        updates = calls - int(skipped)
        # Where somebody else sets the rates, a search for the best say, it is not for this one to.
        alone = found.get_last_lr() == [float(g["lr"]) for g in found.optimizer.param_groups]
        if updates < _FIRST or not alone or not found._is_forgotten(updates):
            return False
        warnings.warn(
            f"{type(found).__name__}.step() has not been called in {updates} updates: the learning "
            "rate is still the first; call scheduler.step() after optimizer.step()",
            UserWarning,
            stacklevel=frames_inside(),
        )
        return True

    note_steps(scheduler.optimizer).then = count


def forget_watch(optimizer: Optimizer) -> NotedSteps | None:
    """Watch over no scheduler any longer; return what the optimizer has noted of its steps."""
    noted = noted_steps(optimizer)
    if noted is not None:
        noted.then = None
    return noted
