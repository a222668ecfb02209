"""Train with one recipe in three runtimes and compare what comes out.

Writes plan.txt, lr.png and summary.json into the folder given by --out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import train_huggingface
import train_lightning
import train_loop
from rich.console import Console
from rich.table import Table
from task import Outcome, Task, arguments, task_from

from optimplug import Horizon, Recipe, RecipeError

RUNTIMES = {
    "loop": train_loop.train,
    "lightning": train_lightning.train,
    "huggingface": train_huggingface.train,
}


def main() -> None:
    """Run the comparison from the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)  # a pipe has no width of its own
    task = task_from(parser, given)
    texts = task.texts
    console.print(
        f"{len(texts.train)} texts to train on, {len(texts.held_out)} held out, "
        f"labels: {', '.join(texts.labels)}\n"
    )
    try:
        show_plan(task, given.out, console)
    except RecipeError as error:
        sys.exit(str(error))
    outcomes = {}
    for name, train in RUNTIMES.items():
        console.rule(name)
        outcomes[name] = train(task)
    summary = summarize(task, outcomes)
    (given.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(table_of(summary))
    console.print(f"written: {given.out}/summary.json, lr.png, plan.txt")


def show_plan(task: Task, out: Path, console: Console) -> None:
    """Print and keep what the recipe is about to do."""
    horizon = Horizon(task.steps_per_epoch * task.epochs, task.steps_per_epoch)
    plan = Recipe.load(task.recipe).plan(task.model(), horizon)
    console.print(plan)
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan.txt").write_text(f"{plan}\n")
    plan.plot(out / "lr.png")


def summarize(task: Task, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Judge every runtime, and hold its weights and rates against those of the plain loop."""
    summary: dict[str, Any] = {"majority": task.texts.majority}
    reference = outcomes["loop"]
    for name, outcome in outcomes.items():
        accuracy, loss = task.judge(outcome.model)
        summary[name] = {
            "accuracy": accuracy,
            "loss": loss,
            "max_weight_difference": largest_difference(outcome.model, reference.model),
            "lr_trace_equal": outcome.rates == reference.rates,
        }
    return summary


def largest_difference(model: torch.nn.Module, other: torch.nn.Module) -> float:
    """Return the largest difference between two weights in the same place."""
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    differences = [(a.double() - b.double()).abs().max() for a, b in pairs]
    return torch.stack(differences).max().item()  # a NaN stays one


def table_of(summary: dict[str, Any]) -> Table:
    """Lay the summary out for a reader."""
    table = Table(title="One recipe, three runtimes", title_justify="left")
    table.add_column("runtime")
    for column in ("held-out accuracy", "majority", "final loss", "max weight difference"):
        table.add_column(column, justify="right")
    table.add_column("lr trace")
    for name in RUNTIMES:
        row = summary[name]
        table.add_row(
            name,
            f"{row['accuracy']:.3f}",
            f"{summary['majority']:.3f}",
            f"{row['loss']:.3f}",
            f"{row['max_weight_difference']:g}",
            "equal" if row["lr_trace_equal"] else "differs",
        )
    return table


if __name__ == "__main__":
    main()
