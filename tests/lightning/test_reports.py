"""A plateau with ``of_training: true`` goes by what a module has logged in each epoch of training."""

import pytest
import torch
from support.lightning_runs import (
    EPOCH,
    WARM_UP,
    Tiny,
    fit,
    recipe_of,
)
from support.tensors import same_weights

from optimplug import ArgumentError, Horizon, Recipe
from optimplug.callbacks.lightning import MetricCallback
from optimplug.lightning import scheduler_config

from .test_resume import AfterEpochs, AfterUpdates, AfterValidations, by_epochs, by_steps

FOLLOWING = {
    "name": "ReduceLROnPlateau",
    "monitor": "loss",
    "of_training": True,
    "patience": 0,
    "threshold": 0.99,  # so that no epoch is an improvement
    "factor": 0.5,
}
RECIPE = recipe_of(WARM_UP, FOLLOWING)
LATER = recipe_of({"name": "LinearLR", "for": 12}, {**FOLLOWING, "monitor": "f1"})
BOTH = recipe_of(
    {"together": [FOLLOWING, {**FOLLOWING, "monitor": "val_loss", "of_training": False}]}
)


class Reporting(Tiny):
    """Logs the mean of its loss over each epoch."""

    how = {"on_step": False, "on_epoch": True}

    def training_step(self, batch):
        loss = self.loss(batch)
        self.log("train_loss", loss, **self.how)
        return loss


class Forked(Reporting):
    how = {"on_step": True, "on_epoch": True}


class OfLast(Reporting):
    how = {"on_step": True, "on_epoch": False}


class Largest(Reporting):
    how = {"on_step": False, "on_epoch": True, "reduce_fx": "max"}


class AtTheEnd(Tiny):
    """Logs when the epoch is over, which is after all callbacks but those that save."""

    def on_train_epoch_end(self):
        self.log("train_loss", 1.0 + self.current_epoch)


def halved(rates):
    """Whether the rate was halved at each epoch's end but the first, from the second on."""
    ends = [rates[epoch * EPOCH][0] for epoch in range(1, len(rates) // EPOCH)]
    return ends == [ends[0] / 2**i for i in range(len(ends))]


@pytest.mark.parametrize("cls", [Reporting, Forked, Largest, AtTheEnd])
def test_each_epoch_is_one_observation(tmp_path, cls):
    module, rates = fit(tmp_path, RECIPE, cls=cls, max_epochs=4)
    assert halved(rates)
    assert len(set(map(tuple, rates[-EPOCH:]))) == 1
    assert "on_train_epoch_end" not in vars(module)


def test_validations_are_not_needed(tmp_path):
    _, rates = fit(tmp_path, RECIPE, cls=Reporting, max_epochs=4, limit_val_batches=0)
    assert halved(rates)


def test_the_observation_is_the_mean_of_the_epoch(tmp_path):
    seen = []

    class Noting(Reporting):
        def training_step(self, batch):
            loss = super().training_step(batch)
            seen.append(loss.item())
            return loss

        def on_train_end(self):
            state = self.lr_schedulers().state_dict()
            self.best = state["_remembered"][-1]["plateau"]["best"]

    module, _ = fit(tmp_path, RECIPE, cls=Noting, max_epochs=2)
    assert module.best == pytest.approx(sum(seen[:EPOCH]) / EPOCH)


def test_a_metric_of_each_batch_alone_is_told(tmp_path):
    with pytest.warns(UserWarning, match="'train_loss', which is logged for each batch alone"):
        _, rates = fit(tmp_path, RECIPE, cls=OfLast, max_epochs=4)
    assert halved(rates)


@pytest.mark.parametrize(
    ("cls", "recipe", "message"),
    [
        (Tiny, RECIPE, "the metric 'loss' is missing; there are: none"),
        (Reporting, LATER, "the metric 'f1' is missing; there are: train_loss"),
    ],
)
def test_a_metric_that_is_not_logged_is_an_error_at_the_first(tmp_path, cls, recipe, message):
    with pytest.raises(ArgumentError, match=message):
        fit(tmp_path, recipe, cls=cls)


slow = pytest.mark.slow
CASES = [
    (RECIPE, Reporting, AfterUpdates, {}),
    (RECIPE, Reporting, AfterEpochs, {}),
    (RECIPE, AtTheEnd, by_epochs, {"enable_checkpointing": True}),
    pytest.param(RECIPE, Forked, by_steps, {"enable_checkpointing": True}, marks=slow),
    pytest.param(RECIPE, Largest, AfterUpdates, {"limit_val_batches": 0}, marks=slow),
    pytest.param(RECIPE, Reporting, AfterValidations, {"val_check_interval": 3}, marks=slow),
    pytest.param(RECIPE, Reporting, by_epochs, {"enable_checkpointing": True}, marks=slow),
    pytest.param(BOTH, Reporting, AfterUpdates, {}, marks=slow),
]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
@pytest.mark.parametrize(("recipe", "cls", "saving", "changes"), CASES)
def test_from_every_checkpoint(tmp_path, recipe, cls, saving, changes):
    whole, rates = fit(tmp_path, recipe, saving(tmp_path / "kept"), cls=cls, **changes)
    assert len(set(map(tuple, rates[WARM_UP["for"] :]))) > 1
    files = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert len(files) >= 3
    callbacks = [saving(tmp_path / "kept")] if "enable_checkpointing" in changes else []
    for file in files:
        module, rest = fit(tmp_path, recipe, *callbacks, cls=cls, ckpt_path=file, **changes)
        assert rest == rates[torch.load(file, weights_only=True)["global_step"] :], file.name
        assert same_weights(module.backbone, whole.backbone), file.name


@pytest.mark.parametrize("stop", [EPOCH - 2, EPOCH])
def test_what_a_checkpoint_cannot_hold_is_told(tmp_path, stop):
    saving = AfterUpdates(tmp_path / "kept")
    fit(tmp_path, RECIPE, saving, cls=AtTheEnd)
    file = tmp_path / "kept" / f"{stop:02d}.ckpt"
    with pytest.warns(UserWarning, match="does not hold what that had logged of loss"):
        fit(tmp_path, RECIPE, cls=AtTheEnd, ckpt_path=file)


def test_what_never_came_is_told_at_the_end(tmp_path):
    by_validation = {**FOLLOWING, "monitor": "val_loss", "of_training": False}
    with pytest.warns(UserWarning, match=r"told of no validation: .* has changed nothing"):
        fit(tmp_path, recipe_of(by_validation), check_val_every_n_epoch=9)


class ByHand(Reporting):
    """Builds a recipe's scheduler by itself, or a schedule alone."""

    alone = False

    def configure_optimizers(self):
        if self.alone:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
            return [optimizer], [scheduler_config(self, optimizer, RECIPE["schedule"])]
        optimizer, scheduler = Recipe.load(RECIPE).build(self, Horizon(4 * EPOCH, EPOCH))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Alone(ByHand):
    alone = True


@pytest.mark.parametrize(("cls", "callbacks"), [(ByHand, [MetricCallback]), (Alone, [])])
def test_a_schedule_that_a_module_builds_itself(tmp_path, cls, callbacks):
    _, rates = fit(tmp_path, RECIPE, *(make() for make in callbacks), cls=cls, max_epochs=4)
    assert halved(rates)
