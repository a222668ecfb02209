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

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Log the loss of one batch, which is averaged over all texts."""
        self.log("eval_loss", self.model(**batch).loss, batch_size=len(batch["labels"]))


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
    evaluations: dict[str, Any] = {"limit_val_batches": 0}
    if task.evaluate_every:
        evaluations = {
            "val_check_interval": task.evaluate_every * task.accumulate,
            "check_val_every_n_epoch": None,  # it counts on from epoch to epoch
        }
    trainer = Trainer(
        max_epochs=task.epochs,
        accumulate_grad_batches=task.accumulate,
        accelerator="cpu",
        callbacks=[trace],
        **evaluations,
        **quiet,
    )
    trainer.fit(module, task.train_batches(), task.eval_batches())
    return Outcome(module.model, trace.rates)


if __name__ == "__main__":
    run_alone(train, __doc__)
