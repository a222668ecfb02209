"""A recipe in a loop of accelerate: a warm-up, a plateau, and a resume to the last bit.

``python train.py --epochs 6``, and from any of its checkpoints
``python train.py --epochs 6 --resume runs/epoch-2.pt``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
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
    # The order of the batches has a seed of its own, so that a resumed epoch has it again.
    order = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0)
    accelerator = Accelerator(gradient_accumulation_steps=2, dataloader_config=order)
    torch.manual_seed(0)
    data, images, labels = digits()
    model: nn.Module = nn.Sequential(
        nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10)
    )

    # The optimizer comes before the horizon, whose length accelerate knows once it has the batches.
    run = Run(Recipe.load(RECIPE), model)
    batches = DataLoader(data, 32, shuffle=True)
    model, optimizer, batches = accelerator.prepare(model, run.optimizer, batches)
    updates = math.ceil(len(batches) / accelerator.gradient_accumulation_steps)
    run.schedule_over(Horizon(epochs * updates, updates), optimizer)
    images, labels = images.to(accelerator.device), labels.to(accelerator.device)

    done = 0
    if resume is not None:
        state = torch.load(resume, map_location="cpu", weights_only=True)
        accelerator.unwrap_model(model).load_state_dict(state["model"])
        run.load_state_dict(state["run"])
        done = state["epochs"]
    with run:
        for epoch in range(done, epochs):
            batches.set_epoch(epoch)
            model.train()
            run.train()
            for some_images, some_labels in batches:
                with accelerator.accumulate(model):
                    accelerator.backward(F.cross_entropy(model(some_images), some_labels))
                    run.step()  # no update where gradients are only accumulated
            model.eval()
            run.eval()
            with torch.no_grad():
                loss = F.cross_entropy(model(images), labels).item()
            run.validated({"eval_loss": loss})
            rate = run.scheduler.get_last_lr()[0]
            accelerator.print(f"epoch {epoch + 1}: eval_loss {loss:.4f}, next rate {rate:.2e}")
            whole = accelerator.unwrap_model(model)
            state = {"model": whole.state_dict(), "run": run.state_dict(), "epochs": epoch + 1}
            folder.mkdir(parents=True, exist_ok=True)
            # Renamed when it is whole: one that is killed meanwhile leaves no half of a checkpoint.
            accelerator.save(state, folder / "epoch.part")
            if accelerator.is_main_process:
                (folder / "epoch.part").replace(folder / f"epoch-{epoch + 1}.pt")
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--resume", type=Path)
    train(**vars(parser.parse_args()))
