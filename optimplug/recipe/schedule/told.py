"""What a schedule is told of validations and of the training, and what it still waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimplug._core.arguments import warn
from optimplug._core.metrics import require_metric
from optimplug.errors import StateError
from optimplug.recipe.schedule.timeline import RunSchedule

__all__ = ["Told", "check_unreported"]


class Told:
    """Whether a schedule was told of a validation, and of anything that the training reports.

    Which metrics the next one must have depends on it, and what is said as a run is over.

    Args:
        run_schedule: the curves, which take note of metrics.
    """

    def __init__(self, run_schedule: RunSchedule) -> None:
        self._run_schedule = run_schedule
        self.go_on(was_told=False, was_told_of_training=False)
        self._has_warned = False

    def go_on(self, was_told: bool, was_told_of_training: bool) -> None:
        """Go on from what was told before, of validations and of the training."""
        self._was_told = {False: was_told, True: was_told_of_training}

    def state(self) -> dict[str, bool]:
        """Return what :meth:`go_on` takes, under the names that a scheduler's state has."""
        return {
            "_was_told": self._was_told[False],
            "_was_told_of_training": self._was_told[True],
        }

    def awaited(self, t: int, of_training: bool) -> frozenset[str]:
        """Return the metrics that the next validation, or report, after ``t`` updates must have."""
        was_told = self._was_told[of_training]
        return self._run_schedule.monitors(of_training, t if was_told else None)

    def check(self, t: int, metrics: Mapping[str, Any], of_training: bool) -> None:
        """Check that :meth:`take` can take these.

        Raises:
            ArgumentError: one that is awaited is missing, or no number.
        """
        for monitor in sorted(self.awaited(t, of_training)):
            require_metric(monitor, metrics, of_training)
        for curve in self._run_schedule.all_curves():
            curve.check(t, metrics, of_training)

    def take(self, t: int, metrics: Mapping[str, Any], of_training: bool) -> None:
        """Let all curves take note of a validation, or of a report, after ``t`` updates."""
        self._was_told[of_training] = True
        for curve in self._run_schedule.all_curves():
            curve.told(t, metrics, of_training)

    def warn_if_never(self, t: int) -> None:
        """Warn, once, of phases that have waited in vain, as a run is over after ``t`` updates."""
        if self._has_warned:
            return
        self._has_warned = True
        for of_training, what, mend in (
            (False, "no validation", "validate within the run"),
            (True, "no loss of the training", "log it within the run"),
        ):
            waiting = self._run_schedule.waiting(of_training, t)
            if waiting and not self._was_told[of_training]:
                warn(
                    f"the run is over after {t} updates, and its schedule was told "
                    f"of {what}: {', '.join(dict.fromkeys(waiting))} has changed nothing; {mend}, "
                    "or take the phase out of the recipe",
                    frames=4,
                )


def check_unreported(given: Any) -> None:
    """Check what a state holds of the next report.

    Raises:
        StateError: it is no sum of losses, with of how many updates.
    """
    kinds = [type(each) for each in given]
    if kinds not in ([float, int], [int, int]) or given[1] < 0:
        raise StateError(
            f"unreported must be a sum of losses and of how many updates it is (got {given!r})"
        )
