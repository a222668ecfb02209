"""The loops of accelerate and Fabric: a page of code each, and a resume to the last bit."""

import importlib.util
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from support.tensors import same_weights

ROOT = Path(__file__).parents[2] / "examples"
EPOCHS = 4


@pytest.fixture(params=["accelerate_loop", "fabric_loop"])
def example(request):
    file = ROOT / request.param / "train.py"
    spec = importlib.util.spec_from_file_location(request.param, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    AcceleratorState._reset_state(reset_partial_state=True)  # a trainer's, of another test
    yield module
    AcceleratorState._reset_state(reset_partial_state=True)


def checkpoint(folder, epoch):
    (file,) = folder.glob(f"epoch-{epoch}.*")
    return file


def test_a_resumed_run_is_the_uninterrupted_one(example, tmp_path, capsys):
    whole = example.train(EPOCHS, tmp_path / "whole")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == EPOCHS
    for epoch in range(1, EPOCHS):
        resume = checkpoint(tmp_path / "whole", epoch)
        resumed = example.train(EPOCHS, tmp_path / "resumed", resume)
        assert same_weights(resumed, whole)
        assert capsys.readouterr().out.splitlines() == lines[epoch:]
        ends = [torch.load(checkpoint(tmp_path / of, EPOCHS), weights_only=True) for of in WAYS]
        assert ends[0]["run"]["scheduler"] == ends[1]["run"]["scheduler"]


WAYS = ("whole", "resumed")


def test_it_warms_up_and_the_plateau_falls(example, tmp_path, capsys):
    example.train(EPOCHS, tmp_path)
    rates = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert rates[0] == 2e-2
    assert rates[-1] < 2e-2
    assert set(rates) <= {2e-2 * 0.5**n for n in range(EPOCHS)}


def test_it_is_a_page(example):
    assert len(Path(example.__file__).read_text().splitlines()) <= 90
