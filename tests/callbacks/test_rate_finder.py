"""Rate finders in both trainers: they say what they find, and the training is as without them."""

import logging
import sys

import pytest
import torch
from support.bert import tiny_bert
from support.huggingface_runs import trainer_of as huggingface_trainer
from support.lightning_package import (
    Callback,
    GradientAccumulationScheduler,
    LightningModule,
)
from support.lightning_runs import CALM, Tiny, batches, recipe_of, rows, trainer_of
from support.tensors import same_bits
from support.trainers import AT_RANDOM
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from optimplug import ArgumentError, MissingExtraError
from optimplug.callbacks import huggingface, lightning

RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 0.01, "max_grad_norm": 1.0},
    "groups": [{"match": "*bias", "lr_scale": 3}],
    "schedule": [{"name": "LinearLR", "start_factor": 0.1, "for": 4}],
}


class Logs(Tiny):
    """Logs in its steps, takes the number of the batch, and has dropout."""

    def training_step(self, batch, batch_idx):
        loss = self.loss((nn.functional.dropout(batch[0], 0.3, self.training),))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"batch": float(batch_idx)})
        return {"loss": loss}


class Seen(Callback):
    """What a fit logs, and what its optimizer is, update by update."""

    def __init__(self):
        self.logged, self.losses = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item() if isinstance(outputs, dict) else outputs.item())
        self.logged.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def fitted(folder, *callbacks, cls=Logs, recipe=RECIPE, **changes):
    torch.manual_seed(0)
    module, seen = cls(recipe), Seen()
    trainer = trainer_of(folder, seen, *callbacks, **changes)
    trainer.fit(module, DataLoader(rows(), 4, shuffle=True), batches())
    return module.state_dict(), seen.losses, seen.logged, torch.rand(1).item()


def same(one, other):
    return one[1:] == other[1:] and all(same_bits(one[0][key], other[0][key]) for key in other[0])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate_grad_batches": 2},
        pytest.param({"precision": "bf16-mixed"}, marks=pytest.mark.slow),
    ],
    ids=["plain", "accumulated", "bf16-mixed"],
)
def test_a_fit_is_as_without_it(tmp_path, caplog, changes):
    finder = lightning.RateFinder(plot=tmp_path / "lr.png", html=tmp_path / "lr.html")
    with caplog.at_level(logging.WARNING, logger="optimplug"):
        with_it = fitted(tmp_path, finder, **changes)
    assert same(with_it, fitted(tmp_path, **changes))
    assert len(finder.curve.points) > 20
    assert finder.curve.rates == {"optimizer.lr": 0.01}
    assert [record.getMessage() for record in caplog.records].count(str(finder.curve)) == 1
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "lr.html").read_text().startswith("<!doctype html>")


def test_an_update_has_as_many_batches_as_in_the_epoch_that_begins(tmp_path):
    curves = []
    for callbacks, changes in (([], {"accumulate_grad_batches": 2}), ([{0: 2, 1: 3}], {})):
        finder = lightning.RateFinder(updates=20)
        others = map(GradientAccumulationScheduler, callbacks)
        fitted(tmp_path, finder, *others, **changes)
        curves.append(finder.curve)
    assert curves[0] == curves[1]


def test_nothing_is_left_on_the_module(tmp_path):
    module = Logs(RECIPE)
    before = {name for name in vars(module) if "log" in name}
    trainer_of(tmp_path, lightning.RateFinder(), max_epochs=1).fit(module, batches(), batches())
    assert {name for name in vars(module) if "log" in name} == before


class ByHand(Tiny):
    def __init__(self, recipe):
        super().__init__(recipe)
        self.automatic_optimization = False

    def training_step(self, batch):
        optimizer = self.optimizers()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        optimizer.zero_grad()


class FromSeveral(Tiny):
    def training_step(self, batch):
        return self.loss(batch[0])


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (ByHand, batches, "this module steps by hand; in a loop of one's own, optimplug.find_lr"),
        (
            FromSeveral,
            lambda: [batches(), batches()],
            r"needs one DataLoader to train from \(got a list\)",
        ),
    ],
)
def test_a_fit_without_losses_of_its_own_is_refused(tmp_path, cls, data, message):
    trainer = trainer_of(tmp_path, lightning.RateFinder())
    with pytest.raises(ArgumentError, match=message):
        trainer.fit(cls(recipe_of()), data(), batches())


class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_fit_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="this fit has none"):
        trainer_of(tmp_path, lightning.RateFinder()).fit(Plain(), batches())


