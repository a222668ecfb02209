"""Small fits that the tests of Lightning's adapter share."""

import torch
from support.lightning_package import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from optimplug import Horizon, Recipe
from optimplug.lightning import RecipeMixin

EPOCH = 6
"""Batches, and so updates, of an epoch."""

WARM_UP = {"name": "LinearLR", "start_factor": 0.1, "for": 4}
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "val_loss", "patience": 0, "factor": 0.5}
COSINE = {"name": "CosineAnnealingLR", "floor": 0.1}


def recipe_of(*schedule, **more):
    return {"optimizer": {"name": "AdamW", "lr": 0.1}, "schedule": list(schedule), **more}


STEPS = recipe_of(WARM_UP, COSINE)
FOLLOWING = recipe_of(WARM_UP, PLATEAU)
# The last bits of a gradient do not become the direction of an update. The metric has the name
# that it has in another runtime.
CALM = {
    "optimizer": {"name": "AdamW", "lr": 0.1, "eps": 0.1},
    "schedule": [WARM_UP, {**PLATEAU, "monitor": "eval_loss"}],
}
# Of an optimizer that does not clip by itself.
CLIPPED = {
    **FOLLOWING,
    "optimizer": {"name": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "max_grad_norm": 0.05},
}


def rows():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(4 * EPOCH, 3, generator=generator))


def batches(size=4):
    return DataLoader(rows(), size)


class Resumable:
    """Batches that go on where a checkpoint found them, which a DataLoader does not."""

    def __init__(self, loader):
        self.batches, self.done, self.resumed = list(loader), 0, False

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        # A checkpoint of an epoch's end holds all of its batches as done.
        self.done = self.done % len(self.batches) if self.resumed else 0
        self.resumed = False
        while self.done < len(self.batches):
            self.done += 1
            yield self.batches[self.done - 1]

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done, self.resumed = state["done"], True


class Tiny(RecipeMixin, LightningModule):
    """A backbone and a head; its metric gets worse with every validation of a fit."""

    def __init__(self, recipe):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(3, 4)
        self.head = nn.Linear(4, 1)
        self.register_buffer("validations", torch.zeros(()))
        self.recipe = recipe

    def loss(self, batch):
        return self.head(torch.tanh(self.backbone(batch[0]))).square().mean()

    def training_step(self, batch):
        return self.loss(batch)

    def validation_step(self, batch):
        self.log("val_loss", self.validations.clone())

    def on_validation_epoch_end(self):
        self.validations += self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def test_step(self, batch):
        self.log("test_loss", self.loss(batch))


class Rates(Callback):
    """What every update used, group by group."""

    def __init__(self, hyperparameter="lr"):
        self.of, self.seen = hyperparameter, []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen.append([group[self.of] for group in optimizer.param_groups])


def trainer_of(folder, *callbacks, **changes):
    settings = {
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**settings, **changes})


def fit(folder, recipe, *callbacks, cls=Tiny, ckpt_path=None, **changes):
    """Fit, with validations; return the module and the rates of every update."""
    rates, module = Rates(), cls(recipe)
    trainer = trainer_of(folder, rates, *callbacks, **changes)
    trainer.fit(module, Resumable(batches()), batches(), ckpt_path=ckpt_path)
    return module, rates.seen


def plain_rates(recipe, total=3 * EPOCH, per_epoch=EPOCH, validated_after=(), updates=None):
    """The rates of a plain loop, whose metric gets worse with every validation."""
    optimizer, scheduler = Recipe.load(recipe).build(Tiny(recipe), Horizon(total, per_epoch))
    rates, validations = [], 0
    for update in range(1, (updates or total) + 1):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
        if update in validated_after:
            scheduler.step_metric({"val_loss": validations})
            validations += 1
    return rates
