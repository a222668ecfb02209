"""LoRA+ adapters in bfloat16 that really move, with 8-bit moments, in TRL's SFTTrainer.

``pip install trl peft``, then ``python train_sft.py``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from parts import RECIPE, adapted, tokenizer
from small import sequences
from trl import SFTConfig, SFTTrainer

from optimplug.callbacks.huggingface import OptimizerMonitor
from optimplug.huggingface import with_recipe


def train(epochs: int, folder: Path) -> SFTTrainer:
    """Train the adapters alone, and log the share of weights that an update has lost."""
    args = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        max_length=16,
        logging_steps=4,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,  # the weights are bfloat16 already
        gradient_checkpointing=False,
        report_to="none",
    )
    trainer = with_recipe(SFTTrainer)(
        model=adapted(),
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": sequences().tolist()}),
        processing_class=tokenizer(),
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
