"""What the rate finders of all trainers share: the settings of a sweep, and what is said of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from optimplug.errors import ArgumentError
from optimplug.recipe import LRCurve, Recipe, Run, find_lr
from optimplug.recipe.finder.find import require_sweep

__all__ = ["RateFinder", "refuse"]

_logger = logging.getLogger("optimplug")


class RateFinder:
    """Sweeps over rates as training begins, and says which it suggests; see :func:`.find_lr`.

    Training then goes on as if nothing had been: with the recipe's rates, from the same weights,
    over the same data in the same order.

    Args:
        updates: as for :func:`.find_lr`.
        lowest: likewise.
        highest: likewise.
        diverges: likewise.
        plot: a PNG, SVG or PDF file to draw the curve into; None for none.
        html: a page to write; None for none.

    Attributes:
        curve: what was found; None before.

    Raises:
        ArgumentError: a setting breaks its rule.
    """

    def __init__(
        self,
        updates: int = 100,
        lowest: float = 1e-3,
        highest: float = 1e2,
        diverges: float = 4.0,
        plot: str | PathLike[str] | None = None,
        html: str | PathLike[str] | None = None,
    ) -> None:
        require_sweep(updates, lowest, highest, diverges)
        self.updates = updates
        self.lowest = lowest
        self.highest = highest
        self.diverges = diverges
        self.plot = plot
        self.html = html
        self.curve: LRCurve | None = None

    def find(
        self,
        run: Run,
        recipe: Recipe,
        step: Callable[[Any], Tensor],
        batches: Iterable[Any],
        accumulate: int,
    ) -> None:
        """Sweep, and say in the log ``optimplug`` what came of it.

        Raises:
            ArgumentError: there is nowhere to write the curve, which is seen before the sweep.
            MissingExtraError: matplotlib is not installed, to draw it.
        """
        self._check_files()
        self.curve = find_lr(
            run.model,
            recipe,
            step,
            batches,
            updates=self.updates,
            lowest=self.lowest,
            highest=self.highest,
            accumulate=accumulate,
            diverges=self.diverges,
            horizon=run.horizon,
        )
        _logger.warning("%s", self.curve)  # as a warning, since info is seldom shown
        if self.plot is not None and self.curve.points:
            self.curve.plot(self.plot)
        if self.html is not None and self.curve.points:
            Path(self.html).write_text(self.curve.html(), encoding="utf-8")

    def _check_files(self) -> None:
        if self.plot is not None:
            LRCurve.require_drawable(self.plot)
        if self.html is not None:
            LRCurve.require_drawable()  # a page has a picture in it
        for name, file in {"plot": self.plot, "html": self.html}.items():
            if file is not None and not Path(file).absolute().parent.is_dir():
                raise ArgumentError(f"{name} must be a file in a folder that is there (got {file})")

    def skip(self, updates: int) -> None:
        """Say that there is nothing to find in a run that goes on from a checkpoint."""
        _logger.warning("no sweep over rates: the run goes on from update %s", f"{updates:,}")


def refuse(problem: str) -> ArgumentError:
    """Return the error for a run in which a trainer cannot be asked for its losses alone."""
    return ArgumentError(f"{problem}; in a loop of one's own, optimplug.find_lr does the same")