def test_a_fit_that_goes_on_finds_nothing(tmp_path, caplog):
    first = trainer_of(tmp_path, max_epochs=1)
    first.fit(Tiny(CALM), batches(), batches())
    first.save_checkpoint(tmp_path / "run.ckpt")
    finder = lightning.RateFinder()
    trainer_of(tmp_path, finder, max_epochs=2).fit(
        Tiny({**CALM, "resume": "adapt"}), batches(), batches(), ckpt_path=tmp_path / "run.ckpt"
    )
    assert finder.curve is None
    assert "no sweep over rates: the run goes on from update 6" in caplog.text


def trained(folder, *callbacks, **changes):
    torch.manual_seed(0)
    model = tiny_bert()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    trainer = huggingface_trainer(
        folder,
        {**RECIPE, **changes.pop("recipe", {})},
        callbacks=callbacks,
        model=model,
        **AT_RANDOM,
        logging_strategy="steps",
        logging_steps=1,
        **changes,
    )
    trainer.train()
    times = ("runtime", "per_second", "total_flos")
    logged = [
        {k: v for k, v in row.items() if not any(t in k for t in times)}
        for row in trainer.state.log_history
    ]
    return model.state_dict(), logged, torch.rand(1).item()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        {"recipe": {"optimizer": {"name": "ScheduleFreeAdamW", "lr": 0.01}, "schedule": []}},
        pytest.param(
            {"recipe": {"groups": [{"match": "*embeddings*", "freeze": {"until": 3}}]}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "accumulated", "schedule-free", "frozen for a time"],
)
def test_a_training_is_as_without_it(tmp_path, caplog, changes):
    finder = huggingface.RateFinder(updates=40, plot=tmp_path / "lr.png")
    with caplog.at_level(logging.WARNING, logger="optimplug"):
        with_it = trained(tmp_path, finder, **changes)
    assert same(with_it, trained(tmp_path, **changes))
    assert len(finder.curve.points) >= 20
    assert str(finder.curve) in [record.getMessage() for record in caplog.records]
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert finder.trainer is None


def test_a_second_training_is_swept_over_as_well(tmp_path):
    finder = huggingface.RateFinder(updates=20)
    trainer = huggingface_trainer(tmp_path, RECIPE, callbacks=[finder], num_train_epochs=1)
    trainer.train()
    first, finder.curve = finder.curve, None
    trainer.train()
    assert len(finder.curve.points) > 0
    assert finder.curve is not first


def test_a_training_that_goes_on_finds_nothing(tmp_path, caplog):
    trainer = huggingface_trainer(tmp_path, RECIPE, save_strategy="epoch", num_train_epochs=2)
    trainer.train()
    finder = huggingface.RateFinder()
    huggingface_trainer(tmp_path, RECIPE, callbacks=[finder], num_train_epochs=2).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-6")
    )
    assert finder.curve is None
    assert "no sweep over rates: the run goes on from update 6" in caplog.text


def test_a_trainer_without_a_recipe_is_refused(tmp_path):
    trainer = huggingface_trainer(tmp_path, cls=Trainer, callbacks=[huggingface.RateFinder()])
    with pytest.raises(ArgumentError, match="use a RecipeTrainer, or with_recipe"):
        trainer.train()


@pytest.mark.parametrize("finder", [lightning.RateFinder, huggingface.RateFinder])
def test_settings_are_those_of_find_lr(finder):
    found = finder(updates=30, lowest=0.1, highest=10, diverges=3)
    assert (found.updates, found.lowest, found.highest, found.diverges) == (30, 0.1, 10, 3)
    assert (found.plot, found.html, found.curve) == (None, None, None)
    with pytest.raises(ArgumentError, match="updates must be an int >= 20"):
        finder(updates=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plot": "rates.xyz"}, r"ending must be one of .*png.* \(got 'xyz'\)"),
        ({"plot": "no/rates.png"}, r"plot must be a file in a folder .* \(got no/rates\.png\)"),
        ({"html": "no/rates.html"}, r"html must be a file in a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_sweep(changes, message):
    finder = huggingface.RateFinder(**changes)
    with pytest.raises(ArgumentError, match=message):
        finder.find(None, None, None, [], 1)  # of which it asks for nothing yet


@pytest.mark.parametrize("name", ["plot", "html"])
def test_without_matplotlib_it_is_told_before_the_sweep(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="drawing a sweep over rates"):
        lightning.RateFinder(**{name: "rates.png"}).find(None, None, None, [], 1)
