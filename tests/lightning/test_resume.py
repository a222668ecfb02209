"""A fit that goes on from any checkpoint of it is the uninterrupted one."""

from contextlib import nullcontext

import pytest
import torch
from support.labels import label
from support.lightning_package import Callback, ModelCheckpoint
from support.lightning_runs import (
    COSINE,
    EPOCH,
    FOLLOWING,
    PLATEAU,
    STEPS,
    WARM_UP,
    Resumable,
    Tiny,
    batches,
    fit,
    plain_rates,
    recipe_of,
    trainer_of,
)
from support.tensors import same_weights

from optimplug.callbacks.lightning import SchedulerCallback
from optimplug.optim.lr_scheduler import ReduceLROnPlateau

EPOCHS = recipe_of(WARM_UP, {"name": "StepLR", "step_size": 1, "gamma": 0.5, "every": "epoch"})
VALIDATIONS = recipe_of(
    WARM_UP, {"name": "StepLR", "step_size": 1, "gamma": 0.5, "every": "validation"}
)
MIXED = recipe_of(
    {"together": [EPOCHS["schedule"][1], PLATEAU], "for": "2 epochs"},
    {"name": "CosineAnnealingLR"},
    groups=[{"match": "head.*", "schedule": VALIDATIONS["schedule"]}],
)
# The end of a plateau is known when it comes, and what follows it starts there.
ONWARD = recipe_of(WARM_UP, {**PLATEAU, "for": 8}, {**COSINE, "floor": 0.01, "from": "previous"})


SEVERAL = recipe_of(
    WARM_UP,
    COSINE,
    optimizer={"name": "AdamW", "lr": 0.1, "max_grad_norm": 0.5},
    groups=[{"match": "head.*", "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9}}],
)


class Saving(Callback):
    def __init__(self, folder):
        self.folder = folder

    def save(self, trainer):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:02d}.ckpt")


class AfterUpdates(Saving):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.save(trainer)


class AfterValidations(Saving):
    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.save(trainer)


class AfterEpochs(Saving):
    def on_train_epoch_end(self, trainer, module):
        self.save(trainer)


def by_steps(folder):
    return ModelCheckpoint(folder, "{step:02d}", save_top_k=-1, every_n_train_steps=2)


def by_epochs(folder):
    return ModelCheckpoint(folder, "{step:02d}", save_top_k=-1, save_on_train_epoch_end=True)


def by_metric(folder):
    return ModelCheckpoint(folder, "{step:02d}", save_top_k=-1, monitor="val_loss", mode="max")


CASES = [
    (STEPS, AfterUpdates, 18, {}),
    (STEPS, by_steps, 9, {"enable_checkpointing": True}),
    (SEVERAL, AfterUpdates, 18, {}),
    (EPOCHS, AfterUpdates, 18, {}),
    (EPOCHS, AfterEpochs, 3, {}),
    (VALIDATIONS, AfterUpdates, 18, {"val_check_interval": 3}),
    (VALIDATIONS, AfterValidations, 6, {"val_check_interval": 3}),
    (FOLLOWING, AfterUpdates, 18, {}),
    (FOLLOWING, AfterUpdates, 18, {"check_val_every_n_epoch": 2}),
    (FOLLOWING, AfterUpdates, 18, {"val_check_interval": 4, "check_val_every_n_epoch": None}),
    (FOLLOWING, AfterUpdates, 9, {"val_check_interval": 2, "accumulate_grad_batches": 2}),
    (FOLLOWING, AfterValidations, 9, {"val_check_interval": 2, "num_sanity_val_steps": 0}),
    (FOLLOWING, AfterEpochs, 3, {"val_check_interval": 2}),
    (FOLLOWING, by_steps, 9, {"val_check_interval": 2, "enable_checkpointing": True}),
    (FOLLOWING, by_epochs, 3, {"enable_checkpointing": True}),
    (FOLLOWING, by_metric, 3, {"enable_checkpointing": True}),
    (MIXED, AfterUpdates, 18, {"val_check_interval": 3}),
    (ONWARD, AfterUpdates, 18, {"val_check_interval": 3}),
]


# Of many checkpoints one here and there is quick: in the midst of an epoch, at its end, the last.
HERE_AND_THERE = slice(1, None, 8)
FROM = pytest.mark.parametrize(
    "from_these", [HERE_AND_THERE, pytest.param(slice(None), marks=pytest.mark.slow)], ids=label
)


@FROM
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
@pytest.mark.parametrize(("recipe", "saving", "count", "changes"), CASES)
def test_from_every_checkpoint(tmp_path, recipe, saving, count, changes, from_these):
    whole, rates = fit(tmp_path, recipe, saving(tmp_path / "kept"), **changes)
    files = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert len(files) == count
    # Lightning wants its own callbacks again where they are in the checkpoint.
    callbacks = [saving(tmp_path / "kept")] if "enable_checkpointing" in changes else []
    for file in files[from_these]:
        module, rest = fit(tmp_path, recipe, *callbacks, ckpt_path=file, **changes)
        assert rest == rates[torch.load(file, weights_only=True)["global_step"] :], file.name
        assert same_weights(module.backbone, whole.backbone), file.name
        assert same_weights(module.head, whole.head), file.name


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
def test_a_phase_goes_on_from_where_a_plateau_has_come_to(tmp_path):
    _, rates = fit(tmp_path, ONWARD, val_check_interval=3)
    assert rates == plain_rates(ONWARD, validated_after=range(3, 19, 3))
    # Of the two validations of the plateau the first is the best, and the second halves.
    assert rates[12] == [pytest.approx(0.1 / 2)]


class Plain(Tiny):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def following():
    return SchedulerCallback(
        lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, factor=0.5),
        interval="validation",
        monitor="val_loss",
    )


