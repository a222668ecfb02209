"""Recipes: who learns how fast, and on which schedule, said once."""

from optimplug.recipe.plan import Plan
from optimplug.recipe.recipe import Recipe
from optimplug.recipe.run import Run
from optimplug.recipe.schedule.scheduler import RecipeScheduler
from optimplug.recipe.schedule.standalone import build_scheduler
from optimplug.recipe.text.durations import Horizon

__all__ = ["Horizon", "Plan", "Recipe", "RecipeScheduler", "Run", "build_scheduler"]
