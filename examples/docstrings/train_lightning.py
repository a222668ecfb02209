"""The same recipe in PyTorch Lightning."""

import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from task import Outcome, Task, run_alone
from torch import Tensor, nn

from optimplug.callbacks.lightning import LearningRateTrace
from optimplug.lightning import RecipeMixin


class Classifier(RecipeMixin, LightningModule):
    """A classifier that the recipe configures."""

    def __init__(self, model: nn.Module, recipe: Path) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of one batch."""
        return self.model(**batch).loss


def train(task: Task) -> Outcome:
    """Train with a Lightning Trainer."""
    # The batches are in memory already: worker processes would only cost time.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own, with a recent torch
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trace = LearningRateTrace()
    module = Classifier(task.model().train(), task.recipe)
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_epochs=task.epochs, accelerator="cpu", callbacks=[trace], **quiet)
    trainer.fit(module, task.train_batches())
    return Outcome(module.model, trace.rates)


if __name__ == "__main__":
    run_alone(train, __doc__)
