"""A module that keeps its recipe among its hyperparameters: its checkpoints load, and run no code."""

import sys

import pytest
import torch
from support.lightning_package import CSVLogger, ModelCheckpoint, Trainer
from support.lightning_runs import STEPS, Rates, Tiny, batches, trainer_of
from support.tensors import same_weights

from optimplug import Recipe, RecipeError


class Keeping(Tiny):
    def __init__(self, recipe, width=4):
        super().__init__(recipe)
        self.save_hyperparameters()


WAYS = {"recipe": Recipe(STEPS), "dict": STEPS}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def trained(tmp_path, request):
    """A module, its rates, and the checkpoint after its second epoch."""
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = trainer_of(tmp_path, rates := Rates(), saving, enable_checkpointing=True)
    trainer.fit(module := Keeping(request.param), batches(), batches())
    return module, rates.seen, tmp_path / "epoch=1.ckpt"


@pytest.mark.parametrize("settings", [{}, {"weights_only": True}, {"weights_only": False}])
def test_a_module_loads_with_the_recipe_that_it_had(trained, settings):
    module, _, file = trained
    loaded = Keeping.load_from_checkpoint(file, **settings)
    assert loaded.hparams.width == 4
    assert type(loaded.recipe) is type(module.recipe)
    assert Recipe.load(loaded.recipe).spec == Recipe.load(STEPS).spec


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_fit_goes_on_with_it(trained, tmp_path):
    module, rates, file = trained
    loaded, rest = Keeping.load_from_checkpoint(file), Rates()
    trainer_of(tmp_path, rest).fit(loaded, batches(), batches(), ckpt_path=file)
    assert rest.seen == rates[12:]
    assert same_weights(loaded, module)


def test_the_file_of_hyperparameters_has_what_is_written(tmp_path):
    trainer = Trainer(
        max_epochs=1, logger=CSVLogger(tmp_path, "", ""), enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, default_root_dir=tmp_path,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Keeping(Recipe(STEPS)), batches(), batches())
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    (written,) = tmp_path.rglob("hparams.yaml")
    loaded = Keeping.load_from_checkpoint(tmp_path / "kept.ckpt", hparams_file=written)
    assert loaded.recipe == STEPS


def test_loading_imports_nothing_that_a_recipe_names(tmp_path, monkeypatch):
    (tmp_path / "named_by_a_recipe.py").write_text("from torch.optim import SGD as Mine")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe({"optimizer": {"name": "named_by_a_recipe.Mine", "lr": 0.1}})
    torch.save({"recipe": recipe}, tmp_path / "kept.pt")
    monkeypatch.delitem(sys.modules, "named_by_a_recipe")
    loaded = torch.load(tmp_path / "kept.pt", weights_only=True)["recipe"]
    assert "named_by_a_recipe" not in sys.modules
    assert "named_by_a_recipe" in repr(loaded)
    assert loaded.hyperparameters["lr"] == 0.1
    monkeypatch.delitem(sys.modules, "named_by_a_recipe")


def test_a_recipe_that_was_changed_in_its_file_is_refused_when_it_is_used(tmp_path):
    recipe = Recipe(STEPS)
    recipe._written.content["optimizer"]["lrr"] = 1
    torch.save(recipe, tmp_path / "kept.pt")
    loaded = torch.load(tmp_path / "kept.pt", weights_only=True)
    with pytest.raises(RecipeError, match=r"optimizer\.lrr: unknown key"):
        loaded.build_optimizer(torch.nn.Linear(2, 2))
