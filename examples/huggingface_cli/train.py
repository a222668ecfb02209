"""Fine-tune MiniLM on docstrings with the Hugging Face Trainer, all of it said from outside.

python train.py --output_dir runs --recipe recipe.yaml --eval_strategy steps --eval_steps 50
python train.py arguments.yaml
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "docstrings"))  # the task is that of the demo

import torch
from data import DataError, load
from task import SEED, Task
from transformers import EvalPrediction, HfArgumentParser

from optimplug import RecipeError
from optimplug.huggingface import RecipeTrainer, RecipeTrainingArguments


@dataclass
class TextArguments:
    """Which texts to train on.

    Args:
        data: CSV file with the columns text,label; without one, Python's standard library.
        train: most texts to train on.
        held_out: most texts to judge by.
    """

    data: str | None = None
    train: int = 2000
    held_out: int = 800


def main() -> None:
    """Train, evaluate and save."""
    texts, args = parse()
    path = None if texts.data is None else Path(texts.data)
    task = Task(load(path, texts.train, texts.held_out, SEED))
    trainer = RecipeTrainer(
        model=task.model(),
        args=args,  # the recipe is among them
        train_dataset=task.train_set,
        eval_dataset=task.held_out_set,
        data_collator=task.collate,
        compute_metrics=accuracy,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.log_metrics("eval", trainer.evaluate())
    trainer.save_state()


def parse() -> tuple[TextArguments, RecipeTrainingArguments]:
    """Read the command line, or the YAML or JSON file that it names."""
    parser = HfArgumentParser([TextArguments, RecipeTrainingArguments])
    file = sys.argv[1] if len(sys.argv) == 2 else ""
    if file.endswith((".yaml", ".yml")):
        return parser.parse_yaml_file(file)
    if file.endswith(".json"):
        return parser.parse_json_file(file)
    return parser.parse_args_into_dataclasses()


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of texts whose label was found."""
    logits, labels = map(torch.as_tensor, (prediction.predictions, prediction.label_ids))
    return {"accuracy": (logits.argmax(-1) == labels).float().mean().item()}


if __name__ == "__main__":
    try:
        main()
    except (RecipeError, DataError) as error:
        sys.exit(str(error))
