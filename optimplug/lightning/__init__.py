"""Recipes in PyTorch Lightning: ``pip install "optimplug[lightning]"``."""

from optimplug.errors import MissingExtraError

try:
    import lightning.pytorch  # noqa: F401 (asked for here, where one line can say what is missing)
except ImportError:
    raise MissingExtraError("optimplug.lightning", "lightning") from None

from optimplug.lightning.cli import RecipeCLI
from optimplug.lightning.configure import (
    RecipeMixin,
    configure_optimizers,
    param_groups,
    scheduler_config,
)
from optimplug.lightning.horizon import horizon_of

__all__ = [
    "RecipeCLI",
    "RecipeMixin",
    "configure_optimizers",
    "horizon_of",
    "param_groups",
    "scheduler_config",
]
