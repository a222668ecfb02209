import pytest
import torch
from support.bert import collate, tiny_bert, tiny_rows
from support.labels import label
from support.lightning_package import (
    Callback,
    CSVLogger,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    LightningModule,
    ModelCheckpoint,
)
from support.lightning_runs import Resumable, trainer_of
from support.tensors import same_weights
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from optimplug import ArgumentError, Horizon, Recipe, RecipeError
from optimplug.callbacks.lightning import LearningRateTrace
from optimplug.callbacks.trace import LearningRateTrace as PlainTrace
from optimplug.lightning import RecipeMixin, configure_optimizers, horizon_of

RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 1e-2, "max_grad_norm": 0.5},
    "groups": [{"layer_decay": 0.8}, {"match": "classifier.*", "lr_scale": 2}],
    "schedule": [
        {"name": "LinearLR", "start_factor": 0.1, "for": "1 epoch"},
        {"name": "CosineAnnealingLR", "floor": 0.1},
    ],
}
OWN_NAMES = {**RECIPE, "groups": [{"match": "model.classifier.*", "lr_scale": 2}]}
UNCLIPPED = {**RECIPE, "optimizer": {"name": "AdamW", "lr": 1e-2}}


class Base(LightningModule):
    def __init__(self, recipe=RECIPE):
        super().__init__()
        self.model = tiny_bert()
        self.recipe = recipe

    def training_step(self, batch):
        return self.model(**batch).loss


class Module(RecipeMixin, Base):
    pass


class ByFunction(Base):
    def configure_optimizers(self):
        return configure_optimizers(self, self.recipe)


def loader():
    return DataLoader(tiny_rows(), 4, collate_fn=collate)


def plain_loop(recipe, epochs=3, accumulate=1, wrapper=None):
    model = tiny_bert()
    batches = list(loader())
    windows = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
    horizon = Horizon(total_steps=epochs * len(windows), steps_per_epoch=len(windows))
    optimizer, scheduler = Recipe.load(recipe).build(wrapper(model) if wrapper else model, horizon)
    trace = PlainTrace()
    trace.attach(optimizer)
    for _ in range(epochs):
        for window in windows:
            for batch in window:
                (model(**batch).loss / accumulate).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model, trace.rates


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("cls", [Module, ByFunction])
@pytest.mark.parametrize("recipe", [RECIPE, UNCLIPPED], ids=["clipped", "unclipped"])
def test_fit_is_the_plain_loop_bit_for_bit(tmp_path, cls, recipe, accumulate):
    trace = LearningRateTrace()
    module = cls(recipe)
    trainer_of(tmp_path, trace, accumulate_grad_batches=accumulate).fit(module, loader())
    model, rates = plain_loop(recipe, accumulate=accumulate)
    assert same_weights(module.model, model)
    assert trace.rates == rates


def test_a_recipe_in_the_modules_own_names_works_as_well(tmp_path):
    trace = LearningRateTrace()
    module = Module(OWN_NAMES)
    trainer_of(tmp_path, trace).fit(module, loader())
    model, rates = plain_loop(OWN_NAMES, wrapper=lambda model: nn.ModuleDict({"model": model}))
    assert same_weights(module.model, model)
    assert trace.rates == rates


def test_names_that_fit_neither_way_are_reported_in_the_models(tmp_path):
    recipe = {**RECIPE, "groups": [{"match": "clasifier.*", "lr_scale": 2}]}
    with pytest.raises(RecipeError, match=r"did you mean 'classifier\.\*'"):
        trainer_of(tmp_path).fit(Module(recipe), loader())


def test_a_module_of_several_parts_is_named_whole(tmp_path):
    class Parts(Module):
        def __init__(self):
            super().__init__(
                {"optimizer": {"name": "AdamW"}, "groups": [{"match": "head.*", "lr": 1.0}]}
            )
            self.head = nn.Linear(3, 3)

        def training_step(self, batch):
            return self.head(self.model(**batch).logits).sum()

    trainer = trainer_of(tmp_path, max_steps=1)
    trainer.fit(Parts(), loader())
    names = [name for group in trainer.optimizers[0].param_groups for name in group["param_names"]]
    assert "head.weight" in names
    assert "model.classifier.weight" in names


class StopAfter(Callback):
    def __init__(self, step, file):
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)
            trainer.should_stop = True


