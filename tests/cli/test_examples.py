"""The examples in the help of each command are run, and its help shows them."""

import inspect
import shlex

import pytest
import torch
import typer.main
from support import commands
from support.bert import tiny_bert
from support.labels import label

from optimplug import Horizon, Recipe
from optimplug.cli import app, main

RECIPE = """\
optimizer: {name: AdamW, lr: 1e-3}
groups:
  - layer_decay: 0.9
schedule: linear
"""
COMMANDS = typer.main.get_command(app).commands


def examples_in(text):
    lines = map(str.strip, inspect.cleandoc(text).splitlines())
    return [line.removeprefix("Example: ") for line in lines if line.startswith("Example: ")]


EXAMPLES = [
    (name, example)
    for name, help_of in [
        ("", app.info.help),
        *((n, c.callback.__doc__) for n, c in COMMANDS.items()),
    ]
    for example in examples_in(help_of)
]


@pytest.fixture
def folder(tmp_path):
    """What the examples speak of: recipes, models, checkpoints."""
    model = tiny_bert()
    model.config.save_pretrained(tmp_path / "my-bert")
    config = tmp_path / "my-bert/config.json"
    config.write_text(
        config.read_text().replace("{", '{"architectures": ["BertForSequenceClassification"],', 1)
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "new.yaml").write_text(RECIPE.replace("1e-3", "2e-3"))
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("from support.bert import tiny_bert as build\n")
    (package / "models.py").write_text("from support.bert import tiny_bert as build\n")
    with Recipe(RECIPE).start(model, Horizon(total_steps=9)) as going:
        model(torch.ones(1, 2, dtype=torch.long)).logits.sum().backward()
        going.step()
        torch.save(going.state_dict(), tmp_path / "run.pt")
        saved = tmp_path / "out/checkpoint-500"
        saved.mkdir(parents=True)
        torch.save(going.optimizer.state_dict(), saved / "optimizer.pt")
        torch.save(going.scheduler.state_dict(), saved / "scheduler.pt")
    return tmp_path


def test_every_command_has_an_example():
    assert {name for name, _ in EXAMPLES} == {"", *COMMANDS}


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=label)
def test_each_example_runs(folder, name, example):
    # What the shell does with the output is not the command's.
    first, *words = shlex.split(example.partition(" | ")[0].partition(" > ")[0])
    assert first == "optimplug"
    assert name in ("", words[0])
    before = set(folder.rglob("*"))
    done = commands.run(main, *words, folder=folder, COLUMNS="400")
    assert (done.returncode, done.stderr) == (name == "diff", "")  # two recipes that differ
    written = {str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before}
    assert written - {"mypackage/__pycache__"} >= {
        w for w in words if w.endswith((".png", ".html"))
    }
    assert done.stdout


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=label)
def test_help_shows_the_examples_without_colours(tmp_path, command):
    done = commands.run(main, *command, "--help", folder=tmp_path, COLUMNS="200")
    assert done.returncode == 0
    of = [example for name, example in EXAMPLES if name == "".join(command)]
    assert all(" ".join(example.split()) in " ".join(done.stdout.split()) for example in of)
    assert "\x1b" not in done.stdout
