"""The script that takes everything from its command line, or from a YAML file of arguments."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support import commands

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "train": 24,
    "held_out": 8,
    "output_dir": "out",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "no",
    "report_to": "none",
}


@pytest.fixture
def project(tmp_path):
    for name in ("docstrings", "huggingface_cli"):
        shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("runs"))
    return tmp_path / "huggingface_cli"


def run(project, *arguments):
    return commands.run(commands.script(project / "train.py"), *arguments, folder=project)


def options(**changes):
    given = {**SMALL, "use_cpu": True, **changes}
    return [text for key, value in given.items() for text in (f"--{key}", str(value))]


def history(project):
    return json.loads((project / "out" / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow  # the next one starts the same program
def test_it_runs_from_the_command_line_and_logs_every_group(project):
    done = run(project, *options(recipe="recipe.yaml"))
    assert done.returncode == 0, done.stderr
    updates = [entry for entry in history(project) if "learning_rate" in entry]
    assert len(updates) == 6
    assert updates[1]["lr/classifier.weight"] == pytest.approx(2e-3)
    assert updates[1]["lr/bert.encoder.layer.5"] == pytest.approx(4e-4 * 0.8)
    assert updates[0]["lr/classifier.weight"] == pytest.approx(2e-5)
    assert all(entry["grad_norm"] > 0 for entry in updates)
    assert sum("eval_accuracy" in entry for entry in history(project)) >= 3
    assert (project / "out" / "model.safetensors").exists()


def test_it_runs_from_a_file_of_arguments_with_the_recipe_in_it(project):
    arguments = yaml.safe_load((project / "arguments.yaml").read_text())
    recipe = {"optimizer": {"name": "AdamW", "lr": 1e-3}, "schedule": "linear"}
    (project / "small.yaml").write_text(yaml.safe_dump({**arguments, **SMALL, "recipe": recipe}))
    done = run(project, "small.yaml")
    assert done.returncode == 0, done.stderr
    rates = [entry["learning_rate"] for entry in history(project) if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3 * (6 - t) / 6 for t in range(6)])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("none.yaml", "none.yaml: cannot read the recipe: No such file or directory"),
        ("{optimizer: {name: AdmW}}", "optimizer.name: no optimizer 'AdmW'; did you mean 'AdamW'?"),
    ],
)
def test_a_mistake_ends_it_in_one_line(project, recipe, message):
    done = run(project, *options(recipe=recipe))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == message
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_whole_of_it_learns(project):
    done = run(project, "arguments.yaml")
    assert done.returncode == 0, done.stderr
    log = json.loads((project / "runs" / "trainer_state.json").read_text())["log_history"]
    assert log[-1]["eval_accuracy"] > 0.8
    rates = [entry["lr/classifier.weight"] for entry in log if "learning_rate" in entry]
    assert rates[-1] <= max(rates) / 2
