"""bfloat16 weights that really move, with 8-bit moments, in PyTorch Lightning.

``python train_lightning.py``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from small import llama, sequences
from torch import Tensor
from torch.utils.data import DataLoader

from optimplug import Horizon, Recipe
from optimplug.callbacks.lightning import OptimizerMonitor
from optimplug.lightning import RecipeMixin

RECIPE = Path(__file__).parent / "lightning.yaml"


class LanguageModel(RecipeMixin, LightningModule):
    """A model that the recipe configures."""

    def __init__(self) -> None:
        super().__init__()
        self.model = llama()
        self.recipe = RECIPE

    def training_step(self, batch: Tensor) -> Tensor:
        """Return the loss of one batch."""
        loss = self.model(input_ids=batch, labels=batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss


def train(epochs: int, folder: Path) -> Trainer:
    """Train, and log the share of weights that an update has lost beside the loss."""
    module = LanguageModel()
    batches = DataLoader(sequences(), 16, shuffle=True)
    print(Recipe.load(RECIPE).plan(module, Horizon(epochs * len(batches), len(batches))))
    trainer = Trainer(
        max_epochs=epochs,
        precision="bf16-true",  # the weights themselves; bf16-mixed would keep them in float32
        callbacks=[OptimizerMonitor(lost_updates=True)],
        logger=CSVLogger(folder),
        log_every_n_steps=4,
        default_root_dir=folder,
    )
    trainer.fit(module, batches)
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    train(**vars(parser.parse_args()))
