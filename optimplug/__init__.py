"""Say once which optimizer, which learning rate for which layers, and which schedule.

The recipe runs unchanged in PyTorch Lightning (``optimplug.lightning``), the Hugging Face Trainer
(``optimplug.huggingface``) and a plain loop::

    from optimplug import Horizon, Recipe

    recipe = Recipe.load("recipe.yaml")
    run = recipe.start(model, Horizon(total_steps=1000))

``optimplug.optim`` holds the optimizers and schedulers, with the names of ``torch.optim``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimplug.errors import (
    ArgumentError,
    GradientError,
    MissingExtraError,
    ModeError,
    OptimplugError,
    RecipeError,
    StateError,
)

if TYPE_CHECKING:
    from optimplug.recipe import Horizon, LRCurve, Recipe, Resumption, Run, find_lr

__version__ = "0.1.0"
"""The version of this package."""
__all__ = [
    "ArgumentError",
    "GradientError",
    "Horizon",
    "LRCurve",
    "MissingExtraError",
    "ModeError",
    "OptimplugError",
    "Recipe",
    "RecipeError",
    "Resumption",
    "Run",
    "StateError",
    "__version__",
    "find_lr",
]


def __getattr__(name: str) -> Any:
    # Recipes bring pydantic; someone who only wants the optimizers should not wait for it.
    if name in {"Horizon", "LRCurve", "Recipe", "Resumption", "Run", "find_lr"}:
        from optimplug import recipe

        return getattr(recipe, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
