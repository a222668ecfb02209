"""Recipes in PyTorch Lightning: ``pip install "optimplug[lightning]"``."""

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
