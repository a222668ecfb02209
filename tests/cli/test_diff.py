"""The command that holds two recipes against each other."""

import json
from functools import partial

import pytest
from support import commands

from optimplug.cli import main

A = """\
optimizer: {name: AdamW, lr: 1e-3}
groups:
  - match: "*.bias"
    weight_decay: 0
schedule: linear
"""
FILES = {
    "a.yaml": A,
    "same.yaml": A.replace("linear", "{name: LinearLR, start_factor: 1.0, end_factor: 0.0}"),
    "b.yaml": A.replace("1e-3", "2e-3"),
    "resumes.yaml": A + "resume: adapt\n",
    "adapts.yaml": A + "resume: {policy: adapt}\n",
    "climbs.yaml": A + "resume: {policy: adapt, rewarm: 2 %}\n",
    "bad.yaml": A.replace("AdamW", "AdamV"),
    "misfit.yaml": A.replace("bias", "bais"),
    "epochs.yaml": A.replace("linear", "{preset: linear, warmup: 1 epoch}"),
    "models.py": "from torch import nn\ndef build(): return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))\n",
}


@pytest.fixture
def run(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return partial(commands.run, main, "diff", folder=tmp_path, COLUMNS="400")


MODEL = ("--model", "models:build", "--steps", "100")
STATUS = [
    (["a.yaml", "a.yaml"], 0, "say the same"),
    (["a.yaml", "b.yaml"], 1, "optimizer.lr"),
    (["a.yaml", "same.yaml"], 1, "schedule[0]"),
    (["a.yaml", "a.yaml", *MODEL], 0, "say the same"),
    (["a.yaml", "b.yaml", *MODEL], 1, "lr peak"),
    (["a.yaml", "same.yaml", *MODEL], 0, "for this model both mean the same"),
    (["a.yaml", "resumes.yaml", *MODEL], 1, "resume"),
    (["resumes.yaml", "adapts.yaml"], 0, "say the same"),
    (["resumes.yaml", "adapts.yaml", *MODEL], 0, "say the same"),
    (["resumes.yaml", "climbs.yaml", *MODEL], 1, "rewarm"),
    (["a.yaml", "bad.yaml"], 2, "bad.yaml: optimizer.name: no optimizer 'AdamV'"),
    (["a.yaml", "none.yaml"], 2, "none.yaml: cannot read the recipe"),
    (["a.yaml", "misfit.yaml", *MODEL], 2, "misfit.yaml: groups[0].match"),
    (["a.yaml", "epochs.yaml", *MODEL], 2, "epochs need to know --steps-per-epoch"),
    (["a.yaml", "b.yaml", "--steps", "9"], 2, "give --model too"),
    (["a.yaml", "b.yaml", "--meta"], 2, "give --model too"),
    (["a.yaml", "b.yaml", *MODEL[:2], "--plot", "x.png"], 2, "curves need --steps"),
    (["a.yaml", "b.yaml", *MODEL, "--plot", "no/x.png"], 2, "--plot"),
    (["a.yaml", "b.yaml", *MODEL, "--html", "no/x.html"], 2, "--html"),
    (["a.yaml", "b.yaml", "--model", "models:none"], 2, "AttributeError"),
]


@pytest.mark.parametrize(("arguments", "status", "message"), STATUS, ids=lambda x: str(x))
def test_status_is_that_of_diff(run, arguments, status, message):
    done = run(*arguments)
    assert done.returncode == status, done.stderr
    assert message in (done.stderr if status == 2 else done.stdout)
    assert bool(done.stderr) == (status == 2)
    assert "Traceback" not in done.stderr


def test_json_is_the_difference_and_nothing_else(run):
    found = json.loads(run("a.yaml", "b.yaml", *MODEL, "--json").stdout)
    assert found["keys"] == [{"path": "optimizer.lr", "before": 0.001, "after": 0.002}]
    assert found["all"] == []
    names = {name for group in found["groups"] for name in group["members"]}
    assert names == {"0.bias", "0.weight", "1.bias", "1.weight"}
    assert found["groups"][0]["changes"][0] == {"what": "lr start", "before": 0.001, "after": 0.002}
    assert set(json.loads(run("a.yaml", "b.yaml", "--json").stdout)) == {"keys"}


def test_curves_are_drawn(tmp_path, run):
    assert run("a.yaml", "b.yaml", *MODEL, "--plot", "d.png", "--html", "d.html").returncode == 1
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "d.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_how_runs_go_on_is_plain_in_json(run):
    found = json.loads(run("a.yaml", "climbs.yaml", *MODEL, "--json").stdout)
    assert found["all"] == [
        {"what": "resume", "before": "exact", "after": "adapt"},
        {"what": "rewarm", "before": None, "after": "2%"},
    ]
    assert found["groups"] == []
