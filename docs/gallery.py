"""Draw a picture of every scheduler for schedulers.md: `make gallery`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import optimplug.optim.lr_scheduler as schedulers

Optimizer = torch.optim.Optimizer
Build = Callable[[Optimizer], Any]

STEPS = 100
COLORS = ("#440154", "#31688e", "#35b779")  # of viridis, as in the pictures of plans


def loss(t: int) -> float:
    """Return a loss that falls, and rests twice."""
    return 1.0 / (1 + min(t, 25) / 10) - (0.1 if t > 60 else 0.0)


# Each picture: what its lines are called, and how each scheduler is built.
GALLERY: dict[str, dict[str, Build]] = {
    "LambdaLR": {"lambda t: 0.95**t": lambda o: schedulers.LambdaLR(o, lambda t: 0.95**t)},
    "MultiplicativeLR": {
        "lambda t: 0.9 if t % 10 == 0 else 1.0": lambda o: schedulers.MultiplicativeLR(
            o, lambda t: 0.9 if t % 10 == 0 else 1.0
        )
    },
    "StepLR": {"step_size=30, gamma=0.5": lambda o: schedulers.StepLR(o, 30, 0.5)},
    "MultiStepLR": {
        "milestones=[20, 50, 60], gamma=0.5": lambda o: schedulers.MultiStepLR(o, [20, 50, 60], 0.5)
    },
    "ConstantLR": {"factor=0.3, total_iters=40": lambda o: schedulers.ConstantLR(o, 0.3, 40)},
    "LinearLR": {
        "start_factor=0.1, total_iters=30": lambda o: schedulers.LinearLR(o, 0.1, 1.0, 30),
        "1.0 to 0.2 in 80": lambda o: schedulers.LinearLR(o, 1.0, 0.2, 80),
    },
    "ExponentialLR": {"gamma=0.97": lambda o: schedulers.ExponentialLR(o, 0.97)},
    "PolynomialLR": {
        f"total_iters=80, power={power}": lambda o, power=power: schedulers.PolynomialLR(
            o, 80, power
        )
        for power in (0.5, 1.0, 2.0)
    },
    "CosineAnnealingLR": {
        "T_max=80, eta_min=0.1": lambda o: schedulers.CosineAnnealingLR(o, 80, 0.1)
    },
    "CosineAnnealingWarmRestarts": {
        "T_0=14, T_mult=2": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 14, 2),
    },
    "CyclicLR": {
        mode: lambda o, mode=mode: schedulers.CyclicLR(o, 0.1, 1.0, 14, mode=mode, gamma=0.985)
        for mode in ("triangular", "triangular2", "exp_range")
    },
    "OneCycleLR": {
        "two phases": lambda o: schedulers.OneCycleLR(o, 1.0, STEPS),
        "three_phase=True": lambda o: schedulers.OneCycleLR(o, 1.0, STEPS, three_phase=True),
        "linear": lambda o: schedulers.OneCycleLR(o, 1.0, STEPS, anneal_strategy="linear"),
    },
    "SequentialLR": {
        "LinearLR, at 20 CosineAnnealingLR": lambda o: schedulers.SequentialLR(
            o, [schedulers.LinearLR(o, 0.1, 1.0, 20), schedulers.CosineAnnealingLR(o, 80)], [20]
        )
    },
    "ChainedScheduler": {
        "LinearLR and StepLR": lambda o: schedulers.ChainedScheduler(
            [schedulers.LinearLR(o, 0.1, 1.0, 20), schedulers.StepLR(o, 30, 0.6)]
        )
    },
    "ReduceLROnPlateau": {
        "factor=0.5, patience=10": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5)
    },
}


def trace(build: Build) -> list[float]:
    """Return the rate at each step of a run on a rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler = build(optimizer)
    found = []
    for t in range(STEPS):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        metric = (loss(t),) if isinstance(scheduler, schedulers.ReduceLROnPlateau) else ()
        scheduler.step(*metric)
    return found


def draw(name: str, folder: Path) -> None:
    """Draw one scheduler, the same picture at every call."""
    figure = Figure(figsize=(6, 2.2), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="rate", xlim=(0, STEPS - 1), ylim=(0, 1.08))
    for (label, build), color in zip(GALLERY[name].items(), COLORS, strict=False):
        axes.plot(trace(build), label=label, color=color, drawstyle="steps-post")
    if name == "ReduceLROnPlateau":
        axes.plot([loss(t) for t in range(STEPS)], label="metric", color="0.6", linestyle=":")
    figure.legend(fontsize=8, frameon=False, loc="outside upper left", ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / f"{name}.png", dpi=100, metadata={"Software": None})


def main() -> None:
    """Draw all pictures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "gallery")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name in GALLERY:
        draw(name, folder)


if __name__ == "__main__":
    main()
