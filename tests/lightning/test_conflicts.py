"""Recipes beside what Lightning brings of its own."""

import pytest
import torch
from packaging.version import Version
from support.labels import label
from support.lightning_package import (
    PACKAGE,
    BackboneFinetuning,
    BatchSizeFinder,
    CSVLogger,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    LightningModule,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Tuner,
)
from support.lightning_runs import (
    COSINE,
    EPOCH,
    FOLLOWING,
    STEPS,
    WARM_UP,
    Rates,
    Tiny,
    batches,
    fit,
    plain_rates,
    recipe_of,
    trainer_of,
)
from support.tensors import same_weights
from torch import nn

from optimplug import RecipeError
from optimplug.lightning import RecipeMixin, horizon_of, scheduler_config

TWO_RATES = recipe_of(WARM_UP, COSINE, groups=[{"match": "head.*", "lr_scale": 2}])


def finetuning(**changes):
    # Its own growth by epoch is left out, so that the schedule alone is seen.
    settings = {"unfreeze_backbone_at_epoch": 1, "lambda_func": lambda epoch: 1.0}
    return BackboneFinetuning(**{**settings, "should_align": False, **changes})


class Thawing(BackboneFinetuning):
    """Lightning's own leaves the backbone frozen where a run goes on in the midst of an epoch."""

    def on_train_start(self, trainer, module):
        if len(trainer.optimizers[0].param_groups) > 1:
            self.make_trainable(module.backbone)


class OwnOptimizer(Tiny):
    """Of its parameters without names, or with them."""

    named = False

    def configure_optimizers(self):
        params = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        params = params if self.named else [p for _, p in params]
        optimizer = torch.optim.AdamW(params, lr=0.1)
        return [optimizer], [scheduler_config(self, optimizer, self.recipe["schedule"])]


class OwnNamed(OwnOptimizer):
    named = True


class TestBackboneFinetuning:
    @pytest.mark.parametrize("cls", [Tiny, OwnOptimizer, OwnNamed])
    @pytest.mark.parametrize("recipe", [STEPS, FOLLOWING], ids=["cosine", "plateau"])
    def test_an_unfrozen_backbone_follows_the_schedule(self, tmp_path, recipe, cls):
        module, rates = fit(tmp_path, recipe, finetuning(), cls=cls)
        after = (EPOCH, 2 * EPOCH, 3 * EPOCH)
        head = [rate for (rate,) in plain_rates(recipe, validated_after=after)]
        assert [rate[0] for rate in rates] == head
        assert all(len(rate) == 1 for rate in rates[:EPOCH])
        ratio = [backbone / head for head, backbone in rates[EPOCH : 2 * EPOCH]]
        assert ratio == pytest.approx([0.1] * EPOCH)
        # The callback begins its second epoch with the rate that it began the first with.
        ratio = [backbone / head for head, backbone in rates[2 * EPOCH :]]
        assert ratio == pytest.approx([ratio[0]] * EPOCH)
        assert not same_weights(module.backbone, Tiny(recipe).backbone)

    def test_its_group_has_the_names_of_its_parameters(self, tmp_path):
        trainer = trainer_of(tmp_path, finetuning())
        trainer.fit(Tiny(STEPS), batches(), batches())
        assert trainer.optimizers[0].param_groups[1]["param_names"] == [
            "backbone.weight",
            "backbone.bias",
        ]

    @pytest.mark.parametrize("recipe", [STEPS, FOLLOWING], ids=["cosine", "plateau"])
    def test_it_resumes_after_unfreezing(self, tmp_path, recipe):
        def checkpoints():
            return ModelCheckpoint(
                tmp_path / "kept", "{step}", save_top_k=-1, every_n_train_steps=1
            )

        def run(ckpt_path=None):
            both = (Thawing(1, lambda epoch: 1.0, should_align=False), checkpoints())
            return fit(tmp_path, recipe, *both, ckpt_path=ckpt_path, enable_checkpointing=True)

        whole, rates = run()
        for step in (4, 8, 13):
            with pytest.warns(UserWarning, match="is not empty"):
                module, rest = run(tmp_path / "kept" / f"step={step}.ckpt")
            assert rest == rates[step:]
            assert same_weights(module.backbone, whole.backbone)
            assert same_weights(module.head, whole.head)


