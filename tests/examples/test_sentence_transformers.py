"""A sentence-transformers' loss with a layer of its own, beside a pretrained model."""

import importlib
import math
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "sentence_transformers"


@pytest.fixture
def train(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "train", raising=False)  # other examples have one
    yield importlib.import_module("train").train
    sys.modules.pop("train", None)


@pytest.mark.slow
def test_model_and_loss_are_trained_by_one_recipe(train, tmp_path):
    trainer = train(64, 1, tmp_path)
    optimizer = trainer.optimizer.optimizer
    rates = {name: g["initial_lr"] for g in optimizer.param_groups for name in g["param_names"]}
    assert rates["loss.classifier.weight"] == 1e-3
    layers = [rates[f"0.model.encoder.layer.{i}.output.dense.weight"] for i in range(6)]
    # The model's pooler, which stands above its layers, is the top.
    assert layers == pytest.approx([5e-5 * 0.9 ** (6 - i) for i in range(6)])
    assert trainer.plan().warnings == ()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    # So few updates need not lower it.
    assert len(losses) >= 2
    assert all(map(math.isfinite, losses))
