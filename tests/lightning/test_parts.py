"""Groups alone and a schedule alone, from a LightningModule."""

import pytest
import torch
from support.bert import collate, tiny_bert, tiny_rows
from support.lightning_package import LightningModule
from support.lightning_runs import trainer_of
from torch.utils.data import DataLoader

from optimplug import Horizon, Recipe, RecipeError
from optimplug.callbacks.lightning import LearningRateTrace
from optimplug.lightning import configure_optimizers, param_groups, scheduler_config

RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 1e-2},
    "groups": [{"layer_decay": 0.5}, {"match": "*bias", "weight_decay": 0}],
    "schedule": [
        {"name": "LinearLR", "start_factor": 0.1, "for": "1 epoch"},
        {"name": "CosineAnnealingLR"},
    ],
}


class Module(LightningModule):
    def __init__(self, configure):
        super().__init__()
        self.model = tiny_bert()
        self.configure = configure

    def configure_optimizers(self):
        return self.configure(self)

    def training_step(self, batch):
        return self.model(**batch).loss

    def validation_step(self, batch):
        self.log("val_loss", float(self.trainer.global_step))


TOO_LONG = {"name": "LinearLR", "for": "3 epochs"}


def fit(folder, configure=None, cls=Module, module=None, **changes):
    trace = LearningRateTrace()
    trainer = trainer_of(folder, trace, max_epochs=2, num_sanity_val_steps=0, **changes)
    data = DataLoader(tiny_rows(), 4, collate_fn=collate)
    trainer.fit(module or cls(configure), data, data)
    return trainer.optimizers[0], trace.rates


def expected_rates(optimizer, schedule):
    scheduler = Recipe.load(
        {"optimizer": {"name": "SGD", "lr": 1}, "schedule": schedule}
    ).build_scheduler(optimizer, Horizon(12, 6))
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    return [list(row) for row in zip(*rates, strict=True)]


def test_groups_alone_serve_an_optimizer_of_ones_own(tmp_path):
    optimizer, rates = fit(
        tmp_path, lambda module: torch.optim.RMSprop(param_groups(module, RECIPE), lr=1.0)
    )
    (expected,) = [Recipe.load(RECIPE).param_groups(tiny_bert())]
    for group, own in zip(optimizer.param_groups, expected, strict=True):
        assert (group["name"], group["lr"]) == (own["name"], own["lr"])
        assert rates[own["name"]] == [own["lr"]] * 12
    assert len(expected) > 4


@pytest.mark.parametrize(
    "schedule",
    ["linear", RECIPE["schedule"], Recipe.load(RECIPE)],
    ids=["preset", "phases", "recipe"],
)
def test_a_schedule_alone_serves_an_optimizer_of_ones_own(tmp_path, schedule):
    def own(module):
        parts = [
            {"params": module.model.bert.parameters()},
            {"params": module.model.classifier.parameters(), "lr": 0.5},
        ]
        return torch.optim.RMSprop(parts, lr=0.25)

    def configure(module):
        optimizer = own(module)
        return [optimizer], [scheduler_config(module, optimizer, schedule)]

    _, rates = fit(tmp_path, configure)
    phases = RECIPE["schedule"] if isinstance(schedule, Recipe) else schedule
    assert [*rates.values()] == expected_rates(own(Module(None)), phases)


def test_a_plateau_alone_is_told_of_validations(tmp_path):
    plateau = {"name": "ReduceLROnPlateau", "monitor": "val_loss", "patience": 0, "factor": 0.5}

    def configure(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        return [optimizer], [scheduler_config(module, optimizer, plateau)]

    _, rates = fit(tmp_path, configure)
    assert rates == {"0": [1.0] * 12}
    optimizer, _ = fit(tmp_path, configure)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_schedule_that_does_not_fit_is_refused(tmp_path):
    def configure(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        return [optimizer], [
            scheduler_config(module, optimizer, {"name": "LinearLR", "for": "3 epochs"})
        ]

    with pytest.raises(RecipeError, match="longer than the run of 12"):
        fit(tmp_path, configure)


def test_two_schedules_of_one_optimizer_are_both_followed(tmp_path):
    falling = {"name": "LinearLR", "start_factor": 1, "end_factor": 0, "of": "weight_decay"}

    def configure(module):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1.0, weight_decay=0.12)
        return [optimizer], [scheduler_config(module, optimizer, s) for s in ("linear", falling)]

    optimizer, rates = fit(tmp_path, configure)
    assert rates["0"] == pytest.approx([1 - t / 12 for t in range(12)], rel=1e-12)
    assert optimizer.param_groups[0]["weight_decay"] == 0


def test_groups_alone_have_what_is_said_of_all(tmp_path):
    recipe = {
        **RECIPE,
        "optimizer": {**RECIPE["optimizer"], "betas": [0.5, 0.9], "max_grad_norm": 1},
    }
    optimizer, _ = fit(tmp_path, lambda module: torch.optim.AdamW(param_groups(module, recipe)))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.9)}
    assert "max_grad_norm" not in optimizer.param_groups[0]


def test_a_step_of_schedulers_of_ones_own_is_said_not_to_be_called(tmp_path):
    class StepInterval(Module):
        def lr_scheduler_step(self, scheduler, metric):
            raise AssertionError

    def configure(module):
        return configure_optimizers(module, RECIPE)

    with pytest.warns(UserWarning, match=r"StepInterval\.lr_scheduler_step is not called"):
        _, rates = fit(tmp_path, configure, cls=StepInterval)
    assert len(set(next(iter(rates.values())))) > 8


def test_a_refused_recipe_leaves_clipping_to_the_trainer(tmp_path):
    module = Module(lambda module: configure_optimizers(module, {**RECIPE, "schedule": TOO_LONG}))
    with pytest.raises(RecipeError, match="longer than the run"):
        fit(tmp_path, module=module)
    module.configure = lambda module: torch.optim.SGD(module.parameters(), lr=1.0)
    before = [p.detach().clone() for p in module.parameters()]
    fit(tmp_path, module=module, gradient_clip_val=1e-9)
    moved = [(p - b).abs().max() for p, b in zip(module.parameters(), before, strict=True)]
    assert max(moved) < 1e-6


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_a_compiled_model_has_the_names_that_it_had():
    class Compiled(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch.compile(tiny_bert())

    names = [name for g in param_groups(Compiled(), RECIPE) for name in g["param_names"]]
    assert "classifier.weight" in names