def averaging(**changes):
    return StochasticWeightAveraging(
        0.05, **{"swa_epoch_start": 2, "annealing_epochs": 1, **changes}
    )


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
class TestStochasticWeightAveraging:
    def test_the_recipe_rules_until_it_begins(self, tmp_path):
        _, rates = fit(tmp_path, TWO_RATES, averaging())
        assert rates[: EPOCH + 1] == plain_rates(TWO_RATES)[: EPOCH + 1]
        assert rates[2 * EPOCH :] == [[0.05, 0.05]] * EPOCH

    def test_it_resumes_on_either_side(self, tmp_path):
        def run(ckpt_path=None):
            keep = ModelCheckpoint(
                tmp_path / "kept", "{step}", save_top_k=-1, every_n_train_steps=1
            )
            both = (averaging(), keep)
            return fit(tmp_path, TWO_RATES, *both, ckpt_path=ckpt_path, enable_checkpointing=True)

        whole, rates = run()
        for step in (3, 13, 16):  # between them, SWALR itself does not go on where it was
            with pytest.warns(UserWarning, match="is not empty"):
                module, rest = run(tmp_path / "kept" / f"step={step}.ckpt")
            assert rest == rates[step:], step
            assert same_weights(module.backbone, whole.backbone)

    def test_it_would_keep_frozen_groups_frozen(self, tmp_path):
        rule = {"match": "backbone.*", "freeze": {"until": 3}}
        with pytest.raises(RecipeError, match="groups: freeze until a time, but Stochastic"):
            fit(tmp_path, recipe_of(COSINE, groups=[rule]), averaging())


class WithoutRecipe(Tiny):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class TestLearningRateFinder:
    @pytest.mark.skipif(
        Version(PACKAGE.__version__) < Version("2.5.3"),
        reason="there, Lightning leaves out the epoch in which its callback has swept the rates",
    )
    @pytest.mark.parametrize("recipe", [TWO_RATES, FOLLOWING], ids=["steps", "plateau"])
    def test_the_callback_leaves_the_run_as_it_is(self, tmp_path, recipe):
        finder = LearningRateFinder(num_training_steps=20, update_attr=False)
        found, rates = fit(tmp_path, recipe, finder)
        whole, expected = fit(tmp_path, recipe)
        assert finder.optimal_lr.suggestion() > 0
        assert rates[-18:] == expected
        assert same_weights(found, whole)

    def test_the_callback_costs_a_run_what_it_costs_without_a_recipe(self, tmp_path):
        updates = []
        for cls in (Tiny, WithoutRecipe):
            trainer = trainer_of(
                tmp_path, LearningRateFinder(num_training_steps=20, update_attr=False)
            )
            trainer.fit(cls(STEPS), batches(), batches())
            updates.append(trainer.global_step)
        assert updates[0] == updates[1] > EPOCH

    @pytest.mark.parametrize("recipe", [TWO_RATES, FOLLOWING], ids=["steps", "plateau"])
    def test_the_tuner_leaves_the_run_as_it_is(self, tmp_path, recipe):
        rates, module = Rates(), Tiny(recipe)
        trainer = trainer_of(tmp_path, rates)
        data = batches()
        found = Tuner(trainer).lr_find(module, data, data, num_training=20, update_attr=False)
        assert found.suggestion() > 0
        trainer.fit(module, data, data)
        whole, expected = fit(tmp_path, recipe)
        assert rates.seen[-18:] == expected
        assert same_weights(module, whole)

    def test_neither_sets_a_rate_behind_the_recipe(self, tmp_path):
        module = Tiny(STEPS)
        module.lr = 0.3
        trainer = trainer_of(tmp_path)
        says = r"optimizer\.lr: is the recipe's, .* give it update_attr=False"
        with pytest.raises(RecipeError, match=says):
            Tuner(trainer).lr_find(module, batches(), batches(), num_training=20)
        with pytest.raises(RecipeError, match=says):
            trainer_of(tmp_path, LearningRateFinder()).fit(module, batches(), batches())
        assert module.lr == 0.3


class Sized(Tiny):
    batch_size = 2

    def train_dataloader(self):
        return batches(self.batch_size)

    val_dataloader = train_dataloader


