import copy
import pickle

import pytest
import torch
from support.bert import collate, tiny_bert, tiny_rows
from support.labels import label
from support.lightning_package import Callback, LightningModule, MixedPrecision
from support.lightning_runs import trainer_of
from support.rows import each_in_turn
from support.tensors import same_weights
from torch.utils.data import DataLoader

from optimplug.callbacks.lightning import LearningRateTrace, RecipeCallback
from optimplug.lightning import RecipeMixin
from optimplug.optim import AdamW

RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 1e-2},
    "schedule": [
        {"name": "LinearLR", "start_factor": 0.1, "for": 4},
        {"name": "CosineAnnealingLR"},
    ],
}


class Module(RecipeMixin, LightningModule):
    def __init__(self, optimizer):
        super().__init__()
        self.model = tiny_bert()
        self.recipe = {**RECIPE, "optimizer": {**RECIPE["optimizer"], **optimizer}}

    def training_step(self, batch):
        return self.model(**batch).loss


class Overflowing(torch.amp.GradScaler):
    """Finds infinite gradients in the updates that it is told to."""

    def __init__(self, skipped):
        super().__init__("cpu", init_scale=2.0, growth_interval=10**6)
        self.skipped, self.update_number = skipped, 0

    def step(self, optimizer, *args, **kwargs):
        self.update_number += 1
        if self.update_number in self.skipped:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.full_like(p, torch.inf)
            self._per_optimizer_states.clear()
        return super().step(optimizer, *args, **kwargs)


def batches():
    return DataLoader(tiny_rows(), 4, collate_fn=collate)


def fit(folder, skipped, optimizer):
    trace = LearningRateTrace()
    scaler = Overflowing(skipped)
    module = Module(optimizer)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
    trainer_of(folder, trace, max_epochs=2, plugins=plugins).fit(module, batches())
    assert scaler.update_number == 12
    rates = next(iter(trace.rates.values()), [])
    return rates, module


@pytest.mark.parametrize(
    ("skipped", "optimizer"),
    each_in_turn(
        [{1}, {1, 2}, {3}, {12}, {2, 6, 7}], [{}, {"fused": True}, {"foreach": False}], least=7
    ),
    ids=label,
)
def test_an_update_that_amp_skips_is_no_step_of_the_schedule(tmp_path, skipped, optimizer):
    whole, _ = fit(tmp_path, (), optimizer)
    assert len(set(whole)) > 8
    rates, module = fit(tmp_path, skipped, optimizer)
    if optimizer.get("fused"):  # it is called for a skipped update too, and leaves it out itself
        expected, done = [], 0
        for update in range(1, 13):
            expected.append(whole[done])
            done += update not in skipped
    else:
        expected = whole[: 12 - len(skipped)]
    assert rates == expected
    assert module.lr_schedulers().last_epoch == 12 - len(skipped)


def test_nothing_but_skipped_updates_leaves_the_weights(tmp_path):
    _, module = fit(tmp_path, set(range(1, 13)), {})
    assert same_weights(module.model, tiny_bert())
    assert module.lr_schedulers().last_epoch == 0


class Copying(Callback):
    """Copies the module in the midst of a fit, as averaging callbacks do."""

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step == 2:
            pickled = pickle.loads(pickle.dumps(module))  # noqa: S301
            self.copies = [copy.deepcopy(module), pickled]
            for own, other in zip([module] * 2, self.copies, strict=True):
                assert same_weights(own.model, other.model)


def test_a_copy_of_the_module_knows_nothing_of_the_run(tmp_path):
    copying, module = Copying(), Module({})
    trainer_of(tmp_path, copying, max_epochs=1).fit(module, batches())
    for one in copying.copies:
        assert one.lr_scheduler_step.__func__ is LightningModule.lr_scheduler_step
        assert one.lr_scheduler_step.__self__ is one


class Own(Module):
    """Configures itself, whatever recipe it has."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_a_copy_configures_itself_where_a_recipe_has_taken_over(tmp_path):
    copying, module = Copying(), Own({})
    del module.recipe
    recipe = RecipeCallback({"optimizer": {"name": "AdamW", "lr": 0.1}})
    trainer = trainer_of(tmp_path, copying, recipe, max_epochs=1)
    trainer.fit(module, batches())
    assert type(trainer.optimizers[0]) is AdamW
    for one in copying.copies:
        (group,) = one.configure_optimizers().param_groups
        assert {id(p) for p in group["params"]} == {id(p) for p in one.parameters()}
    assert "configure_optimizers" not in vars(module)
