"""A recipe in a loop of Lightning's Fabric: a warm-up, a plateau, and a resume to the last bit.

``python train.py --epochs 6``, and from any of its checkpoints
``python train.py --epochs 6 --resume runs/epoch-2.ckpt``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from optimplug import Horizon, Recipe, Run

RECIPE = Path(__file__).parent / "recipe.yaml"
HELD_OUT = 256


def digits() -> tuple[TensorDataset, Tensor, Tensor]:
    """Return the images to learn from, and those to judge by with their labels."""
    found = load_digits()
    images, labels = torch.tensor(found.data / 16.0).float(), torch.tensor(found.target)
    return TensorDataset(images[HELD_OUT:], labels[HELD_OUT:]), images[:HELD_OUT], labels[:HELD_OUT]


def train(epochs: int, folder: Path, resume: Path | None = None) -> nn.Module:
    """Train, judge and save in every epoch; go on from a checkpoint if there is one."""
    fabric = Fabric(devices=1)
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    data, images, labels = digits()
    bare = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10))

    run = Run(Recipe.load(RECIPE), bare)
    model, optimizer = fabric.setup(bare, run.optimizer)
    order = torch.Generator()
    batches = fabric.setup_dataloaders(DataLoader(data, 32, shuffle=True, generator=order))
    run.schedule_over(Horizon(epochs * len(batches), len(batches)), optimizer)
    images, labels = fabric.to_device(images), fabric.to_device(labels)

    progress = {"epochs": 0}
    whole = {"model": model, "run": run, "progress": progress}
    if resume is not None:
        fabric.load(resume, whole)  # a run has a state as a module has
    with run:
        for epoch in range(whole["progress"]["epochs"], epochs):
            order.manual_seed(epoch)
            model.train()
            run.train()
            for some_images, some_labels in batches:
                fabric.backward(F.cross_entropy(model(some_images), some_labels))
                run.step()
            model.eval()
            run.eval()
            with torch.no_grad():
                loss = F.cross_entropy(model(images), labels).item()
            run.validated({"eval_loss": loss})
            rate = run.scheduler.get_last_lr()[0]
            fabric.print(f"epoch {epoch + 1}: eval_loss {loss:.4f}, next rate {rate:.2e}")
            whole["progress"] = {"epochs": epoch + 1}
            fabric.save(folder / f"epoch-{epoch + 1}.ckpt", whole)
    return bare


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--resume", type=Path)
    train(**vars(parser.parse_args()))
