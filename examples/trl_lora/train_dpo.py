"""The same adapters and recipe in TRL's DPOTrainer, which prefers the answers that go on by a rule.

``pip install trl peft``, then ``python train_dpo.py --recipe.optimizer.lr 1e-3``
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from datasets import Dataset
from parts import RECIPE, adapted, tokenizer
from small import VOCABULARY, sequences
from transformers import HfArgumentParser
from trl import DPOConfig, DPOTrainer

from optimplug.huggingface import RecipeArguments, with_recipe


@dataclass
class Arguments(RecipeArguments, DPOConfig):
    """DPO's arguments, with the recipe among them."""


def parse(given: list[str] | None = None) -> Arguments:
    """Read the command line; what is not said is as an example on a small machine needs it."""
    parser = HfArgumentParser(Arguments)
    parser.set_defaults(
        output_dir="runs",
        recipe=str(RECIPE),
        num_train_epochs=4,
        per_device_train_batch_size=16,
        logging_steps=4,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,  # the weights are bfloat16 already
        gradient_checkpointing=False,
        report_to="none",
    )
    (found,) = parser.parse_args_into_dataclasses(given)
    return found


def preferences() -> Dataset:
    """Return the beginnings of sequences, each with their rest and with words at random."""
    generator = torch.Generator().manual_seed(1)
    rows = sequences()
    others = torch.randint(3, VOCABULARY, (len(rows), 8), generator=generator)
    text = [[" ".join(f"w{token}" for token in row) for row in part.tolist()] for part in (
        rows[:, :8], rows[:, 8:], others,
    )]  # fmt: skip
    return Dataset.from_dict(dict(zip(("prompt", "chosen", "rejected"), text, strict=True)))


def train(args: Arguments) -> DPOTrainer:
    """Train; the model without its adapters is what DPO compares with."""
    trainer = with_recipe(DPOTrainer)(
        model=adapted(),
        args=args,
        train_dataset=preferences(),
        processing_class=tokenizer(),
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    train(parse())
