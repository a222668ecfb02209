"""LoRA+ with 8-bit moments in TRL's trainers: on a small model of random weights."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "trl_lora"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's own
pytest.importorskip("trl")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER.parent / "low_memory")
    monkeypatch.syspath_prepend(FOLDER)
    names = ("small", "parts", "train_sft", "train_dpo")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def check(trainer, lr):
    """Adapters alone, with LoRA+'s rates and 8-bit moments; the plan knows what they weigh."""
    optimizer, plan = trainer.optimizer.optimizer, trainer.plan()
    assert plan.warnings == ()
    rates = {name: g["initial_lr"] for g in optimizer.param_groups for name in g["param_names"]}
    assert len(rates) == 2 * 2 * 7
    assert all(rates[name] == (16 * lr if "lora_B" in name else lr) for name in rates)
    for group, memory in zip(optimizer.param_groups, plan.memory, strict=True):
        held = [t for p in group["params"] for t in optimizer.state[p].values()]
        assert sum(t.nbytes for t in held) == memory.state
        assert all(p.dtype == torch.bfloat16 for p in group["params"])
        for p in group["params"]:
            assert ("exp_avg_sq_codes" in optimizer.state[p]) == (p.numel() >= 4096)
    return [row for row in trainer.state.log_history if "loss" in row]


def test_sft(example, tmp_path):
    trainer = example("train_sft").train(2, tmp_path)
    rows = check(trainer, 2e-4)
    assert len(rows) >= 6
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert all(row["lost_updates"] < 1e-3 for row in rows)
    total = trainer.plan().total_memory
    assert (total.weights + total.state) / sum(g.numel for g in trainer.plan().groups) <= 6.2


@pytest.mark.slow
def test_dpo_with_a_rate_from_the_command_line(example, tmp_path, monkeypatch):
    module = example("train_dpo")
    given = [
        "--output_dir",
        str(tmp_path),
        "--recipe.optimizer.lr",
        "1e-3",
        "--num_train_epochs",
        "2",
    ]
    monkeypatch.setattr("sys.argv", ["train_dpo.py", *given])
    rows = check(module.train(module.parse()), 1e-3)
    assert rows[-1]["loss"] < 0.6 < rows[0]["loss"]
    assert rows[-1]["rewards/accuracies"] > 0.8
