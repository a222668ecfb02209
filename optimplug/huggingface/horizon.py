"""How long a Trainer will run."""

from __future__ import annotations

import copy
from collections.abc import Sized
from typing import Any

from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments, default_data_collator
from transformers.trainer_utils import has_length

from optimplug.recipe import Horizon

__all__ = ["horizon_of", "told_by"]


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
    trainer = of if isinstance(of, Trainer) else _Unbuilt(of, train_dataset)
    loader = trainer.get_train_dataloader()
    return told_by(trainer.set_initial_training_values(trainer.args, loader), loader)


def told_by(values: tuple[Any, ...], loader: DataLoader[Any]) -> Horizon:
    """Return the horizon that is in ``Trainer.set_initial_training_values``'s answer."""
    # For data without a length the Trainer puts the whole run in the epoch's place.
    return Horizon(values[6], values[1] if has_length(loader) else None)


class _Unbuilt(Trainer):
    """As much of a Trainer as can tell how long it will run: no model, no seed, no folder."""

    def __init__(self, args: TrainingArguments, train_dataset: Any) -> None:
        self.args = copy.copy(args)
        # The Trainer writes into this one as it reads it, and a second reading then fails.
        self.args.accelerator_config = copy.deepcopy(args.accelerator_config)
        self.args.remove_unused_columns = False
        if self.args.train_sampling_strategy == "group_by_length":
            self.args.train_sampling_strategy = "random"  # as many, and no row is looked at
        self.train_dataset = train_dataset
        self.model = self.deepspeed = self.processing_class = None
        self.data_collator = default_data_collator
        self._train_batch_size = args.train_batch_size
        self.create_accelerator_and_postprocess()
