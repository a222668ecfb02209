"""The optimizers here against torch's, as ratios of times taken side by side.

Every contender takes its turn in one process, on parameters of its own with the same shapes: a step
that is not timed, which brings its memory back into the caches, then a few that are. A ratio is
taken in every round, between turns that follow each other, and its median is reported: so other
work on the machine, which comes and goes, weighs on both sides.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from optimplug import optim

Shapes = list[tuple[int, ...]]
Step = Callable[[], object]


def transformer(layers: int, width: int, vocabulary: int, positions: int) -> Shapes:
    """Return the shapes of a BERT-like model: 16 tensors a layer, and embeddings if it has any."""
    layer: Shapes = [(width, width), (width,)] * 4  # query, key, value, output
    layer += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    layer += [(width,)] * 4  # two norms
    embeddings: Shapes = [(vocabulary, width), (positions, width)] if vocabulary else []
    return embeddings + layer * layers


MODELS = {
    "tiny": transformer(48, 64, 0, 0),
    "MiniLM": transformer(6, 384, 30522, 512),
    "BERT-base": transformer(12, 768, 30522, 512),
    **{f"{count} tensors": [(64, 64)] * count for count in (1, 2, 20, 200, 720)},
    "MiniLM matrices": [shape for shape in transformer(6, 384, 0, 0) if len(shape) == 2],
}


@dataclass(frozen=True)
class Case:
    """One row: a model, in how many groups, clipped or not, against which of torch's ways."""

    model: str
    groups: int
    clipped: bool
    rival: str
    """One of torch's ways; ``best``: whichever is the fastest here."""
    optimizer: str = "AdamW"
    change: str = ""
    """What a user does before each step: one of :data:`CHANGES`."""

    @property
    def name(self) -> str:
        """What is measured, in words."""
        what = "" if self.optimizer == "AdamW" else f"{self.optimizer}, "
        rest = f"{', clipped' if self.clipped else ''}{self.change and f', {self.change}'}"
        return f"{what}{self.model}, {self.groups} groups{rest}"


CASES = [
    Case("tiny", 200, False, "fused"),
    Case("tiny", 1, False, "fused"),
    Case("tiny", 200, True, "fused"),
    Case("tiny", 1, True, "fused"),
    Case("tiny", 200, False, "foreach"),
    Case("tiny", 200, False, "default"),
    Case("tiny", 1, False, "default"),
    Case("MiniLM", 1, False, "fused"),
    Case("MiniLM", 52, False, "fused"),
    Case("MiniLM", 52, True, "fused"),
    Case("BERT-base", 2, False, "fused"),
    Case("BERT-base", 2, True, "fused"),
    Case("BERT-base", 52, False, "default"),
    Case("BERT-base", 52, True, "fused"),
    *(Case("MiniLM", 52, False, "foreach", name) for name in ("Lion", "RMSprop", "NAdam")),
    *(
        Case("tiny", 200, False, "best", name)
        for name in ("SGD", "Adam", "RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta", "ASGD")
    ),
    *(Case("tiny", 200, False, "best", name) for name in ("Rprop", "Adagrad", "Adafactor")),
    Case("MiniLM matrices", 1, False, "best", "Muon"),
    *(
        Case(f"{count} tensors", 1, False, "best", name)
        for count in (1, 2, 20)
        for name in ("AdamW", "SGD")
    ),
    Case("200 tensors", 1, False, "best", change="a random half has gradients"),
    Case("720 tensors", 1, False, "best", change="2 of 8 experts have gradients"),
    Case("200 tensors", 1, False, "best", change="its own state loaded"),
]
RIVALS: dict[str, dict[str, Any]] = {
    "default": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}}
"""What is not left at its default: without momentum there is little to do."""
MAX_NORM = 1.0
STEPS_A_TURN = 4


def parameters(shapes: Shapes, device: str) -> list[torch.nn.Parameter]:
    """Return parameters with gradients, the same at every call."""
    torch.manual_seed(0)
    found = [torch.nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes]
    for p in found:
        p.grad = torch.randn_like(p) * 1e-2
    return found


