"""step() of the schedulers here against torch's, with 200 groups, as ratios of times side by side.

Both take turns in one process. A ratio is taken in every round, between turns that follow each
other, and its median is reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.optim.lr_scheduler as torchs
from optimizers import machine, race, ratio
from rich.console import Console
from rich.table import Table

import optimplug.optim.lr_scheduler as ours

GROUPS = 200
LONG = 10**6  # steps: no run here comes to the end
STEPS_A_CALL = 3  # few: a turn should be over before the machine does something else

Build = Callable[[Any, torch.optim.Optimizer], Any]
CASES: dict[str, Build] = {
    "LinearLR": lambda m, o: m.LinearLR(o, 0.1, 1.0, LONG),
    "CosineAnnealingLR": lambda m, o: m.CosineAnnealingLR(o, LONG),
    "SequentialLR": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.1, 1.0, LONG), m.CosineAnnealingLR(o, LONG)], [LONG]
    ),
    "OneCycleLR": lambda m, o: m.OneCycleLR(o, 0.1, LONG),
    "ExponentialLR": lambda m, o: m.ExponentialLR(o, 0.999999),
    "LambdaLR": lambda m, o: m.LambdaLR(o, lambda t: 1 / (1 + t)),
    "CyclicLR": lambda m, o: m.CyclicLR(o, 0.01, 0.1),
    "ChainedScheduler of two": lambda m, o: m.ChainedScheduler(
        [m.LinearLR(o, 0.1, 1.0, LONG), m.ExponentialLR(o, 0.999999)]
    ),
}


def stepping(module: ModuleType, build: Build) -> Callable[[], None]:
    """Return some steps of a scheduler over groups that each have a rate of their own."""
    groups = [
        {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1 * (1 + i / GROUPS)}
        for i in range(GROUPS)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    scheduler = build(module, optimizer)
    optimizer.step()

    def steps() -> None:
        for _ in range(STEPS_A_CALL):
            scheduler.step()

    return steps


def measure(rounds: int) -> Iterator[tuple[str, float, float, float]]:
    """Yield a row for each case: what, both times in microseconds a step, the ratio."""
    for name, build in CASES.items():
        here, there = race([stepping(m, build) for m in (ours, torchs)], rounds, lambda: None)
        times = (1e6 * sorted(t)[len(t) // 2] / STEPS_A_CALL for t in (there, here))
        yield name, *times, ratio(there, here)


def main() -> None:
    """Measure everything, print the table, and leave it in the folder given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    given, _ = parser.parse_known_args()  # `make bench` passes on what is for the optimizers
    title = f"step() with {GROUPS} groups, {machine('cpu')}"
    table = Table("scheduler", "torch, us", "ours, us", "ratio", title=title, title_justify="left")
    lines = ["| scheduler | torch, us | ours, us | ratio |", "|---|---|---|---|"]
    for name, *numbers in measure(given.rounds):
        row = (name, *(f"{number:.2f}" for number in numbers))
        table.add_row(*row)
        lines.append(f"| {' | '.join(row)} |")
    Console(width=120).print(table)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "schedulers.md").write_text("\n".join([title, "", *lines, ""]))


if __name__ == "__main__":
    main()
