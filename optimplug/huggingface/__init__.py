"""Recipes in the Hugging Face Trainer: ``pip install "optimplug[huggingface]"``."""

from optimplug.errors import MissingExtraError

try:
    # Asked for here, where one line can say what is missing.
    import accelerate  # type: ignore[import-untyped] # noqa: F401 (a Trainer runs on it)
    import transformers  # noqa: F401
except ImportError:
    raise MissingExtraError("optimplug.huggingface", "huggingface") from None

from optimplug._core.tested import warn_if_untested
from optimplug.huggingface.arguments import RecipeArguments, RecipeTrainingArguments
from optimplug.huggingface.factories import build, optimizer_cls_and_kwargs
from optimplug.huggingface.horizon import horizon_of
from optimplug.huggingface.model import model_of_config
from optimplug.huggingface.trainer import RecipeTrainer, with_recipe

warn_if_untested("transformers", "accelerate")

__all__ = [
    "RecipeArguments",
    "RecipeTrainer",
    "RecipeTrainingArguments",
    "build",
    "horizon_of",
    "model_of_config",
    "optimizer_cls_and_kwargs",
    "with_recipe",
]