@pytest.mark.parametrize("stop", [2, 6, 11])
def test_a_run_resumed_from_a_checkpoint_is_the_uninterrupted_one(tmp_path, stop):
    file = tmp_path / "stopped.ckpt"
    whole = LearningRateTrace()
    uninterrupted = Module()
    trainer_of(tmp_path, whole).fit(uninterrupted, Resumable(loader()))
    trainer_of(tmp_path, StopAfter(stop, file)).fit(Module(), Resumable(loader()))
    rest = LearningRateTrace()
    resumed = Module()
    trainer_of(tmp_path, rest).fit(resumed, Resumable(loader()), ckpt_path=file)
    assert same_weights(resumed.model, uninterrupted.model)
    assert rest.rates == {name: rates[stop:] for name, rates in whole.rates.items()}


def test_lightnings_monitor_logs_every_group_by_name(tmp_path):
    logger = CSVLogger(tmp_path)
    module = Module()
    trainer = trainer_of(tmp_path, LearningRateMonitor("step"), logger=logger, log_every_n_steps=1)
    trainer.fit(module, loader())
    names = {group["name"] for group in trainer.optimizers[0].param_groups}
    header = set(
        (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().split("\n")[0].split(",")
    )
    assert {f"lr-AdamW/{name}" for name in names} <= header


@pytest.mark.parametrize("recipe", [RECIPE, UNCLIPPED], ids=["clipped", "unclipped"])
@pytest.mark.parametrize("cls", [Module, ByFunction])
def test_the_trainers_own_clipping_does_not_apply_and_that_is_said(tmp_path, cls, recipe):
    module = cls(recipe)
    with pytest.warns(UserWarning, match=r"gradient_clip_val=0\.1\) does not apply"):
        trainer_of(tmp_path, gradient_clip_val=0.1).fit(module, loader())
    assert same_weights(module.model, plain_loop(recipe)[0])


def test_clipping_by_the_trainer_that_means_the_same_is_nothing_to_say(tmp_path):
    recipe = {**RECIPE, "optimizer": {**RECIPE["optimizer"], "max_grad_norm": 0.1}}
    for algorithm in (None, "norm"):  # a warning would be an error here
        trainer_of(
            tmp_path, gradient_clip_val=0.1, gradient_clip_algorithm=algorithm, max_epochs=1
        ).fit(Module(recipe), loader())
    by_value = trainer_of(
        tmp_path, gradient_clip_val=0.1, gradient_clip_algorithm="value", max_epochs=1
    )
    with pytest.warns(UserWarning, match=r"gradient_clip_val=0\.1\) does not apply"):
        by_value.fit(Module(recipe), loader())


def test_no_clipping_by_the_trainer_is_nothing_to_say(tmp_path):
    module = Module(UNCLIPPED)
    trainer_of(tmp_path, gradient_clip_val=0.0).fit(module, loader())
    assert same_weights(module.model, plain_loop(UNCLIPPED)[0])


class OwnClipping(ByFunction):
    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ):
        self.clip_gradients(optimizer, 0.01, "norm")


def test_a_module_that_clips_by_itself_and_a_recipe_never_both_clip(tmp_path):
    with pytest.raises(
        RecipeError, match=r"max_grad_norm: OwnClipping\.configure_gradient_clipping clips as well"
    ):
        trainer_of(tmp_path).fit(OwnClipping(), loader())
    module = OwnClipping(UNCLIPPED)
    trainer_of(tmp_path).fit(module, loader())
    assert not same_weights(module.model, plain_loop(UNCLIPPED)[0])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_epochs": 3}, Horizon(18, 6)),
        ({"max_epochs": 3, "accumulate_grad_batches": 4}, Horizon(6, 2)),
        ({"max_epochs": 3, "max_steps": 7}, Horizon(7, 6)),
        ({"max_epochs": 3, "limit_train_batches": 5}, Horizon(15, 5)),
        ({"max_epochs": -1, "max_steps": 7}, Horizon(7, 6)),
    ],
    ids=label,
)
def test_the_horizon_is_the_trainers(tmp_path, changes, expected):
    found = []

    class Asking(Module):
        def configure_optimizers(self):
            found.append(horizon_of(self.trainer))
            return super().configure_optimizers()

    trainer = trainer_of(tmp_path, **changes)
    trainer.fit(Asking(UNCLIPPED), loader())
    assert found == [expected]
    assert trainer.global_step == expected.total_steps


@pytest.mark.parametrize(
    ("scheduling", "changes", "expected"),
    [
        ({0: 1, 2: 3}, {"max_epochs": 4}, Horizon(16)),
        ({0: 3}, {"max_epochs": 4}, Horizon(8, 2)),
        ({0: 1, 2: 3}, {"max_epochs": 4, "max_steps": 13}, Horizon(13)),
    ],
    ids=label,
)
def test_the_horizon_knows_accumulation_that_changes_by_epoch(
    tmp_path, scheduling, changes, expected
):
    found = []

    class Asking(Module):
        def configure_optimizers(self):
            found.append(horizon_of(self.trainer))
            return super().configure_optimizers()

    recipe = {**UNCLIPPED, "schedule": [{"name": "CosineAnnealingLR"}]}
    trainer = trainer_of(tmp_path, GradientAccumulationScheduler(scheduling), **changes)
    trainer.fit(Asking(recipe), loader())
    assert found == [expected]
    assert trainer.global_step == expected.total_steps


