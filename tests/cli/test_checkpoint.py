"""The command that shows a checkpoint."""

import json
import os
from functools import partial

import pytest
import torch
from support import commands
from support.lightning_runs import STEPS, Tiny, batches, trainer_of
from support.resume_cases import BASE
from support.resuming import gradients, started

from optimplug import Recipe
from optimplug.cli import main


@pytest.fixture
def run(tmp_path):
    (tmp_path / "models.py").write_text("from support.resuming import Net as build\n")
    (tmp_path / "same.yaml").write_text(Recipe(BASE).to_yaml())
    optimizer = {**BASE["optimizer"], "lr": 0.02}
    (tmp_path / "new.yaml").write_text(Recipe({**BASE, "optimizer": optimizer}).to_yaml())
    return partial(commands.run, main, folder=tmp_path, COLUMNS="400")


@pytest.fixture(scope="module")
def state():
    going = started(BASE)
    for t in range(6):
        gradients(going.model, t)
        going.step()
    return going.state_dict()


NEW = ("--recipe", "new.yaml", "--model", "models:build")


def test_what_is_in_it(tmp_path, run, state):
    torch.save(state, tmp_path / "run.pt")
    done = run("checkpoint", "run.pt")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines() if line]
    title, columns, _, body, head, *notes = lines
    assert " ".join(title) == "update 6 of 12 updates, 4 an epoch"
    assert columns == [
        "group",
        "tensors",
        "parameters",
        "optimizer",
        "lr",
        "lr",
        "now",
        "weight_decay",
        "betas",
        "bytes",
    ]
    assert body == [
        "body",
        "2",
        "16",
        "AdamW",
        "0.1",
        "0.0853553",
        "0.01",
        "(0.9,",
        "0.999)",
        "136",
    ]
    assert head == ["head", "2", "10", "AdamW", "0.1", "0.0853553", "0.1", "(0.9,", "0.999)", "88"]
    text = "\n".join(" ".join(line) for line in notes)
    assert "optimizer state: 224 bytes" in text
    assert "saved by optimplug 0." in text
    assert "frozen until 2" in text
    assert Recipe(done.stdout.partition("recipe:\n")[2]).spec == Recipe(BASE).spec


def test_what_resuming_would_change(tmp_path, run, state):
    torch.save({"model": {}, "run": state, "epoch": 3}, tmp_path / "run.pt")
    done = run("checkpoint", "run.pt", *NEW)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run: update 6" in done.stdout
    assert "would resume at update 6 (adapt)" in done.stdout
    assert "this recipe says resume: exact, which refuses that" in done.stdout
    assert "lr of body, head  0.1                0.02" in done.stdout
    longer = run("checkpoint", "run.pt", *NEW, "--steps", "24", "--steps-per-epoch", "4")
    assert "horizon           12 updates, 4 an epoch" in longer.stdout
    same = run("checkpoint", "run.pt", "--recipe", "same.yaml", "--model", "models:build")
    assert "nothing has changed, 4 parameters went on" in same.stdout
    assert "this recipe says" not in same.stdout


def test_json(tmp_path, run, state):
    torch.save(state, tmp_path / "run.pt")
    (found,) = json.loads(run("checkpoint", "run.pt", *NEW, "--json").stdout)
    assert (found["update"], found["bytes"]) == (6, 224)
    assert [group["name"] for group in found["groups"]] == ["body", "head"]
    assert found["groups"][0]["settings"]["lr"] == 0.1
    assert found["resuming"]["changed"] == [
        {"setting": "lr", "before": 0.1, "after": 0.02, "groups": ["body", "head"]}
    ]


def test_of_an_optimizer_alone(tmp_path, run):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    out = run("checkpoint", "optimizer.pt").stdout
    assert "update 1\n" in out
    assert " Adam " in out
    assert "no names of parameters: resuming goes by their order" in out


def test_of_lightning(tmp_path, run):
    trainer = trainer_of(tmp_path, max_epochs=1)
    trainer.fit(Tiny(STEPS), batches(), batches())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    done = run("checkpoint", "last.ckpt")
    assert done.returncode == 0
    assert "update 6 of 6 updates, 6 an epoch" in done.stdout
    assert "saved by optimplug" in done.stdout


def test_of_a_trainer(tmp_path, run, state):
    folder = tmp_path / "checkpoint-6"
    folder.mkdir()
    torch.save(state["optimizer"], folder / "optimizer.pt")
    torch.save(state["scheduler"], folder / "scheduler.pt")
    assert "update 6 of 12 updates" in run("checkpoint", "checkpoint-6").stdout


class Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": Runs(), "scheduler": {}}, "cannot be read: UnpicklingError"),
        ({"a": 1}, r"has no state of a run or of an optimizer (got ['a'])"),
        ([1], "has no state of a run or of an optimizer (got list)"),
        ({"state": 3, "param_groups": []}, "'state' of a state dict must be a dict"),
        ({"optimizer_states": [3], "lr_schedulers": [], "global_step": 3}, "must be a dict"),
        (b"", "cannot be read: EOFError"),
        (b"PK\3\4 damaged", "cannot be read"),
    ],
)
def test_what_is_no_checkpoint_is_a_line_and_nothing_is_run(tmp_path, run, content, message):
    file = tmp_path / "bad.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    done = run("checkpoint", "bad.pt")
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert "bad.pt" in done.stderr
    assert "executed" not in done.stderr


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_one_that_was_not_written_whole_names_the_newest_that_was(tmp_path, run, share):
    for name in ("run-1.pt", "run-2.pt", "run-3.pt", "run-4.pt"):
        torch.save({"state": {}, "param_groups": [{"params": []}]}, tmp_path / name)
    for name in ("run-3.pt", "run-4.pt"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
    done = run("checkpoint", "run-4.pt")
    assert done.returncode == 1
    assert "it was not written to its end, or is no file of torch.save" in done.stderr
    assert done.stderr.endswith("go on from the newest whole one: run-2.pt\n")


def test_of_those_of_one_moment_the_newest_has_the_highest_number(tmp_path, run):
    for name in ("run-9.pt", "run-10.pt", "run-11.pt"):
        torch.save({"state": {}, "param_groups": [{"params": []}]}, tmp_path / name)
        os.utime(tmp_path / name, (1e9, 1e9))
    (tmp_path / "run-11.pt").write_bytes(b"")
    done = run("checkpoint", "run-11.pt")
    assert done.stderr.endswith("go on from the newest whole one: run-10.pt\n")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("missing.pt",), 1, "missing.pt: there is no such file or folder"),
        ((".",), 1, "has no optimizer.pt"),
        (("run.pt", "--recipe", "new.yaml"), 2, "--model"),
        (("run.pt", "--model", "models:build"), 2, "--recipe"),
    ],
)
def test_bad_usage(tmp_path, run, state, arguments, status, message):
    torch.save(state, tmp_path / "run.pt")
    done = run("checkpoint", *arguments)
    assert done.returncode == status
    assert message in done.stderr


def test_what_cannot_go_on_is_said(tmp_path, run, state):
    torch.save(state, tmp_path / "run.pt")
    (tmp_path / "sgd.yaml").write_text("optimizer: {name: SGD, lr: 0.1}\n")
    done = run("checkpoint", "run.pt", "--recipe", "sgd.yaml", "--model", "models:build")
    assert done.returncode == 1
    assert "the state of AdamW, which means nothing to SGD" in done.stderr
