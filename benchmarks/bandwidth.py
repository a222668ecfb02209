"""How near to the memory's speed a step is.

A step must read the weight, the gradient and the state of each parameter, and write weight and
state. These bytes over its time are a speed, and a large ``copy_`` in the same run, whose reads and
writes are counted alike, reaches the speed to compare it with. 1 is as fast as copying; more is
possible, as a step reads more than it writes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from optimizers import MODELS, OPTIONS, Step, draw_bars, machine, narrowed, parameters, race
from rich.console import Console
from rich.table import Table

from optimplug import optim

COPIED = 2**28
"""The bytes of the copy: far more than any cache holds."""


class Row(NamedTuple):
    """One bar."""

    name: str
    bytes_each: float
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Way:
    """A model, an optimizer and how it keeps weights and moments."""

    model: str
    optimizer: str = "AdamW"
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)
    storage: str = ""

    @property
    def name(self) -> str:
        """What is measured, in words."""
        return ", ".join(filter(None, (self.optimizer, self.model, self.storage)))


NARROW = torch.bfloat16
EIGHT: dict[str, Any] = {"state_dtype": "8bit"}
WAYS = [
    Way("BERT-base"),
    Way("tiny"),
    *(
        Way("MiniLM", name)
        for name in (
            "AdamW",
            "SGD",
            "Adam",
            "Lion",
            "RMSprop",
            "NAdam",
            "RAdam",
            "Adamax",
            "Adagrad",
        )
    ),
    *(
        Way("MiniLM", name)
        for name in ("Adadelta", "ASGD", "Rprop", "AdEMAMix", "ADOPT", "LAMB", "StableAdamW")
    ),
    Way("MiniLM", storage="8 bits", options=EIGHT),
    Way("MiniLM", "Lion", storage="8 bits", options=EIGHT),
    Way("MiniLM", dtype=NARROW, storage="bfloat16"),
    *(
        Way("MiniLM", dtype=NARROW, storage=f"bfloat16, {rounding}", options={"rounding": rounding})
        for rounding in ("exact", "kahan", "stochastic")
    ),
    Way(
        "MiniLM",
        dtype=NARROW,
        storage="bfloat16, exact, 8 bits",
        options={"rounding": "exact", **EIGHT},
    ),
]


def measure(device: str, rounds: int, only: str) -> Iterator[Row]:
    """Yield a row for each way."""
    synchronize: Step = torch.cuda.synchronize if device == "cuda" else lambda: None
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.empty_like(source)
    for way in (way for way in WAYS if only in way.name):
        params = narrowed(parameters(MODELS[way.model], device), way.dtype)
        options = {**OPTIONS.get(way.optimizer, {}), **way.options}
        ours = getattr(optim, way.optimizer)(params, **{"lr": 1e-4, **options})
        copy, step = race([lambda: target.copy_(source), ours.step], rounds, synchronize)
        moved = must_move(ours)
        speeds = [
            (moved / here) / (2 * COPIED / there) for there, here in zip(copy, step, strict=True)
        ]
        count = sum(p.numel() for p in params)
        yield Row(way.name, moved / count, 1e3 * statistics.median(step), statistics.median(speeds))


def must_move(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes that a step must read and write."""
    total = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            kept = (value for value in optimizer.state[p].values() if value.dim())
            total += 2 * (p.nbytes + sum(value.nbytes for value in kept)) + p.grad.nbytes
    return total


def main() -> None:
    """Measure everything, print the table, and leave it with a picture in the folder given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", default="", help="of the ways, those whose name has this")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    given = parser.parse_args()
    rows = []
    for row in measure(given.device, given.rounds, given.only):
        rows.append(row)
        print(f"{row.name}: {row.share:.2f}", flush=True)
    table = Table(title=machine(given.device), title_justify="left")
    for column in ("step", "bytes per element", "ms", "speed / copy"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        table.add_row(row.name, *(f"{value:.2f}" for value in row[1:]))
    Console(width=120).print(table)
    given.out.mkdir(parents=True, exist_ok=True)
    lines = ["| step | bytes per element | ms | speed / copy |", "|---|---|---|---|"]
    lines += [f"| {a} | {b:.2f} | {c:.2f} | {d:.2f} |" for a, b, c, d in rows]
    (given.out / "bandwidth.md").write_text("\n".join([machine(given.device), "", *lines, ""]))
    bars = {row.name: row.share for row in rows}
    picture = given.out / "bandwidth.png"
    draw_bars(bars, picture, machine(given.device), "speed of a step / speed of a copy")


if __name__ == "__main__":
    main()
