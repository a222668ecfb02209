"""The benchmark runs and reports; how fast anything is, no test says."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import optimizers
import schedulers


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
