"""The benchmark runs and reports; how fast anything is, no test says."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import bandwidth
import optimizers
import schedulers
import storage
import torch


def test_the_models_have_the_shapes_that_they_are_named_for():
    sizes = {name: sum(map(_numel, shapes)) for name, shapes in optimizers.MODELS.items()}
    assert len(optimizers.MODELS["tiny"]) == 768
    assert sizes["MiniLM"] == pytest.approx(22.7e6, rel=0.03)
    assert sizes["BERT-base"] == pytest.approx(109e6, rel=0.03)


def _numel(shape):
    product = 1
    for size in shape:
        product *= size
    return product


@pytest.mark.parametrize("count", [1, 2, 52, 200])
def test_groups_are_as_many_as_asked_for_and_hold_everything(count):
    params = optimizers.parameters(optimizers.transformer(48, 2, 0, 0), "cpu")
    groups = optimizers.grouped(params, count)
    assert len(groups) == count
    assert [p for group in groups for p in group["params"]] == params


def test_it_leaves_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    small = optimizers.transformer(2, 4, 10, 4)
    matrices = [shape for shape in small if len(shape) == 2]
    models = {name: matrices if "matrices" in name else small for name in optimizers.MODELS}
    monkeypatch.setattr(optimizers, "MODELS", models)
    arguments = ["optimizers.py", "--device", "cpu", "--rounds", "3", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    optimizers.main()
    table = (tmp_path / "optimizers.md").read_text()
    for case in optimizers.CASES:
        whose = "our" if case.optimizer == "Lion" else "torch"  # which torch does not have
        assert f"| {case.name} | {whose}" in table
    assert (tmp_path / "optimizers.png").read_bytes().startswith(b"\x89PNG")
    assert "ratio" in capsys.readouterr().out


def test_the_schedulers_are_measured_as_well(tmp_path, monkeypatch, capsys):
    arguments = ["schedulers.py", "--device", "cpu", "--rounds", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(schedulers, "GROUPS", 3)
    schedulers.main()
    table = (tmp_path / "schedulers.md").read_text()
    assert [f"| {name} |" in table for name in schedulers.CASES] == [True] * len(schedulers.CASES)
    assert "ratio" in capsys.readouterr().out


def test_what_a_step_must_move_is_counted():
    (p,) = optimizers.parameters([(3, 5)], "cpu")
    ours = optimizers.optim.AdamW([p])
    ours.step()
    assert bandwidth.must_move(ours) == 28 * 15  # weight and two moments twice, the gradient once


def test_how_near_to_the_memory_it_is_leaves_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    small = {name: [(30, 4), (4,)] for name in optimizers.MODELS}
    monkeypatch.setattr(bandwidth, "MODELS", small)
    monkeypatch.setattr(bandwidth, "COPIED", 2**16)
    arguments = ["bandwidth.py", "--device", "cpu", "--rounds", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    bandwidth.main()
    table = (tmp_path / "bandwidth.md").read_text()
    assert all(f"| {way.name} |" in table for way in bandwidth.WAYS)
    assert (tmp_path / "bandwidth.png").read_bytes().startswith(b"\x89PNG")
    assert "speed / copy" in capsys.readouterr().out


def test_small_states_are_measured_beside_those_that_are_installed(tmp_path, monkeypatch, capsys):
    def gradients(updates):
        generator = torch.Generator().manual_seed(0)
        return {"weight": [torch.randn(5000, generator=generator) for _ in range(updates)]}

    monkeypatch.setattr(storage, "gradients", gradients)
    monkeypatch.setattr(storage, "MODELS", {"MiniLM": [(80, 60), (4,)]})
    arguments = ["storage.py", "--updates", "3", "--rounds", "2", "--fast", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    storage.main()
    table = (tmp_path / "storage.md").read_text()
    assert "| ours, float32 | weight | 0.0000 | 0.0000 | 0.0000 |" in table
    assert "| ours, 8bit | weight |" in table
    assert "| 8bit | float32 |" in table
    assert "Bytes per parameter" in capsys.readouterr().out