class Endless(IterableDataset):
    def __iter__(self):
        return iter(tiny_rows())


def test_data_without_a_length_says_what_is_missing(tmp_path):
    data = DataLoader(Endless(), 4, collate_fn=collate)
    with pytest.raises(RecipeError, match=r"Horizon\.(steps_per_epoch|total_steps)"):
        trainer_of(tmp_path).fit(Module(), data)


def test_a_module_without_a_recipe_is_told_so(tmp_path):
    module = Module()
    del module.recipe
    with pytest.raises(RecipeError, match=r"Module must set self\.recipe"):
        trainer_of(tmp_path).fit(module, loader())


def test_the_mixin_needs_a_lightning_module():
    with pytest.raises(TypeError, match="must derive from LightningModule"):
        RecipeMixin().configure_optimizers()


def test_an_ordinary_checkpoint_loads_with_weights_only(tmp_path):
    checkpoint = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1)
    trainer_of(tmp_path, checkpoint, enable_checkpointing=True, max_epochs=1).fit(
        Module(), loader()
    )
    (file,) = tmp_path.glob("*.ckpt")
    assert "lr_schedulers" in torch.load(file, weights_only=True)


PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "val_loss", "patience": 0, "factor": 0.5}
FOLLOWING = {**RECIPE, "schedule": [{**RECIPE["schedule"][0], "for": 4}, PLATEAU]}


class Validated(Module):
    """Its metric gets worse with every validation, whoever asks for it."""

    logged = "val_loss"

    def __init__(self, recipe):
        super().__init__(recipe)
        self.register_buffer("asked", torch.zeros(()))

    def validation_step(self, batch):
        self.log(self.logged, self.asked.clone())

    def on_validation_epoch_end(self):
        self.asked += not self.trainer.sanity_checking


def validated(tmp_path, *callbacks, module=None, ckpt_path=None, **changes):
    trace = LearningRateTrace()
    module = module or Validated(FOLLOWING)
    trainer = trainer_of(tmp_path, trace, *callbacks, **changes)
    trainer.fit(module, Resumable(loader()), loader(), ckpt_path=ckpt_path)
    return module, next(iter(trace.rates.values())), trainer


def test_a_plateau_takes_one_step_for_each_validation(tmp_path):
    _, rates, _ = validated(tmp_path, val_check_interval=3)
    own = rates[5]
    # Six updates an epoch, a validation after every third; the first metric is that of update 6.
    assert rates[4:] == [own] * 5 + [own / 2] * 3 + [own / 4] * 3 + [own / 8] * 3


def test_validating_outside_fit_is_no_step(tmp_path):
    module, _, trainer = validated(tmp_path)
    held = [group["lr"] for group in module.optimizers().param_groups]
    trainer.validate(module, loader(), verbose=False)
    assert [group["lr"] for group in module.optimizers().param_groups] == held


@pytest.mark.parametrize(
    "stop", [6, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (3, 8, 12))]
)
def test_a_plateau_resumes_where_it_was(tmp_path, stop):
    whole, rates, _ = validated(tmp_path, val_check_interval=3)
    saver = SaveAt(tmp_path / "stop.ckpt", stop)
    validated(tmp_path, saver, val_check_interval=3)
    module, rest, _ = validated(tmp_path, ckpt_path=tmp_path / "stop.ckpt", val_check_interval=3)
    assert rest == rates[stop:]
    assert same_weights(whole.model, module.model)


class SaveAt(Callback):
    """Save after an update: after its validation, if it has one."""

    def __init__(self, path, update):
        self.path, self.update = path, update

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step == self.update and self.update % 3:
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer, module):
        if trainer.global_step == self.update:
            trainer.save_checkpoint(self.path)


def test_a_metric_that_is_not_logged_is_an_error_that_lists_those_that_are(tmp_path):
    class Other(Validated):
        logged = "other"

    with pytest.raises(ArgumentError, match="'val_loss' is missing; there are: other"):
        validated(tmp_path, module=Other(FOLLOWING))


def test_a_run_without_validations_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="schedule: counts validations or follows a metric"):
        trainer_of(tmp_path).fit(Module(FOLLOWING), loader())
