"""Lightning's classes, from the one of its two packages that the program uses.

``lightning`` and ``pytorch_lightning`` hold the same code twice: a class of one is no class of the
other, and a Trainer of one refuses a module of the other. The package is chosen once, as this
module is imported.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from optimplug._core.tested import warn_if_untested
from optimplug.errors import MissingExtraError, PackageError

__all__ = [
    "NAME",
    "BatchSizeFinder",
    "Callback",
    "GradientAccumulationScheduler",
    "LRSchedulerConfig",
    "LearningRateFinder",
    "LightningArgumentParser",
    "LightningCLI",
    "LightningModule",
    "OwnCallback",
    "StochasticWeightAveraging",
    "Trainer",
    "TrainerFn",
    "require_own",
]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _chosen() -> str:
    """Return the package that was imported first, or else the one that is installed."""
    imported = [name for name, module in [*sys.modules.items()] if name in _PACKAGES and module]
    installed = (name for name in _PACKAGES if find_spec(name.partition(".")[0]) is not None)
    found = next(iter(imported), None) or next(installed, None)
    if found is None:
        raise MissingExtraError("optimplug.lightning", "lightning")
    return found


NAME = _chosen()
"""``lightning.pytorch`` or ``pytorch_lightning``."""

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import (
        BatchSizeFinder,
        GradientAccumulationScheduler,
        LearningRateFinder,
        StochasticWeightAveraging,
    )
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.trainer.states import TrainerFn
    from lightning.pytorch.utilities.types import LRSchedulerConfig
else:
    _package, _callbacks, _cli = (import_module(f"{NAME}{m}") for m in ("", ".callbacks", ".cli"))
    Callback, LightningModule = _package.Callback, _package.LightningModule
    Trainer = _package.Trainer
    BatchSizeFinder, LearningRateFinder = _callbacks.BatchSizeFinder, _callbacks.LearningRateFinder
    GradientAccumulationScheduler = _callbacks.GradientAccumulationScheduler
    StochasticWeightAveraging = _callbacks.StochasticWeightAveraging
    LightningCLI, LightningArgumentParser = _cli.LightningCLI, _cli.LightningArgumentParser
    TrainerFn = import_module(f"{NAME}.trainer.states").TrainerFn
    LRSchedulerConfig = import_module(f"{NAME}.utilities.types").LRSchedulerConfig

warn_if_untested(NAME.partition(".")[0])


class OwnCallback(Callback):
    """A callback that refuses a trainer of the other package, whose classes it does not know.

    Some releases of Lightning do so by themselves, in words that do not tell the two apart.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the trainer, before anything else happens.

        Raises:
            PackageError: it is of the other package.
        """
        require_own(type(trainer), Trainer)


def require_own(cls: type, kind: type) -> None:
    """Refuse a class of the package that was not chosen.

    Args:
        cls: of a module or a trainer.
        kind: what it must derive from: ``LightningModule`` or ``Trainer``, or what stands before
            either in the bases.

    Raises:
        PackageError: it derives from the other package's.
    """
    other = next(name for name in _PACKAGES if name != NAME)
    theirs = any(f"{base.__module__}.".startswith(f"{other}.") for base in cls.__mro__)
    if theirs and not issubclass(cls, kind):
        noun = "trainer" if kind is Trainer else "module"
        raise PackageError(
            f"{cls.__name__} is a {noun} of {other}, but optimplug.lightning works with {NAME} in "
            f"this program, which was imported first; import from one of the two packages alone, "
            "and before optimplug.lightning"
        )
