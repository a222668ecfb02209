"""Lightning's two packages: which one is used, and where one meets the other."""

import sys
from importlib import import_module

import pytest
import torch
from support.lightning_package import NAME, OTHER, PACKAGE
from support.lightning_runs import STEPS, Tiny, batches
from torch.optim.lr_scheduler import StepLR

from optimplug.callbacks.lightning import (
    LearningRateTrace,
    MetricCallback,
    OptimizerMonitor,
    RecipeCallback,
    SchedulerCallback,
)
from optimplug.errors import MissingExtraError, PackageError
from optimplug.lightning import RecipeMixin, configure_optimizers, package, scheduler_config

other = import_module(OTHER)
LIGHTNING, PYTORCH_LIGHTNING = "lightning.pytorch", "pytorch_lightning"


def test_the_package_of_these_tests_is_used():
    assert NAME == package.NAME
    assert (package.Trainer, package.LightningModule) == (PACKAGE.Trainer, PACKAGE.LightningModule)


@pytest.mark.parametrize(
    ("imported", "missing", "found"),
    [
        ([], [], LIGHTNING),
        ([LIGHTNING], [], LIGHTNING),
        ([PYTORCH_LIGHTNING], [], PYTORCH_LIGHTNING),
        ([PYTORCH_LIGHTNING, LIGHTNING], [], PYTORCH_LIGHTNING),
        ([LIGHTNING, PYTORCH_LIGHTNING], [], LIGHTNING),
        ([], ["lightning"], PYTORCH_LIGHTNING),
        ([], ["pytorch_lightning"], LIGHTNING),
    ],
)
def test_the_one_that_was_imported_first_or_is_installed(monkeypatch, imported, missing, found):
    given = dict.fromkeys(missing)  # what cannot be imported is None in sys.modules
    rest = {name: sys.modules[name] for name in ("lightning", "importlib") if name not in missing}
    monkeypatch.setattr(package.sys, "modules", {**rest, **dict.fromkeys(imported, other), **given})
    assert package._chosen() == found


def test_without_both_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(package, "find_spec", lambda name: None)
    monkeypatch.setattr(package.sys, "modules", {})
    with pytest.raises(MissingExtraError, match=r"optimplug\[lightning\]"):
        package._chosen()


class Theirs(other.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch):
        raise AssertionError("never comes so far")

    def configure_optimizers(self):
        raise AssertionError("the recipe takes over")


SAYS = rf"of {OTHER}, but optimplug\.lightning works with {NAME} in this program"


class TestAModuleOfTheOther:
    def test_the_mixin_says_so_at_once(self):
        with pytest.raises(PackageError, match=f"^Other is a module {SAYS}"):

            class Other(RecipeMixin, other.LightningModule):
                pass

    @pytest.mark.parametrize(
        "call",
        [
            lambda module: configure_optimizers(module, STEPS),
            lambda module: scheduler_config(module, torch.optim.SGD(module.parameters()), []),
        ],
    )
    def test_the_functions_say_so(self, call):
        with pytest.raises(PackageError, match=f"^Theirs is a module {SAYS}"):
            call(Theirs())


@pytest.mark.parametrize(
    "callback",
    [
        RecipeCallback(STEPS),
        MetricCallback(),
        SchedulerCallback(lambda optimizer: StepLR(optimizer, 1)),
        OptimizerMonitor(),
        LearningRateTrace(),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_a_callback_in_a_trainer_of_the_other_says_so(callback):
    # Some releases of Lightning refuse it before.
    with pytest.raises(PackageError, match=f"^Trainer is a trainer {SAYS}"):
        callback.setup(object.__new__(other.Trainer), Theirs(), "fit")


def test_lightning_itself_refuses_a_module_in_a_trainer_of_the_other(tmp_path):
    trainer = other.Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu")
    with pytest.raises(TypeError, match="LightningModule"):
        trainer.fit(Tiny(STEPS), batches())
