"""What a run hears of in a fit, and that nothing of it is left afterwards."""

import pytest
import torch
from support.labels import label
from support.lightning_package import Callback, LightningModule, ModelCheckpoint
from support.lightning_runs import (
    COSINE,
    EPOCH,
    FOLLOWING,
    PLATEAU,
    STEPS,
    WARM_UP,
    Rates,
    Resumable,
    Tiny,
    batches,
    fit,
    plain_rates,
    recipe_of,
    trainer_of,
)
from support.rows import each_in_turn
from support.tensors import same_weights
from torch import nn

from optimplug import ArgumentError, Horizon, Recipe, RecipeError
from optimplug.callbacks.lightning import MetricCallback, RecipeCallback, SchedulerCallback
from optimplug.lightning import RecipeMixin, configure_optimizers, horizon_of, scheduler_config

FROZEN = recipe_of(
    WARM_UP,
    COSINE,
    groups=[{"match": "*.bias", "freeze": True}, {"match": "head.*", "freeze": {"until": 3}}],
)
CLIPPED = {**FROZEN, "optimizer": {**FROZEN["optimizer"], "max_grad_norm": 1.0}}


class Manual(Tiny):
    automatic_optimization = False

    def __init__(self, recipe):
        super().__init__(recipe)
        self.automatic_optimization = False

    def training_step(self, batch):
        self.optimizers().zero_grad()
        self.manual_backward(self.loss(batch))
        self.optimizers().step()
        self.lr_schedulers().step()


class ScheduleAlone(Tiny):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return [optimizer], [scheduler_config(self, optimizer, self.recipe["schedule"])]


class TakenOver(LightningModule):
    loss, training_step = Tiny.loss, Tiny.training_step
    validation_step, on_validation_epoch_end = Tiny.validation_step, Tiny.on_validation_epoch_end

    def __init__(self, recipe):
        super().__init__()
        self.backbone, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.register_buffer("validations", torch.zeros(()))

    def configure_optimizers(self):
        raise AssertionError("the recipe takes over")


def footprint(owner):
    """Return the attributes of one object, and how many hooks are in each place for them."""
    hooks = {k: len(v) for k, v in vars(owner).items() if k.endswith("_hooks") and v is not None}
    return set(vars(owner)), hooks


