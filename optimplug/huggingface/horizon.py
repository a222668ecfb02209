"""How long a Trainer will run."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from optimplug.huggingface.internals import UnbuiltTrainer, planned_by
from optimplug.recipe import Horizon

__all__ = ["horizon_of"]


def horizon_of(
    of: Trainer | TrainingArguments, train_dataset: Dataset[Any] | Sized | None = None
) -> Horizon:
    """Return how long a Trainer will run, in optimizer updates; it is the Trainer that counts them.

    Args:
        of: a trainer, or the arguments that one will have. Give the trainer itself where it changes
            its data (packing, say), its data loader or the number of devices that it trains on (for
            a model that is spread over several).
        train_dataset: beside arguments, what will be trained on.

    Raises:
        ValueError: the data has no length, and the arguments have no ``max_steps``.

    Example:
        ``Recipe.load("recipe.yaml").plan(model, horizon_of(args, train_dataset))``
    """
    trainer = of if isinstance(of, Trainer) else UnbuiltTrainer(of, train_dataset)
    return planned_by(trainer)
