import csv

import pytest
import torch
from support.labels import label
from support.lightning_package import (
    Callback,
    CSVLogger,
    LearningRateMonitor,
    LightningModule,
    MixedPrecision,
    ModelCheckpoint,
)
from support.lightning_runs import Resumable, batches, trainer_of
from support.tensors import same_weights
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers
from torch.utils.data import DataLoader, TensorDataset

from optimplug import ArgumentError, RecipeError, StateError
from optimplug.callbacks import lost_updates
from optimplug.callbacks.lightning import (
    LearningRateTrace,
    OptimizerMonitor,
    RecipeCallback,
    SchedulerCallback,
)
from optimplug.lightning import RecipeMixin, configure_optimizers
from optimplug.lightning.configure import take_over
from optimplug.optim import lr_scheduler as our_schedulers
from optimplug.recipe.checkpoint.policy import Resume


class Plain(LightningModule):
    """Its metric gets worse with every validation in fit."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.register_buffer("asked", torch.zeros(()))

    def loss(self, batch):
        return self.head(torch.tanh(self.body(batch[0]))).square().mean()

    def training_step(self, batch):
        return self.loss(batch)

    def validation_step(self, batch):
        self.log("val_loss", self.asked.clone())

    def on_validation_epoch_end(self):
        self.asked += not self.trainer.sanity_checking

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(folder, *callbacks, module=None, ckpt_path=None, **changes):
    trace = LearningRateTrace()
    trainer = trainer_of(folder, trace, *callbacks, **changes)
    module = module or Plain()
    trainer.fit(
        module,
        Resumable(batches()),
        DataLoader(TensorDataset(torch.zeros(2, 3)), 2),
        ckpt_path=ckpt_path,
    )
    return module, next(iter(trace.rates.values()), []), trainer


def halved(optimizer):
    return torch_schedulers.ExponentialLR(optimizer, 0.5)


def powers(counts):
    return [0.5**n for n in counts]


STEPPED = [
    ({"interval": "step"}, {}, range(18)),
    ({"interval": "step", "frequency": 4}, {}, [t // 4 for t in range(18)]),
    ({"interval": "step"}, {"accumulate_grad_batches": 4}, range(6)),
    ({"interval": "epoch"}, {}, [t // 6 for t in range(18)]),
    ({"interval": "epoch", "frequency": 2}, {}, [t // 12 for t in range(18)]),
    ({"interval": "epoch"}, {"accumulate_grad_batches": 4}, [t // 2 for t in range(6)]),
    ({"interval": "epoch"}, {"limit_train_batches": 4}, [t // 4 for t in range(12)]),
    ({"interval": "epoch"}, {"max_steps": 10}, [t // 6 for t in range(10)]),
    ({"interval": "validation"}, {"val_check_interval": 3}, [t // 3 for t in range(18)]),
    (
        {"interval": "validation", "frequency": 3},
        {"val_check_interval": 2},
        [t // 6 for t in range(18)],
    ),
    ({"interval": "validation"}, {"check_val_every_n_epoch": 2}, [t // 12 for t in range(18)]),
    ({}, {"max_epochs": 1}, range(6)),
]


class TestSchedulerCallback:
    @pytest.mark.parametrize(("when", "changes", "counts"), STEPPED, ids=label)
    def test_it_steps_when_it_is_told(self, tmp_path, when, changes, counts):
        _, rates, _ = fit(tmp_path, SchedulerCallback(halved, **when), **changes)
        assert rates == powers(counts)

    @pytest.mark.parametrize("library", [torch_schedulers, our_schedulers])
    def test_a_plateau_is_given_its_metric(self, tmp_path, library):
        def plateau(optimizer):
            return library.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)

        callback = SchedulerCallback(plateau, "validation", monitor="val_loss")
        _, rates, _ = fit(tmp_path, callback, val_check_interval=3)
        # The first metric, that of update 3, is the best there is.
        assert rates == powers([max(0, t // 3 - 1) for t in range(18)])

    def test_a_scheduler_may_be_given_as_it_is(self, tmp_path):
        module = Plain()
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        module.configure_optimizers = lambda: optimizer
        _, rates, _ = fit(tmp_path, SchedulerCallback(halved(optimizer)), module=module)
        assert rates == powers(range(18))

    def test_several_follow_each_other(self, tmp_path):
        callbacks = [
            SchedulerCallback(halved, "epoch"),
            SchedulerCallback(halved, "epoch", frequency=2),
        ]
        _, rates, _ = fit(tmp_path, *callbacks)
        assert rates == powers([t // 6 + t // 12 for t in range(18)])

    def test_validating_outside_fit_is_no_step(self, tmp_path):
        module, _, trainer = fit(tmp_path, SchedulerCallback(halved, "validation"))
        held = trainer.optimizers[0].param_groups[0]["lr"]
        trainer.validate(module, DataLoader(TensorDataset(torch.zeros(2, 3)), 2), verbose=False)
        assert trainer.optimizers[0].param_groups[0]["lr"] == held == 0.125

    @pytest.mark.parametrize("stop", range(1, 18))
    def test_a_resumed_run_goes_on_where_it_was(self, tmp_path, stop):
        def callbacks():
            def plateau(optimizer):
                return torch_schedulers.ReduceLROnPlateau(optimizer, factor=0.9, patience=0)

            return [
                SchedulerCallback(halved, "epoch"),
                SchedulerCallback(lambda o: our_schedulers.StepLR(o, 2, gamma=0.9), frequency=2),
                SchedulerCallback(plateau, "validation", frequency=2, monitor="val_loss"),
            ]

        options = {"check_val_every_n_epoch": None, "val_check_interval": 4}
        whole, rates, _ = fit(tmp_path, *callbacks(), **options)
        file = tmp_path / "stopped.ckpt"
        fit(tmp_path, *callbacks(), SaveAt(file, stop), **options)
        module, rest, _ = fit(tmp_path, *callbacks(), ckpt_path=file, **options)
        assert rest == rates[stop:]
        assert same_weights(module, whole)
        assert len(set(rates)) == 6

    def test_checkpoints_of_every_kind_hold_its_steps(self, tmp_path):
        savers = [
            ModelCheckpoint(tmp_path, "step-{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(tmp_path, "epoch-{step}", every_n_epochs=1, save_top_k=-1),
        ]
        fit(tmp_path, *savers, SchedulerCallback(halved, "epoch"), enable_checkpointing=True)
        found = {}
        for file in tmp_path.glob("*.ckpt"):
            saved = torch.load(file, weights_only=True)
            found[file.stem] = saved["lr_schedulers"][-1]["last_epoch"]
        expected = {f"step-step={t}": t // 6 for t in range(1, 19)}
        assert found == {**expected, **{f"epoch-step={t}": t // 6 for t in (6, 12, 18)}}

    def test_an_update_that_amp_skips_is_no_step(self, tmp_path):
        class Overflowing(torch.amp.GradScaler):
            def step(self, optimizer, *args, **kwargs):
                self.calls = getattr(self, "calls", 0) + 1
                return None if self.calls == 2 else super().step(optimizer, *args, **kwargs)

        plugin = MixedPrecision("16-mixed", "cpu", Overflowing("cpu", init_scale=2.0))
        _, rates, _ = fit(tmp_path, SchedulerCallback(halved), plugins=[plugin], max_epochs=1)
        assert rates == powers(range(5))

    def test_in_manual_optimization_every_update_counts(self, tmp_path):
        class Manual(Plain):
            automatic_optimization = False

            def training_step(self, batch):
                for _ in range(2):
                    self.optimizers().zero_grad()
                    self.manual_backward(self.loss(batch))
                    self.optimizers().step()

        _, rates, _ = fit(tmp_path, SchedulerCallback(halved), module=Manual(), max_epochs=1)
        assert rates == powers(n // 2 * 2 for n in range(12))

    def test_lightnings_monitor_shows_it(self, tmp_path):
        logger = CSVLogger(tmp_path)
        monitor = LearningRateMonitor("step")
        fit(tmp_path, SchedulerCallback(halved), monitor, logger=logger, log_every_n_steps=1)
        assert monitor.lrs == {"lr-SGD": [0.5**t for t in range(18)]}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((halved, "batch"), "interval must be one of"),
            ((halved, "step", 0), "frequency must be"),
            ((halved, "step", 1, "val_loss"), "interval must be 'validation'"),
            ((7,), "must be a scheduler, or a function"),
        ],
        ids=label,
    )
    def test_arguments_are_checked_at_once(self, arguments, message):
        with pytest.raises(ArgumentError, match=message):
            SchedulerCallback(*arguments)

    def test_a_scheduler_that_does_not_fit_is_refused_as_the_run_starts(self, tmp_path):
        def plateau(optimizer):
            return torch_schedulers.ReduceLROnPlateau(optimizer)

        stranger = halved(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0))
        cases = {
            "monitor must name the metric": SchedulerCallback(plateau, "validation"),
            "must be a scheduler of an optimizer that the module": SchedulerCallback(stranger),
            "takes no metric": SchedulerCallback(halved, "validation", monitor="val_loss"),
            "scheduler must be a scheduler of torch": SchedulerCallback(lambda optimizer: 7),
        }
        for message, callback in cases.items():
            with pytest.raises(ArgumentError, match=message):
                fit(tmp_path, callback)

    def test_two_optimizers_need_a_scheduler_each(self, tmp_path):
        module = Plain()
        pair = [torch.optim.SGD(m.parameters(), lr=1.0) for m in (module.body, module.head)]
        module.automatic_optimization = False
        module.training_step = lambda batch: [o.step() for o in pair] and None
        module.configure_optimizers = lambda: pair
        with pytest.raises(ArgumentError, match="the module has 2 optimizers"):
            fit(tmp_path, SchedulerCallback(halved), module=module)
        callbacks = [
            SchedulerCallback(halved(o), "epoch", frequency=n + 1) for n, o in enumerate(pair)
        ]
        fit(tmp_path, *callbacks, module=module)
        assert [o.param_groups[0]["lr"] for o in pair] == [0.125, 0.5]

    def test_a_missing_metric_is_an_error_that_lists_those_there_are(self, tmp_path):
        def plateau(optimizer):
            return torch_schedulers.ReduceLROnPlateau(optimizer)

        with pytest.raises(ArgumentError, match=r"'val_f1' is missing; there are: val_loss"):
            fit(tmp_path, SchedulerCallback(plateau, "validation", monitor="val_f1"))

    def test_a_checkpoint_of_other_callbacks_is_refused(self, tmp_path):
        def callbacks():
            return [SchedulerCallback(halved, "epoch"), SchedulerCallback(halved, frequency=7)]

        file = tmp_path / "stopped.ckpt"
        fit(tmp_path, *callbacks(), SaveAt(file, 7))
        first, second = callbacks()
        for others in (
            [second, first],
            [first],
            [second],
            [first, second, SchedulerCallback(halved)],
        ):
            with pytest.raises(StateError, match="give the same, in the same order"):
                fit(tmp_path, *others, ckpt_path=file)

    def test_a_run_without_validations_has_none_to_count(self, tmp_path):
        class Unvalidated(Plain):
            validation_step = LightningModule.validation_step

        with (
            pytest.raises(ArgumentError, match="this run has none"),
            pytest.warns(UserWarning, match="no `validation_step`"),
        ):
            fit(tmp_path, SchedulerCallback(halved, "validation"), module=Unvalidated())

    def test_beside_a_recipe_without_a_schedule_it_steps(self, tmp_path):
        recipe = {"optimizer": {"name": "SGD", "lr": 1.0}}
        _, rates, _ = fit(tmp_path, RecipeCallback(recipe), SchedulerCallback(halved, "epoch"))
        assert rates == powers([t // 6 for t in range(18)])

    def test_an_optimizer_that_follows_a_recipe_is_refused(self, tmp_path):
        recipe = {"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": "linear"}
        with pytest.raises(ArgumentError, match="already follows a recipe"):
            fit(tmp_path, RecipeCallback(recipe), SchedulerCallback(halved))


class SaveAt(Callback):
    """Save after an update: after its validation, if it has one."""

    def __init__(self, path, update, every=4):
        self.path, self.update, self.every = path, update, every

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step == self.update and self.update % self.every:
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer, module):
        if trainer.global_step == self.update and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


RECIPE = {
    "optimizer": {
        "name": "SGD",
        "lr": 0.5,
        "momentum": 0.9,
        "weight_decay": 0.1,
        "max_grad_norm": 0.1,
    },
    "groups": [{"match": "head.*", "lr_scale": 2, "momentum": 0.8}],
    "schedule": "linear",
}


class TestRecipeCallback:
    def test_it_takes_over_a_module_as_it_is(self, tmp_path):
        class Configured(Plain):
            def configure_optimizers(self):
                return configure_optimizers(self, RECIPE)

        expected, expected_rates, _ = fit(tmp_path, module=Configured())
        module, rates, trainer = fit(tmp_path, RecipeCallback(RECIPE))
        assert same_weights(module, expected)
        assert rates == expected_rates
        assert trainer.optimizers[0].max_grad_norm == 0.1

    def test_two_recipes_for_one_module_are_refused(self, tmp_path):
        class Mixed(RecipeMixin, LightningModule):
            def __init__(self, **recipes):
                super().__init__()
                self.body = nn.Linear(3, 4)
                vars(self).update(recipes)

            def training_step(self, batch):
                return self.body(batch[0]).square().mean()

        two = [RecipeCallback(RECIPE), RecipeCallback({"optimizer": {"name": "Adam"}})]
        module, data = Plain(), DataLoader(TensorDataset(torch.zeros(2, 3)), 2)
        with pytest.raises(RecipeError, match=r"there are two for Plain.* keep one RecipeCallback"):
            fit(tmp_path, *two, module=module)
        assert "configure_optimizers" not in vars(module)
        mixed = Mixed(recipe=RECIPE)
        with pytest.raises(RecipeError, match="there are two: Mixed has one by RecipeMixin"):
            trainer_of(tmp_path, RecipeCallback(RECIPE)).fit(mixed, data)
        with pytest.raises(RecipeError, match="there are two: Mixed has one by RecipeMixin"):
            take_over(mixed, RECIPE, Resume())
        without = Mixed()  # so that the callback has the only one
        recipe = {"optimizer": {"name": "Adam", "lr": 0.5}}
        trainer = trainer_of(tmp_path, RecipeCallback(recipe), max_epochs=1)
        trainer.fit(without, data)
        assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5

    def test_one_callback_serves_one_trainer_after_the_other(self, tmp_path):
        callback = RecipeCallback(RECIPE)
        for _ in range(2):
            _, rates, _ = fit(tmp_path, callback)
            assert rates[0] != 1.0

    def test_another_trainer_has_the_module_as_it_was(self, tmp_path):
        module = Plain()
        fit(tmp_path, RecipeCallback(RECIPE), module=module)
        _, rates, trainer = fit(tmp_path, module=module)
        assert type(trainer.optimizers[0]) is torch.optim.SGD
        assert rates == [1.0] * 18
        with pytest.raises(RecipeError):
            fit(
                tmp_path,
                RecipeCallback({**RECIPE, "schedule": {"name": "LinearLR", "for": 99}}),
                module=module,
            )
        assert fit(tmp_path, module=module)[1] == [1.0] * 18

    def test_a_wrong_recipe_is_refused_at_once(self):
        with pytest.raises(RecipeError, match="did you mean 'SGD'"):
            RecipeCallback({"optimizer": {"name": "SDG"}})

    def test_validating_needs_no_optimizer(self, tmp_path):
        callback = RecipeCallback({**RECIPE, "groups": [{"match": "none.*", "lr": 1}]})
        trainer = trainer_of(tmp_path, callback)
        trainer.validate(Plain(), DataLoader(TensorDataset(torch.zeros(2, 3)), 2), verbose=False)
        assert trainer.optimizers == []


class ProgressBar(Callback):
    """Keeps what a progress bar would show."""

    def __init__(self):
        self.names = set()

    def on_train_batch_end(self, trainer, *_):
        self.names.update(trainer.progress_bar_metrics)


class TestOptimizerMonitor:
    def logged(self, tmp_path, monitor, callbacks=(), **changes):
        logger = CSVLogger(tmp_path)
        fit(
            tmp_path,
            RecipeCallback(RECIPE),
            monitor,
            *callbacks,
            logger=logger,
            **{"log_every_n_steps": 2, **changes},
        )
        (file,) = tmp_path.glob("**/metrics.csv")
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        return [
            {k: float(v) for k, v in row.items() if v and k not in ("val_loss",)}
            for row in rows
            if row.get("grad_norm") or row.get("lr/body")
        ]

    def test_every_group_and_the_norm_are_logged_by_name(self, tmp_path):
        rows = self.logged(tmp_path, OptimizerMonitor(momentum=True, weight_decay=True))
        assert [row["step"] for row in rows] == list(range(1, 18, 2))
        for row in rows:
            factor = 1 - row["step"] / 18
            assert row["lr/body"] == pytest.approx(0.5 * factor, rel=1e-6)
            assert row["lr/head"] == pytest.approx(1.0 * factor, rel=1e-6)
            assert row["momentum/head"] == pytest.approx(0.8)
            assert row["weight_decay/body"] == pytest.approx(0.1)

    def test_what_is_not_asked_for_is_not_logged(self, tmp_path):
        rows = self.logged(tmp_path, OptimizerMonitor(grad_norm=False))
        assert set(rows[0]) == {"epoch", "step", "lr/body", "lr/head"}

    def test_log_groups_chooses_and_the_progress_bar_has_none(self, tmp_path):
        seen = ProgressBar()
        rows = self.logged(
            tmp_path, OptimizerMonitor(weight_decay=True, log_groups="bod*"), callbacks=[seen]
        )
        assert set(rows[0]) == {"epoch", "step", "grad_norm", "lr/body", "weight_decay/body"}
        assert not any("body" in name or "head" in name for name in seen.names)

    @pytest.mark.parametrize("globs", [["bdoy"], "bdoy", ["body", "bdoy"]])
    def test_log_groups_that_names_nothing_is_an_error_before_the_first_update(
        self, tmp_path, globs
    ):
        module = Plain()
        before = module.body.weight.clone()
        monitor = OptimizerMonitor(log_groups=globs)
        with pytest.raises(ArgumentError, match=r"'bdoy' matches no group's name; did you mean"):
            fit(tmp_path, RecipeCallback(RECIPE), monitor, module=module)
        assert torch.equal(module.body.weight, before)

    def test_the_norm_is_that_before_clipping(self, tmp_path):
        (row,) = self.logged(tmp_path, OptimizerMonitor(), log_every_n_steps=1, max_steps=1)
        module = Plain()
        module.loss(next(iter(batches()))).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters()])
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
        assert norm > 0.1

    def test_it_is_the_same_where_amp_scales_the_loss(self, tmp_path):
        def plugin():
            return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))

        fused = {**RECIPE, "optimizer": {**RECIPE["optimizer"], "fused": True}}
        norms = []
        for name, recipe in (("plain", RECIPE), ("fused", fused)):
            seen = Norms()
            fit(
                tmp_path / name,
                RecipeCallback(recipe),
                OptimizerMonitor(),
                seen,
                plugins=[plugin()],
                logger=CSVLogger(tmp_path / name),
                log_every_n_steps=1,
                max_steps=1,
            )
            norms.append(seen.norm)
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)

    def test_sparse_gradients_have_a_norm_too(self, tmp_path):
        class Sparse(Plain):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(4, 4, sparse=True)

            def training_step(self, batch):
                return self.loss(batch) + self.table(torch.tensor([1, 1])).sum()

        _, _, trainer = fit(
            tmp_path,
            OptimizerMonitor(),
            module=Sparse(),
            logger=CSVLogger(tmp_path),
            log_every_n_steps=1,
            max_steps=1,
        )
        assert trainer.callback_metrics["grad_norm"] >= 4.0

    def test_several_optimizers_are_numbered(self, tmp_path):
        class Pair(Plain):
            automatic_optimization = False

            def configure_optimizers(self):
                return [torch.optim.SGD(m.parameters(), lr=1.0) for m in (self.body, self.head)]

            def training_step(self, batch):
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                for optimizer in self.optimizers():
                    optimizer.step()

        _, _, trainer = fit(
            tmp_path,
            OptimizerMonitor(),
            module=Pair(),
            logger=CSVLogger(tmp_path),
            log_every_n_steps=1,
            max_steps=2,
        )
        assert {"lr/0/0", "lr/1/0", "grad_norm/0", "grad_norm/1"} <= trainer.callback_metrics.keys()


class TestLostUpdates:
    """The body's rate moves no bfloat16 weight, the head's does."""

    RECIPE = {
        "optimizer": {"name": "SGD", "lr": 0.01},
        "groups": [{"match": "body.*", "lr": 3e-4}],
    }

    class Narrow(Plain):
        def __init__(self):
            super().__init__()
            self.to(torch.bfloat16)
            for p in self.parameters():
                nn.init.constant_(p, 0.5)

        def loss(self, batch):
            return super().loss([batch[0].bfloat16()])

    def rows(self, tmp_path, recipe=RECIPE, module=None, **changes):
        fit(
            tmp_path,
            RecipeCallback(recipe),
            OptimizerMonitor(lost_updates=True),
            module=module or self.Narrow(),
            logger=CSVLogger(tmp_path),
            **{"log_every_n_steps": 2, **changes},
        )
        (file,) = tmp_path.glob("**/metrics.csv")
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        return [{k: float(v) for k, v in row.items() if v} for row in rows if row["lr/body"]]

    @pytest.mark.parametrize("changes", [{}, {"accumulate_grad_batches": 2}], ids=label)
    def test_the_share_of_each_group_is_logged_with_the_rates(self, tmp_path, changes):
        rows = self.rows(tmp_path, **changes)
        assert len(rows) == (4 if changes else 9)
        for row in rows:
            assert row["lost_updates/body"] == 1.0
            assert row["lost_updates/head"] < 1.0
            body, head = 16, 5
            lost = body + head * row["lost_updates/head"]
            assert row["lost_updates"] == pytest.approx(lost / (body + head))

    def test_with_the_missing_bits_kept_nothing_is_lost(self, tmp_path):
        exact = {**self.RECIPE, "optimizer": {"name": "SGD", "lr": 0.01, "rounding": "exact"}}
        assert [row["lost_updates/body"] for row in self.rows(tmp_path, exact)] == [0.0] * 9

    def test_it_is_only_measured_where_it_is_logged(self, tmp_path, monkeypatch):
        watched = []
        watch = lost_updates.LostUpdates.watch
        monkeypatch.setattr(
            lost_updates.LostUpdates, "watch", lambda *own: watched.append(watch(*own))
        )
        self.rows(tmp_path, log_every_n_steps=5)
        assert len(watched) == 3

    def test_frozen_groups_do_not_count_while_they_are_frozen(self, tmp_path):
        frozen = {"match": "body.*", "freeze": {"until": 10}}
        recipe = {**self.RECIPE, "groups": [*self.RECIPE["groups"], frozen]}
        rows = self.rows(tmp_path, recipe)
        assert ["lost_updates/body" in row for row in rows] == [row["step"] >= 10 for row in rows]

    def test_without_low_precision_weights_nothing_can_be_lost(self, tmp_path):
        (row, *_) = self.rows(tmp_path, module=Plain())
        assert {key: value for key, value in row.items() if "lost" in key} == {"lost_updates": 0.0}

    def test_nothing_is_left_on_the_optimizer_after_an_error(self, tmp_path):
        class Failing(self.Narrow):
            def on_before_optimizer_step(self, optimizer):  # after the callbacks'
                self.optimizer, self.hooks = optimizer, len(optimizer._optimizer_step_post_hooks)
                raise RuntimeError("no")

        module = Failing()
        with pytest.raises(RuntimeError, match="no"):
            self.rows(tmp_path, module=module, log_every_n_steps=1)
        left = module.optimizer._optimizer_step_post_hooks
        assert not any("LostUpdates" in hook.__qualname__ for hook in left.values())
        assert len(left) < module.hooks


class Norms(Callback):
    def on_train_batch_end(self, trainer, *args):
        self.norm = float(trainer.callback_metrics["grad_norm"])