class TestBatchSizeFinder:
    def test_the_tuner_comes_before_the_schedule(self, tmp_path):
        rates, module = Rates(), Sized(STEPS)
        trainer = trainer_of(tmp_path, rates)
        Tuner(trainer).scale_batch_size(module, steps_per_trial=1, max_trials=2, init_val=2)
        rates.seen.clear()
        trainer.fit(module)
        updates = 3 * 24 // module.batch_size
        assert module.batch_size > 2
        assert rates.seen == plain_rates(STEPS, updates, updates // 3)

    def test_the_callback_comes_too_late(self, tmp_path):
        with pytest.raises(RecipeError, match="schedule: is laid out before BatchSizeFinder"):
            trainer_of(tmp_path, BatchSizeFinder()).fit(Sized(STEPS))


class Manual(Tiny):
    def __init__(self, recipe):
        super().__init__(recipe)
        self.automatic_optimization = False

    def training_step(self, batch):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        self.advance()

    def advance(self):
        self.lr_schedulers().step()


class Unstepped(Manual):
    def advance(self):
        pass


class SteppedByEpoch(Unstepped):
    def on_train_epoch_end(self):
        self.lr_schedulers().step()


class SteppedAfterTheBatch(Unstepped):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.lr_schedulers().step()


class Pair(LightningModule):
    """Two optimizers, each with a schedule, of which one may be forgotten."""

    def __init__(self, forgotten=None):
        super().__init__()
        self.automatic_optimization = False
        self.forgotten = forgotten
        self.parts = nn.ModuleList(nn.Linear(3, 1) for _ in range(2))

    def configure_optimizers(self):
        pair = [torch.optim.SGD(part.parameters(), lr=1.0) for part in self.parts]
        return pair, [scheduler_config(self, optimizer, "linear") for optimizer in pair]

    def training_step(self, batch):
        both = zip(self.optimizers(), self.lr_schedulers(), self.parts, strict=True)
        for i, (optimizer, scheduler, part) in enumerate(both):
            optimizer.zero_grad()
            self.manual_backward(part(batch[0]).square().mean())
            optimizer.step()
            if i != self.forgotten:
                scheduler.step()


class TestManualOptimization:
    @pytest.mark.parametrize("cls", [Manual, SteppedAfterTheBatch])
    @pytest.mark.parametrize("recipe", [TWO_RATES, FOLLOWING], ids=["steps", "plateau"])
    def test_is_the_automatic_one(self, tmp_path, cls, recipe):
        module, rates = fit(tmp_path, recipe, cls=cls)
        whole, expected = fit(tmp_path, recipe)
        assert rates == expected
        assert same_weights(module, whole)

    @pytest.mark.parametrize("cls", [Unstepped, SteppedByEpoch])
    def test_a_scheduler_left_behind_is_an_error(self, tmp_path, cls):
        says = rf"schedule: took 0 steps in 1 updates: {cls.__name__} .* self\.lr_schedulers\(\)\.step\(\)"
        with pytest.raises(RecipeError, match=says):
            fit(tmp_path, STEPS, cls=cls)

    def test_the_only_batch_counts_as_well(self, tmp_path):
        with pytest.raises(RecipeError, match="schedule: took 0 steps in 1 updates"):
            fit(tmp_path, recipe_of(COSINE), cls=Unstepped, max_steps=1)

    def test_a_schedule_alone_is_looked_after_as_well(self, tmp_path):
        class Alone(Unstepped, OwnOptimizer):
            pass

        with pytest.raises(RecipeError, match="schedule: took 0 steps in 1 updates: Alone"):
            fit(tmp_path, STEPS, cls=Alone)

    @pytest.mark.parametrize("forgotten", [0, 1])
    def test_each_of_two_schedulers_is_looked_after(self, tmp_path, forgotten):
        with pytest.raises(RecipeError, match="schedule: took 0 steps in 1 updates: Pair"):
            trainer_of(tmp_path, max_epochs=1).fit(Pair(forgotten), batches())

    def test_two_optimizers_need_a_length_in_epochs(self, tmp_path):
        with pytest.raises(RecipeError, match="schedule: would be laid out over max_steps=8"):
            trainer_of(tmp_path, max_steps=8).fit(Pair(), batches())

    def test_a_second_fit_of_two_optimizers_has_a_schedule_for_what_is_left(self, tmp_path):
        module, trainer, seen = Pair(), trainer_of(tmp_path, max_epochs=1), Rates()
        trainer.fit(module, batches())
        trainer.fit_loop.max_epochs = 2
        trainer.callbacks.append(seen)
        trainer.fit(module, batches())
        assert [rate for (rate,) in seen.seen[::2]] == pytest.approx([1 - t / 6 for t in range(6)])

    def test_a_recipe_without_a_schedule_needs_no_steps(self, tmp_path):
        _, rates = fit(tmp_path, recipe_of(), cls=Unstepped)
        assert rates == [[0.1]] * 18

    @pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
    @pytest.mark.parametrize("step", [4, 6, 13])
    def test_resumes(self, tmp_path, step):
        def checkpoints():
            return ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)

        whole, rates = fit(
            tmp_path, FOLLOWING, checkpoints(), cls=Manual, enable_checkpointing=True
        )
        with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
            module, rest = fit(
                tmp_path, FOLLOWING, cls=Manual, ckpt_path=tmp_path / f"step={step}.ckpt"
            )
        assert rest == rates[step:]
        assert same_weights(module, whole)


