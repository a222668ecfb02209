"""LoRA+ adapters in bfloat16 that really move, with 8-bit moments, in TRL's SFTTrainer.

``pip install trl peft``, then ``python train_lora.py``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from small import VOCABULARY, llama, sequences
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from optimplug.callbacks.huggingface import OptimizerMonitor
from optimplug.huggingface import with_recipe

RECIPE = Path(__file__).parent / "lora.yaml"


def tokenizer() -> PreTrainedTokenizerFast:
    """Return what stands for the tokenizer of a real model, which ``SFTTrainer`` asks for."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),  # noqa: S106 (no secret)
        pad_token="<pad>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
    )


def train(epochs: int, folder: Path) -> SFTTrainer:
    """Train the adapters alone, and log the share of weights that an update has lost."""
    adapters = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    # Without the last argument peft makes the adapters float32, of twice the size.
    model = get_peft_model(llama(), adapters, autocast_adapter_dtype=False)
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
        model=model,
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
