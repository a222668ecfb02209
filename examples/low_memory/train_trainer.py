"""bfloat16 weights that really move, with 8-bit moments, in the Hugging Face Trainer.

``python train_trainer.py``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from small import llama, sequences
from transformers import TrainingArguments

from optimplug.callbacks.huggingface import OptimizerMonitor
from optimplug.huggingface import RecipeTrainer

RECIPE = Path(__file__).parent / "trainer.yaml"


def train(epochs: int, folder: Path) -> RecipeTrainer:
    """Train, and log the share of weights that an update has lost beside the loss."""
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        logging_steps=4,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    )
    trainer = RecipeTrainer(
        model=llama(),  # in bfloat16; with float32 weights and bf16=True, rounding has no effect
        args=args,
        train_dataset=[{"input_ids": row, "labels": row} for row in sequences()],
        callbacks=[OptimizerMonitor(lost_updates=True)],
        recipe=RECIPE,
    )
    print(trainer.plan())
    trainer.train()
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    train(**vars(parser.parse_args()))