class TestTrainerSettings:
    @pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "32-true"])
    def test_precisions_run_the_same_schedule(self, tmp_path, precision):
        module, rates = fit(tmp_path, TWO_RATES, precision=precision)
        assert rates == plain_rates(TWO_RATES)
        assert not same_weights(module.head, Tiny(TWO_RATES).to(module.head.weight.dtype).head)

    @pytest.mark.parametrize(
        ("changes", "total", "per_epoch"),
        [
            ({"overfit_batches": 2}, 6, 2),
            ({"overfit_batches": 0.5}, 9, 3),
            ({"detect_anomaly": True}, 18, 6),
            ({"limit_train_batches": 0.5}, 9, 3),
            ({"accumulate_grad_batches": 4}, 6, 2),
            ({"reload_dataloaders_every_n_epochs": 1}, 18, 6),
            ({"max_epochs": 2, "min_epochs": 1}, 12, 6),
        ],
        ids=label,
    )
    def test_the_schedule_ends_with_the_run(self, tmp_path, changes, total, per_epoch):
        rates = Rates()
        trainer_of(tmp_path, rates, **changes).fit(Tiny(STEPS), batches(), batches())
        assert rates.seen == plain_rates(STEPS, total, per_epoch)

    @pytest.mark.parametrize("recipe", [TWO_RATES, FOLLOWING], ids=["steps", "plateau"])
    @pytest.mark.parametrize("count", [True, 2, 5])
    def test_a_rehearsal_goes_through_the_start_of_the_schedule(self, tmp_path, recipe, count):
        _, rates = fit(tmp_path, recipe, fast_dev_run=count)
        assert rates == plain_rates(recipe, 10**6, 1000, updates=int(count))

    def test_accumulation_by_epoch_ends_on_target(self, tmp_path):
        rates = Rates()
        scheduler = GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})
        trainer_of(tmp_path, rates, scheduler).fit(Tiny(STEPS), batches(), batches())
        assert rates.seen == plain_rates(STEPS, 6 + 3 + 2)

    def test_a_run_that_stops_early_has_followed_the_whole_schedule_so_far(self, tmp_path):
        stopping = EarlyStopping("val_loss", patience=1, mode="min")
        _, rates = fit(tmp_path, STEPS, stopping, max_epochs=9)
        assert rates == plain_rates(STEPS, 9 * EPOCH)[: 2 * EPOCH]

    @pytest.mark.parametrize("recipe", [STEPS, FOLLOWING], ids=["steps", "plateau"])
    def test_validating_and_testing_need_no_optimizer(self, tmp_path, recipe):
        trainer = trainer_of(tmp_path)
        trainer.validate(Tiny(recipe), batches(), verbose=False)
        trainer.test(Tiny(recipe), batches(), verbose=False)
        assert trainer.optimizers == []

    def test_the_monitor_follows_a_group_that_joins(self, tmp_path):
        monitor = LearningRateMonitor("step")
        logger = CSVLogger(tmp_path)
        trainer = trainer_of(tmp_path, monitor, finetuning(), logger=logger, log_every_n_steps=1)
        trainer.fit(Tiny(TWO_RATES), batches(), batches())
        assert len(monitor.lrs) == 2
        assert [len(rates) for rates in monitor.lrs.values()] == [18, 12]