class Raising(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 4:
            raise ZeroDivisionError


WAYS = [
    (Tiny, FROZEN, lambda recipe: []),
    (Tiny, CLIPPED, lambda recipe: []),
    (Tiny, FOLLOWING, lambda recipe: []),
    (Tiny, FOLLOWING, lambda recipe: [MetricCallback()]),
    (Manual, FROZEN, lambda recipe: []),
    (ScheduleAlone, STEPS, lambda recipe: []),
    (TakenOver, CLIPPED, lambda recipe: [RecipeCallback(recipe)]),
]


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
@pytest.mark.parametrize(
    ("cls", "recipe", "more"), WAYS, ids=[f"{way[0].__name__}{i}" for i, way in enumerate(WAYS)]
)
def test_after_a_fit_nothing_of_the_run_is_left(tmp_path, cls, recipe, more, broken):
    module = cls(recipe)
    untouched = cls(recipe)
    trainer_of(tmp_path).validate(untouched, batches(), verbose=False)
    callbacks = [*more(recipe), *([Raising()] if broken else [])]
    trainer = trainer_of(tmp_path, *callbacks)
    listed = list(trainer.callbacks)
    if broken:
        with pytest.raises(ZeroDivisionError):
            trainer.fit(module, batches(), batches())
    else:
        trainer.fit(module, batches(), batches())
    (optimizer,) = trainer.optimizers
    bare = type(optimizer)(list(cls(recipe).parameters()), lr=0.1)
    assert footprint(module) == footprint(untouched)
    assert footprint(optimizer) == footprint(bare)
    assert all(p.requires_grad for p in module.parameters())
    assert trainer.callbacks == listed
    assert "save_checkpoint" not in vars(trainer)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_refused_recipe_leaves_nothing(tmp_path):
    module, untouched = Tiny(FOLLOWING), Tiny(FOLLOWING)
    trainer = trainer_of(tmp_path)
    listed = list(trainer.callbacks)
    with pytest.raises(RecipeError, match="counts validations"):
        trainer.fit(module, batches())  # without validation data
    trainer_of(tmp_path).validate(untouched, batches(), verbose=False)
    assert footprint(module) == footprint(untouched)
    assert trainer.callbacks == listed


class StopAfter(Callback):
    def __init__(self, update):
        self.update = update

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step == self.update


@pytest.mark.parametrize("stop", [EPOCH, 2 * EPOCH])
def test_a_checkpoint_saved_after_the_fit_is_whole(tmp_path, stop):
    trainer = trainer_of(tmp_path, StopAfter(stop))
    trainer.fit(Tiny(CLIPPED), Resumable(batches()), batches())
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    whole, rates = fit(tmp_path, CLIPPED)
    resumed, rest = fit(tmp_path, CLIPPED, ckpt_path=tmp_path / "stopped.ckpt")
    assert rest == rates[stop:]
    assert same_weights(resumed.head, whole.head)
    assert same_weights(resumed.backbone, whole.backbone)


def test_a_second_fit_is_a_run_of_its_own(tmp_path):
    module, rates = Tiny(FROZEN), Rates()
    trainer = trainer_of(tmp_path, rates)
    trainer.fit(module, batches(), batches())
    first = module.lr_schedulers()
    trainer.fit_loop.max_epochs = 5
    rates.seen.clear()
    trainer.fit(module, batches(), batches())
    assert module.lr_schedulers() is not first
    assert rates.seen == plain_rates(FROZEN, 2 * EPOCH)
    assert [p.requires_grad for p in module.parameters()] == [True] * 4


def test_two_runs_of_one_module_do_not_hear_each_other(tmp_path):
    class Pair(RecipeMixin, LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.parts = nn.ModuleList(nn.Linear(3, 1) for _ in range(2))

        def configure_optimizers(self):
            both = []
            for i, name in enumerate(("linear", "cosine")):
                rule = {"match": f"parts.{1 - i}.*", "freeze": True}
                recipe = {"optimizer": {"name": "SGD", "lr": 1.0}, "groups": [rule]}
                for p in self.parameters():
                    p.requires_grad_(True)
                both.append(configure_optimizers(self, {**recipe, "schedule": name}))
            for p in self.parameters():
                p.requires_grad_(True)
            return [one for o, _ in both for one in o], [one for _, c in both for one in c]

        def training_step(self, batch):
            for optimizer, scheduler, part in zip(
                self.optimizers(), self.lr_schedulers(), self.parts, strict=True
            ):
                optimizer.zero_grad()
                self.manual_backward(part(batch[0]).square().mean())
                optimizer.step()
                scheduler.step()

    rates, module = Rates(), Pair()
    trainer = trainer_of(tmp_path, rates, max_epochs=2)
    trainer.fit(module, batches())
    for i, name in enumerate(("linear", "cosine")):
        recipe = {"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": name}
        assert rates.seen[i::2] == plain_rates(recipe, 2 * EPOCH)
    assert not {"lr_scheduler_step", "configure_gradient_clipping"} & set(vars(module))
    assert not any("add_param_group" in vars(optimizer) for optimizer in trainer.optimizers)


MODES = {
    "optimizer": {"name": "support.averaged.Averaged", "lr": 0.1},
    "schedule": FOLLOWING["schedule"],
}


class Seeing(Callback):
    """Which weights are in place while the module validates."""

    def __init__(self):
        self.modes = []

    def on_validation_batch_start(self, trainer, module, *args):
        if not trainer.sanity_checking:
            (group,) = trainer.optimizers[0].param_groups
            self.modes.append(group["train_mode"])


def test_what_is_validated_and_saved_are_the_weights_to_validate(tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", "{step:02d}", save_top_k=-1, every_n_train_steps=1)
    seeing = Seeing()
    module, _ = fit(tmp_path, MODES, keep, seeing, enable_checkpointing=True)
    assert seeing.modes == [False] * len(batches()) * 3
    model, run = hand_trained(3 * EPOCH)
    assert same_weights(module.backbone, model.backbone)  # after the fit, too
    assert run.optimizer.param_groups[0]["train_mode"] is False
    for step in (1, EPOCH, 2 * EPOCH + 1):
        saved = torch.load(tmp_path / "kept" / f"step={step:02d}.ckpt", weights_only=True)
        model, _ = hand_trained(step)
        assert torch.equal(saved["state_dict"]["head.weight"], model.head.weight)


def hand_trained(updates):
    model, worse = Tiny(MODES), 0.0
    run = Recipe.load(MODES).start(model, Horizon(3 * EPOCH, EPOCH))
    for update in range(updates):
        model.loss(list(batches())[update % EPOCH]).backward()
        run.step()
        if (update + 1) % EPOCH == 0:
            run.validated({"val_loss": worse})
            worse += 1
    run.eval()
    return model, run


FREE = {"optimizer": {"name": "ScheduleFreeAdamW", "lr": 0.1, "warmup_steps": 4}}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
@pytest.mark.parametrize(
    ("step", "recipe"),
    each_in_turn(
        [1, 5, 6, 7, 12], [MODES, FREE, {**FREE, "schedule": FOLLOWING["schedule"]}], least=7
    ),
    ids=label,
)
def test_a_run_with_two_sets_of_weights_resumes(tmp_path, step, recipe):
    def keep():
        return ModelCheckpoint(
            tmp_path / "kept", "{step:02d}", save_top_k=-1, every_n_train_steps=1
        )

    whole, rates = fit(tmp_path, recipe, keep(), enable_checkpointing=True)
    file = tmp_path / "kept" / f"step={step:02d}.ckpt"
    resumed, rest = fit(tmp_path, recipe, keep(), ckpt_path=file, enable_checkpointing=True)
    assert rest == rates[step:]
    # A validation that no schedule counts is not made up for, so what counts them is behind.
    assert same_weights(resumed.backbone, whole.backbone)
    assert same_weights(resumed.head, whole.head)


def test_updates_before_the_run_are_none_of_its(tmp_path):
    class Early(Callback):
        def on_fit_start(self, trainer, module):
            trainer.optimizers[0].step()

    class Skipped(Tiny):
        def optimizer_step(self, epoch, batch_idx, optimizer, closure):
            if batch_idx:
                super().optimizer_step(epoch, batch_idx, optimizer, closure)
            else:
                closure()

    module, _ = fit(tmp_path, STEPS, Early(), cls=Skipped)
    assert module.lr_schedulers().last_epoch == 3 * (EPOCH - 1)


def test_a_callbacks_scheduler_listens_no_longer_after_the_fit(tmp_path):
    class Plain(Tiny):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    callback = SchedulerCallback(lambda o: torch.optim.lr_scheduler.StepLR(o, 2))
    trainer = trainer_of(tmp_path, callback)
    trainer.fit(Plain(None), batches(), batches())
    hooks = trainer.optimizers[0]._optimizer_step_post_hooks
    assert not hooks


def test_the_length_is_asked_without_starting_a_run(tmp_path):
    class Asking(Tiny):
        def configure_optimizers(self):
            assert horizon_of(self.trainer).total_steps == 3 * EPOCH
            return super().configure_optimizers()

    _, rates = fit(tmp_path, STEPS, cls=Asking)
    assert rates == plain_rates(STEPS)


def test_a_callback_tells_a_scheduler_that_was_built_by_hand(tmp_path):
    class ByHand(Tiny):
        def configure_optimizers(self):
            optimizer, scheduler = Recipe.load(self.recipe).build(self, horizon_of(self.trainer))
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    _, rates = fit(tmp_path, FOLLOWING, MetricCallback(), cls=ByHand)
    assert rates == plain_rates(FOLLOWING, validated_after=(6, 12))


class SaveEvery(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *args):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:02d}.ckpt")


@pytest.mark.parametrize("step", [6, 7, 12])
def test_such_a_scheduler_resumes_just_before_a_validation_too(tmp_path, step):
    class ByHand(Tiny):
        def configure_optimizers(self):
            optimizer, scheduler = Recipe.load(self.recipe).build(self, horizon_of(self.trainer))
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    both = (MetricCallback(), SaveEvery(tmp_path))
    whole, rates = fit(tmp_path, FOLLOWING, *both, cls=ByHand)
    file = tmp_path / f"{step:02d}.ckpt"
    resumed, rest = fit(tmp_path, FOLLOWING, MetricCallback(), cls=ByHand, ckpt_path=file)
    assert rest == rates[step:]
    assert same_weights(resumed, whole)


@pytest.mark.parametrize("monitor", ["loss", "eval_loss", "val_loss"])
def test_a_metric_may_have_the_name_of_another_runtime(tmp_path, monitor):
    _, expected = fit(tmp_path, FOLLOWING)
    _, rates = fit(tmp_path, recipe_of(WARM_UP, {**PLATEAU, "monitor": monitor}))
    assert rates == expected
    assert len({rate for (rate,) in rates}) > 5


def test_a_metric_that_only_a_late_phase_follows_is_missed_at_the_first_validation(tmp_path):
    class Counting(Tiny):
        def on_train_start(self):
            type(self).updates = 0

        def optimizer_step(self, *args, **kwargs):
            type(self).updates += 1
            super().optimizer_step(*args, **kwargs)

    late = {**PLATEAU, "monitor": "val_f1"}
    recipe = recipe_of(WARM_UP, {**PLATEAU, "for": 2 * EPOCH}, late)
    with pytest.raises(ArgumentError, match=r"'val_f1' is missing; there are: val_loss$"):
        fit(tmp_path, recipe, cls=Counting)
    assert Counting.updates == EPOCH


class LogsLossInTraining(Tiny):
    """Whose training logs a loss that gets worse, and its validation another that gets better."""

    validates = "val_loss"

    def training_step(self, batch):
        self.log("loss", torch.tensor(float(self.global_step)))
        return super().training_step(batch)

    def validation_step(self, batch):
        self.log(self.validates, -self.validations)


@pytest.mark.parametrize("monitor", ["loss", "eval_loss", "val_loss"])
def test_a_plateau_follows_the_validation_and_not_the_training(tmp_path, monitor):
    recipe = recipe_of({**PLATEAU, "monitor": monitor})
    _, rates = fit(tmp_path, recipe, cls=LogsLossInTraining)
    assert rates == [[0.1]] * 3 * EPOCH


@pytest.mark.parametrize("monitor", ["loss", "eval_loss"])
def test_a_loss_of_the_training_is_none_of_the_validation(tmp_path, monitor):
    class Other(LogsLossInTraining):
        validates = "val_mae"

    message = f"'{monitor}' is missing; there are: val_mae; 'loss' is of the training, or of an ear"
    with pytest.raises(ArgumentError, match=message):
        fit(tmp_path, recipe_of({**PLATEAU, "monitor": monitor}), cls=Other)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_metric_of_an_earlier_validation_is_not_told_again(tmp_path, by_hand):
    class Once(Tiny):
        def validation_step(self, batch):
            self.log("val_mae" if self.validations else "val_loss", torch.tensor(1.0))

        def configure_optimizers(self):
            if not by_hand:
                return super().configure_optimizers()
            optimizer, scheduler = Recipe.load(self.recipe).build(self, horizon_of(self.trainer))
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    callbacks = [MetricCallback()] if by_hand else []
    message = "'val_loss' is missing; there are: val_mae; 'val_loss' is of the training, or of an"
    with pytest.raises(ArgumentError, match=message):
        fit(tmp_path, FOLLOWING, *callbacks, cls=Once)


def test_a_metric_of_one_of_several_data_loaders_is_followed(tmp_path):
    class Several(Tiny):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            self.log("val_loss", self.validations.clone())

    rates, module = (
        Rates(),
        Several(recipe_of(WARM_UP, {**PLATEAU, "monitor": "val_loss/dataloader_idx_0"})),
    )
    trainer_of(tmp_path, rates).fit(module, batches(), [batches(), batches()])
    _, expected = fit(tmp_path, FOLLOWING)
    assert rates.seen == expected
