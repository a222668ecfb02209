"""What an execution is: one way to run a rule over a batch."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.step.totals import Measured

__all__ = ["Execution", "Ready", "must_skip"]


class Ready(Protocol):
    """A batch that an execution has taken, and only has to be run.

    Nothing has changed yet, and what could fail has been done.
    """

    def squares(self) -> float | None:
        """Return the sum of the squares of all gradients; None where this way has no quick one."""

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> Measured | None:
        """Do the update in place; return what the rule measures, if it does.

        Args:
            scale: what every gradient is multiplied by first; None for one.
            found_inf: where it holds 1, as a GradScaler says, nothing is changed.
        """


class Execution(Protocol):
    """A way to run a rule over a batch."""

    def prepare(self, batch: Batch) -> Ready | None:
        """Make ready for the next update; None if this is no way for this batch.

        All that can fail fails here, before anything has changed.
        """


def must_skip(found_inf: Tensor | None) -> bool:
    """Tell whether the update is to be left out; this waits for the device."""
    return found_inf is not None and bool(found_inf)