class TestSeveralFits:
    @pytest.mark.parametrize("recipe", [TWO_RATES, FOLLOWING], ids=["steps", "plateau"])
    def test_another_trainer_begins_anew(self, tmp_path, recipe):
        module, first = fit(tmp_path, recipe)
        rates = Rates()
        module.validations.zero_()
        trainer_of(tmp_path, rates).fit(module, batches(), batches())
        assert rates.seen == first

    @pytest.mark.parametrize("cls", [Tiny, Manual])
    def test_the_same_trainer_has_a_schedule_for_what_is_left(self, tmp_path, cls):
        rates, module = Rates(), cls(FOLLOWING if cls is Tiny else STEPS)
        trainer = trainer_of(tmp_path, rates)
        trainer.fit(module, batches(), batches())
        trainer.fit_loop.max_epochs = 5
        module.validations.zero_()
        rates.seen.clear()
        trainer.fit(module, batches(), batches())
        after = (EPOCH, 2 * EPOCH)
        assert rates.seen == plain_rates(module.recipe, 2 * EPOCH, validated_after=after)

    def test_a_trainer_that_is_done_does_nothing(self, tmp_path):
        rates, module = Rates(), Tiny(STEPS)
        trainer = trainer_of(tmp_path, rates)
        trainer.fit(module, batches(), batches())
        trainer.fit(module, batches(), batches())
        assert len(rates.seen) == 18
        assert horizon_of(trainer).total_steps == 18


class TestOtherConfigurations:
    """Of two that would configure one module, or of what a module makes of a recipe's."""

    class Own(LightningModule):
        def configure_optimizers(self):
            raise AssertionError("never asked")

    @pytest.mark.parametrize("first", [True, False])
    def test_a_base_with_its_own_is_refused(self, first):
        bases = (RecipeMixin, self.Own) if first else (self.Own, RecipeMixin)
        with pytest.raises(
            RecipeError, match=r"^recipe: Both has two bases .* and Own; derive from"
        ):
            type("Both", bases, {})

    def test_a_class_that_kept_its_own_is_refused(self):
        with pytest.raises(RecipeError, match=r"^recipe: Kept configures its optimizers itself"):

            class Kept(RecipeMixin, LightningModule):
                def configure_optimizers(self):
                    return torch.optim.SGD(self.parameters(), lr=0.7)

    def test_the_mixin_must_stand_first(self):
        with pytest.raises(
            RecipeError, match=r"^recipe: Late must have RecipeMixin before Lightnin"
        ):
            type("Late", (LightningModule, RecipeMixin), {})

    def test_a_class_may_add_to_what_its_recipe_makes(self, tmp_path):
        class Adding(Tiny):
            def configure_optimizers(self):
                optimizers, configs = super().configure_optimizers()
                optimizers[0].param_groups[0]["weight_decay"] = 0.5
                return optimizers, configs

        module, _ = fit(tmp_path, STEPS, cls=Adding)
        assert isinstance(module, RecipeMixin)

    @pytest.mark.parametrize("changes", [{"interval": "epoch"}, {"frequency": 2}], ids=label)
    @pytest.mark.parametrize("part", [False, True], ids=["whole", "schedule"])
    def test_a_schedule_that_would_seldom_be_stepped_is_refused(self, tmp_path, changes, part):
        class Changing(OwnOptimizer if part else Tiny):
            def configure_optimizers(self):
                optimizers, (config,) = super().configure_optimizers()
                return optimizers, [{**config, **changes}]

        (value,) = changes.values()
        with pytest.raises(RecipeError, match=rf"schedule: counts updates, .*got .*{value}"):
            fit(tmp_path, STEPS, cls=Changing)
        fit(tmp_path, recipe_of(), cls=Changing)  # there is nothing to step

    # What any loop is told that forgets its scheduler, some updates later.
    @pytest.mark.filterwarnings(r"ignore:RecipeScheduler\.step\(\) has not been called")
    def test_a_schedule_that_is_never_stepped_is_warned_of(self, tmp_path):
        class Dropping(Tiny):
            def configure_optimizers(self):
                (optimizer,), _ = super().configure_optimizers()
                return optimizer

        said = "Dropping's configure_optimizers does not return its scheduler, so Lightning never"
        with pytest.warns(UserWarning, match=said) as found:
            _, rates = fit(tmp_path, STEPS, cls=Dropping)
        assert len([w for w in found if said in str(w.message)]) == 1
        assert rates == [rates[0]] * (3 * EPOCH)
        fit(tmp_path, recipe_of(), cls=Dropping)  # a warning would be an error here
