"""Recipes: who learns how fast, and on which schedule, said once."""

from optimplug.recipe.alone import build_scheduler
from optimplug.recipe.durations import Horizon
from optimplug.recipe.plan import Plan
from optimplug.recipe.recipe import Recipe
from optimplug.recipe.scheduler import RecipeScheduler

__all__ = ["Horizon", "Plan", "Recipe", "RecipeScheduler", "build_scheduler"]
