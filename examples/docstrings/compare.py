"""Train with one recipe in three runtimes and compare what comes out.

Writes plan.html, plan.txt, lr.png and summary.json into the folder given by --out.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
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

MEANINGS = {
    "runtime": "which training loop ran the recipe",
    "held-out accuracy": "share of right answers on texts that it was not trained on",
    "majority": "the same share for always guessing the most frequent label",
    "final loss": "mean cross-entropy on those texts after training; lower is better",
    "max weight difference": "the largest difference from any weight of the plain loop; 0 is none",
    "lr trace": "whether every group had the plain loop's learning rate in every update",
}
"""What each column of the table says."""


def main() -> None:
    """Run the comparison from the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)  # a pipe has no width of its own
    task = task_from(parser, given)
    texts = task.texts
    console.print(
        f"A small BERT learns {len(texts.labels)} labels ({', '.join(texts.labels)}) from "
        f"{len(texts.train)} texts,\nonce in each of three training loops, with the recipe "
        f"{task.recipe.name}. {len(texts.held_out)} other texts judge it.\n"
        f"This takes about {duration(seconds_to_train(task))} on this machine.\n"
    )
    try:
        show_plan(task, given.out, console)
    except RecipeError as error:
        sys.exit(str(error))
    outcomes, results = {}, {}
    for name, train in RUNTIMES.items():
        console.rule(name)
        outcomes[name] = train(task)
        results[name] = task.judge(outcomes[name].model)
        console.print(
            f"{name}: {results[name][0]:.1%} of the held-out texts are right "
            f"({texts.majority:.1%} by guessing)"
        )
    summary = summarize(task.texts.majority, outcomes, results)
    (given.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(table_of(summary))
    for column, meaning in MEANINGS.items():
        console.print(f"  {column}: {meaning}")
    console.print(f"\nwritten to {given.out}: summary.json, plan.txt, lr.png, plan.html")
    console.print("What every layer did, with the curves of its rate, is in the page (open it):")
    console.print(f"  {(given.out / 'plan.html').resolve()}", soft_wrap=True)


def seconds_to_train(task: Task) -> float:
    """Time two updates of a model that is then thrown away, and say what all of them will take."""
    model = task.model().train()
    optimizer = torch.optim.AdamW(model.parameters())
    times = []
    for batch in islice(task.train_batches(), 3):
        began = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    batches = task.epochs * len(task.train_batches())
    judged = 1 + task.epochs * task.steps_per_epoch // (task.evaluate_every or sys.maxsize)
    judging = judged * len(task.held_out_set) / (3 * task.batch_size)  # no backward: a third
    mean = sum(times[1:] or times) / len(times[1:] or times)  # the first has more to prepare
    return len(RUNTIMES) * mean * (batches + judging)


def duration(seconds: float) -> str:
    """Write a time as a person would say it."""
    if seconds < 55:
        return f"{5 * max(1, round(seconds / 5))} seconds"
    minutes = max(1, round(seconds / 30) / 2)
    return "1 minute" if minutes == 1 else f"{minutes:g} minutes"


def show_plan(task: Task, out: Path, console: Console) -> None:
    """Print and keep what the recipe is about to do."""
    horizon = Horizon(task.steps_per_epoch * task.epochs, task.steps_per_epoch)
    plan = Recipe.load(task.recipe).plan(task.model(), horizon)
    console.print(plan)
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan.txt").write_text(f"{plan.table(unfold=True)}\n")
    (out / "plan.html").write_text(plan.html(), encoding="utf-8")
    plan.plot(out / "lr.png")


def summarize(
    majority: float, outcomes: dict[str, Outcome], results: dict[str, tuple[float, float]]
) -> dict[str, Any]:
    """Hold the weights and rates of every runtime against those of the plain loop."""
    summary: dict[str, Any] = {"majority": majority}
    reference = outcomes["loop"]
    for name, outcome in outcomes.items():
        accuracy, loss = results[name]
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
    for column in MEANINGS:
        table.add_column(column, justify="left" if column in ("runtime", "lr trace") else "right")
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