def narrowed(params: list[torch.nn.Parameter], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Return parameters of another type with their gradients."""
    found = [torch.nn.Parameter(p.detach().to(dtype)) for p in params]
    for p, old in zip(found, params, strict=True):
        p.grad = old.grad.to(dtype)
    return found


def grouped(params: list[torch.nn.Parameter], count: int) -> list[dict[str, Any]]:
    """Split into groups of neighbours, each with its own rate, every other one without decay."""
    size = -(-len(params) // count)
    parts = [params[i : i + size] for i in range(0, len(params), size)]
    if count > len(parts):  # as many groups as asked for, some with one tensor less
        cuts = [round(i * len(params) / count) for i in range(count + 1)]
        parts = [params[a:b] for a, b in pairwise(cuts)]
    return [
        {"params": part, "lr": 1e-4 * (1 + i / count), "weight_decay": 0.01 * (i % 2)}
        for i, part in enumerate(parts)
    ]


def half_missing(optimizer: torch.optim.Optimizer) -> Step:
    """Return what gives gradients to a random half of the parameters, another one each time."""
    generator = torch.Generator().manual_seed(0)

    def choose(count: int) -> list[bool]:
        return (torch.rand(count, generator=generator) < 0.5).tolist()

    return missing(optimizer, choose)


def experts(optimizer: torch.optim.Optimizer) -> Step:
    """Return what gives gradients to two of eight experts of three tensors a layer."""
    generator = torch.Generator().manual_seed(0)

    def choose(count: int) -> list[bool]:
        top = torch.randperm(8, generator=generator)[:2].tolist()
        return [i // 3 % 8 in top for i in range(count)]

    return missing(optimizer, choose)


def missing(optimizer: torch.optim.Optimizer, choose: Callable[[int], list[bool]]) -> Step:
    """Return what takes the gradients of some parameters away, and gives back those of others."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params]

    def change() -> None:
        for p, g, has_one in zip(params, grads, choose(len(params)), strict=True):
            p.grad = g if has_one else None

    return change


def loading(optimizer: torch.optim.Optimizer) -> Step:
    """Return what replaces the state by one that was saved, as it is."""
    optimizer.step()
    saved = optimizer.state_dict()
    return lambda: optimizer.load_state_dict(saved)


CHANGES: dict[str, Callable[[torch.optim.Optimizer], Step]] = {
    "a random half has gradients": half_missing,
    "2 of 8 experts have gradients": experts,
    "its own state loaded": loading,
}


def changed(case: Case, optimizer: torch.optim.Optimizer) -> Step:
    """Return a step, after what the case has a user do before it."""
    if not case.change:
        return optimizer.step
    change = CHANGES[case.change](optimizer)

    def change_and_step() -> None:
        change()
        optimizer.step()

    return change_and_step


def ours(case: Case, device: str, groups: int | None = None) -> Step:
    """Return a step of ours."""
    params = parameters(MODELS[case.model], device)
    clip = MAX_NORM if case.clipped else None
    cls = getattr(optim, case.optimizer)
    options = OPTIONS.get(case.optimizer, {})
    optimizer = cls(grouped(params, groups or case.groups), max_grad_norm=clip, **options)
    return changed(case, optimizer)


def rivals(case: Case, device: str) -> list[str]:
    """Return which of torch's ways take part."""
    if case.rival != "best":
        return [case.rival]
    known = signature(getattr(torch.optim, case.optimizer)).parameters
    found = [name for name, choice in RIVALS.items() if choice.keys() <= known.keys()]
    # torch has this operator for the CPU alone.
    return [n for n in found if (case.optimizer, n, device) != ("Adagrad", "fused", "cuda")]


def torchs(case: Case, rival: str, device: str) -> Step:
    """Return a step of torch's, with clipping before it where the case asks for it."""
    params = parameters(MODELS[case.model], device)
    # What torch does not have runs through its operators by our own foreach=True.
    cls = getattr(torch.optim, case.optimizer, None) or getattr(optim, case.optimizer)
    options = {**OPTIONS.get(case.optimizer, {}), **RIVALS[rival]}
    optimizer: torch.optim.Optimizer = cls(grouped(params, case.groups), **options)
    if not case.clipped:
        return changed(case, optimizer)

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return clip_and_step


def race(contenders: list[Step], rounds: int, synchronize: Step) -> list[list[float]]:
    """Let everyone take turns; return the seconds a step of each took, round by round."""
    taken: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for step, times in zip(contenders, taken, strict=True):
            step()
            synchronize()
            start = time.perf_counter()
            for _ in range(STEPS_A_TURN):
                step()
            synchronize()
            times.append((time.perf_counter() - start) / STEPS_A_TURN)
    return [times[1:] for times in taken]  # the first turn makes the state


def ratio(slow: list[float], fast: list[float]) -> float:
    """Return the median of the ratios taken round by round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def measure(
    device: str, rounds: int, only: str = ""
) -> Iterator[tuple[str, str, float, float, float]]:
    """Yield a row for each case: what, against what, both times in milliseconds, the ratio."""
    synchronize: Step = torch.cuda.synchronize if device == "cuda" else lambda: None
    for case in (case for case in CASES if only in case.name):
        names = rivals(case, device)
        steps = [ours(case, device), *(torchs(case, rival, device) for rival in names)]
        here, *others = race(steps, rounds, synchronize)
        there, best = min(zip(others, names, strict=True), key=lambda other: _ms(other[0]))
        whose = "torch" if hasattr(torch.optim, case.optimizer) else "our"
        rival = f"{whose} {best}" + (" after clip_grad_norm_" if case.clipped else "")
        yield case.name, rival, _ms(there), _ms(here), ratio(there, here)
    for model, many in (("tiny", 200), ("MiniLM", 52)) if not only else ():
        case = Case(model, many, False, "")
        several, one = race([ours(case, device), ours(case, device, 1)], rounds, synchronize)
        name = f"{model}, cost of {many} groups / cost of 1"
        yield name, "ours in 1 group", _ms(one), _ms(several), ratio(several, one)


def _ms(times: list[float]) -> float:
    return 1e3 * statistics.median(times)


def machine(device: str) -> str:
    """Describe where this runs, without naming the machine."""
    cpu = f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    return f"{gpu}{cpu}, torch {torch.__version__.partition('+')[0]}"


def draw(rows: list[tuple[str, str, float, float, float]], path: Path, title: str) -> None:
    """Draw the ratios as bars."""
    bars = {f"{name} ({rival})": row[-1] for name, rival, *row in rows}
    draw_bars(bars, path, title, "time of the other / time of ours")


def draw_bars(bars: dict[str, float], path: Path, title: str, what: str) -> None:
    """Draw numbers by name as bars beside each other, with a line at 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.4 * len(bars) + 1.2), layout="constrained")
    axes = figure.add_subplot(xlabel=what, title=title)
    drawn = axes.barh(list(bars)[::-1], list(bars.values())[::-1], color="#31688e")
    axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1.0, color="0.4", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure everything, print the table, and leave it with a plot in the folder given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", default="", help="of the cases, those whose name has this")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    given = parser.parse_args()
    table = Table(title=machine(given.device), title_justify="left")
    table.add_column("case")
    table.add_column("against")
    for column in ("other, ms", "ours, ms", "ratio"):
        table.add_column(column, justify="right")
    rows = []
    for row in measure(given.device, given.rounds, given.only):
        rows.append(row)
        table.add_row(row[0], row[1], *(f"{value:.2f}" for value in row[2:]))
        print(f"{row[0]} ({row[1]}): {row[-1]:.2f}", flush=True)
    Console(width=120).print(table)
    given.out.mkdir(parents=True, exist_ok=True)
    lines = ["| case | against | other, ms | ours, ms | ratio |", "|---|---|---|---|---|"]
    lines += [f"| {a} | {b} | {c:.2f} | {d:.2f} | {e:.2f} |" for a, b, c, d, e in rows]
    (given.out / "optimizers.md").write_text("\n".join([machine(given.device), "", *lines, ""]))
    draw(rows, given.out / "optimizers.png", machine(given.device))


if __name__ == "__main__":
    main()