@FROM
def test_a_scheduler_that_a_callback_steps_goes_on_as_well(tmp_path, from_these):
    settings = {"cls": Plain, "val_check_interval": 3}
    whole, rates = fit(tmp_path, None, following(), AfterUpdates(tmp_path / "kept"), **settings)
    assert rates[-1] == [0.1 / 16]
    for file in sorted((tmp_path / "kept").glob("*.ckpt"))[from_these]:
        module, rest = fit(tmp_path, None, following(), ckpt_path=file, **settings)
        assert rest == rates[torch.load(file, weights_only=True)["global_step"] :], file.name
        assert same_weights(module, whole), file.name


@pytest.mark.parametrize(
    ("changes", "validated_after"),
    [
        ({}, (6, 12, 18)),
        ({"num_sanity_val_steps": 0}, (6, 12, 18)),
        ({"val_check_interval": 3}, (3, 6, 9, 12, 15, 18)),
        ({"val_check_interval": 0.5}, (3, 6, 9, 12, 15, 18)),
        ({"check_val_every_n_epoch": 2}, (12,)),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, (4, 8, 12, 16)),
    ],
    ids=label,
)
def test_the_uninterrupted_one_is_the_plain_loop(tmp_path, changes, validated_after):
    module, rates = fit(tmp_path, FOLLOWING, **changes)
    assert rates == plain_rates(FOLLOWING, validated_after=validated_after)
    assert module.validations == len(validated_after)


def test_a_checkpoint_says_that_a_validation_comes_next_only_where_it_does(tmp_path):
    fit(tmp_path, FOLLOWING, AfterUpdates(tmp_path))
    said = [
        torch.load(file, weights_only=True).get("optimplug_validation_due")
        for file in sorted(tmp_path.glob("*.ckpt"))
    ]
    assert [update for update, due in enumerate(said, 1) if due] == [EPOCH, 2 * EPOCH, 3 * EPOCH]


@pytest.mark.parametrize("stateful", [True, False])
def test_only_a_loader_with_a_state_goes_on_in_the_midst_of_an_epoch(tmp_path, stateful):
    """What the README says of Lightning."""

    class Seeing(Tiny):
        def training_step(self, batch):
            seen.append(batch[0].sum().item())
            return super().training_step(batch)

    def run(*callbacks, ckpt_path=None):
        loader = Resumable(batches()) if stateful else batches()
        trainer = trainer_of(tmp_path, *callbacks, max_epochs=1)
        trainer.fit(Seeing(STEPS), loader, batches(), ckpt_path=ckpt_path)

    seen = []
    run(AfterUpdates(tmp_path))
    whole, seen = seen, []
    with nullcontext() if stateful else pytest.warns(UserWarning, match="is not resumable"):
        run(ckpt_path=tmp_path / "04.ckpt")
    assert seen == (whole[4:] if stateful else whole[: EPOCH - 4])
