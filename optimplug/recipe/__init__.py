"""Recipes: which parameters learn how fast, and on which schedule, written once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimplug.recipe.checkpoint.resumption import Resumption
    from optimplug.recipe.finder.curve import LRCurve
    from optimplug.recipe.finder.find import find_lr
    from optimplug.recipe.plan import Plan
    from optimplug.recipe.recipe import Recipe
    from optimplug.recipe.run import Run
    from optimplug.recipe.schedule.scheduler import RecipeScheduler
    from optimplug.recipe.schedule.standalone import build_scheduler
    from optimplug.recipe.text.durations import Horizon

__all__ = [
    "Horizon",
    "LRCurve",
    "Plan",
    "Recipe",
    "RecipeScheduler",
    "Resumption",
    "Run",
    "build_scheduler",
    "find_lr",
]

_MODULES = {
    "Horizon": "text.durations",
    "LRCurve": "finder.curve",
    "Plan": "plan",
    "Recipe": "recipe",
    "RecipeScheduler": "schedule.scheduler",
    "Resumption": "checkpoint.resumption",
    "Run": "run",
    "build_scheduler": "schedule.standalone",
    "find_lr": "finder.find",
}


def __getattr__(name: str) -> Any:
    # Python runs this file before any module of the package. Were these imported here, whoever
    # reads the text of a recipe would load torch and all that fits one to a model.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
