"""8-bit moments and bfloat16 weights that move, in each trainer: on a small model of random weights."""

import csv
import importlib
import sys
from pathlib import Path

import pytest
import torch

from optimplug import Horizon, Recipe

FOLDER = Path(__file__).parents[2] / "examples" / "low_memory"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    names = ("small", "train_lightning", "train_trainer")
    for name in names:  # other examples have scripts of these names
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def check_storage(optimizer, plan):
    """What the optimizer holds is what the plan says; matrices have codes and the missing bits."""
    assert plan.warnings == ()
    for group, memory in zip(optimizer.param_groups, plan.memory, strict=True):
        held = [t for p in group["params"] for t in optimizer.state[p].values()]
        assert sum(t.nbytes for t in held) == memory.state
        assert all(p.dtype == torch.bfloat16 for p in group["params"])
        for p in group["params"]:
            assert optimizer.state[p]["remainder"].dtype == torch.int16
            whole = p.numel() < 4096 or group.get("state_dtype") == "float32"
            assert ("exp_avg" in optimizer.state[p]) == whole
            assert ("exp_avg_sq_codes" in optimizer.state[p]) != whole
    total = plan.total_memory
    return (total.weights + total.state) / sum(group.numel for group in plan.groups)


def check_log(rows, falls_to):
    """The loss falls, and every update has reached almost every weight."""
    assert len(rows) >= 6
    assert rows[-1]["loss"] < falls_to * rows[0]["loss"]
    assert all(row["lost_updates"] < 1e-3 for row in rows)


def test_lightning(example, tmp_path):
    module = example("train_lightning")
    trainer = module.train(2, tmp_path)
    plan = Recipe.load(module.RECIPE).plan(trainer.lightning_module, Horizon(24, 12))
    assert check_storage(trainer.optimizers[0], plan) <= 6.2
    (file,) = tmp_path.glob("**/metrics.csv")
    with file.open() as lines:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]
    check_log(rows, 0.3)


def history(trainer):
    return [row for row in trainer.state.log_history if "loss" in row]


def test_the_trainer(example, tmp_path):
    trainer = example("train_trainer").train(2, tmp_path)
    assert check_storage(trainer.optimizer.optimizer, trainer.plan()) <= 6.2
    check_log(history(trainer), 0.3)


def test_without_the_missing_bits_most_of_the_last_updates_are_lost(example, tmp_path):
    module = example("train_trainer")
    lines = module.RECIPE.read_text().splitlines(keepends=True)
    module.RECIPE = "".join(line for line in lines if "rounding: exact" not in line)
    trainer = module.train(1, tmp_path)
    told = [warning.path for warning in trainer.plan().warnings]
    assert told == ["optimizer.weight_decay", "optimizer.lr"]
    assert history(trainer)[-1]["lost_updates"] > 0.5
