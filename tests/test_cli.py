import subprocess
import sys

import pytest

RECIPE = """\
optimizer: {name: AdamW, lr: 1e-3}
groups:
  - match: "*.bias"
    weight_decay: 0
schedule:
  - {name: LinearLR, start_factor: 0.1, for: 10%}
  - {name: CosineAnnealingLR}
"""
MODELS = """\
from torch import nn
def build(): return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
def needs(argument): return build()
ready = build()
text = str
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


def run(folder, *arguments):
    command = [sys.executable, "-W", "error", "-m", "optimplug", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_installed_command_is_the_module():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="optimplug")
    assert script.value == "optimplug.cli:main"


def test_check(folder):
    done = run(folder, "check", "recipe.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (0, "recipe.yaml: ok\n", "")


@pytest.mark.parametrize("model", ["models:build", "models:ready"])
def test_plan(folder, model):
    done = run(folder, "plan", "recipe.yaml", "--model", model, "--steps", "100")
    assert (done.returncode, done.stderr) == (0, "")
    assert "AdamW(lr=0.001), 100 steps" in done.stdout
    assert "steps 10 to 100: CosineAnnealingLR" in done.stdout
    assert "\x1b" not in done.stdout  # a pipe gets no colours


def test_plot(folder):
    model = ("--model", "models:build")
    done = run(folder, "plan", "recipe.yaml", *model, "--steps", "100", "--plot", "lr.png")
    assert done.returncode == 0
    assert (folder / "lr.png").stat().st_size > 1000


BAD_RECIPE = [
    (
        "name: AdamW",
        "nmae: AdamW",
        "recipe.yaml: optimizer.nmae: unknown key; did you mean 'name'?",
    ),
    ("lr: 1e-3", "lrr: 1e-3", "recipe.yaml: optimizer.lrr: unknown key; did you mean 'lr'?"),
    (
        "weight_decay",
        "weigth_decay",
        "recipe.yaml: groups[0].weigth_decay: unknown key; did you mean 'weight_decay'?",
    ),
    (
        "*.bias",
        "*.bais",
        "recipe.yaml: groups[0].match: '*.bais' matches no parameter; did you mean '*.bias'?",
    ),
    (
        "10%",
        "120%",
        "recipe.yaml: schedule[0].for: '120%' is longer than the run; the most is '100%'",
    ),
    ("groups:", "gruops:", "recipe.yaml: gruops: unknown key; did you mean 'groups'?"),
    (
        "groups:",
        "optimizer:",
        "recipe.yaml: line 2: duplicate key 'optimizer', first given on line 1",
    ),
    (RECIPE, "{", "recipe.yaml: line 1: "),
]


@pytest.mark.parametrize(("old", "new", "line"), BAD_RECIPE, ids=[case[2] for case in BAD_RECIPE])
def test_a_bad_recipe_is_one_line_and_status_1(folder, old, new, line):
    (folder / "recipe.yaml").write_text(RECIPE.replace(old, new, 1))
    done = run(folder, "plan", "recipe.yaml", "--model", "models:build", "--steps", "100")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


BAD_USAGE = [
    (["plan", "recipe.yaml"], "--model"),
    (["plan", "recipe.yaml", "--model", "models"], "must be package.module:factory"),
    (["plan", "recipe.yaml", "--model", "nowhere:build"], "ModuleNotFoundError"),
    (["plan", "recipe.yaml", "--model", "models:needs"], "TypeError"),
    (
        ["plan", "recipe.yaml", "--model", "models:build", "--steps", "9", "--plot", "no/x.png"],
        "--plot",
    ),
    (
        ["plan", "recipe.yaml", "--model", "models:build", "--steps", "9", "--plot", "x.foo"],
        "--plot",
    ),
    (["plan", "recipe.yaml", "--model", "models:nothing"], "nothing"),
    (["plan", "recipe.yaml", "--model", "models:text"], "not a torch.nn.Module"),
    (["plan", "recipe.yaml", "--model", "models:build", "--steps", "0"], "--steps"),
    (["plan", "recipe.yaml", "--model", "models:build", "--plot", "x.png"], "--steps"),
    (["paln"], "paln"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_USAGE, ids=lambda x: str(x))
def test_bad_usage_is_status_2_without_a_traceback(folder, arguments, message):
    done = run(folder, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_optimizer_in_the_current_folder_can_be_named(folder):
    (folder / "mine.py").write_text("import torch\nclass Mine(torch.optim.SGD): pass\n")
    (folder / "recipe.yaml").write_text("optimizer: {name: mine.Mine, lr: 0.1}\n")
    assert run(folder, "check", "recipe.yaml").returncode == 0


def test_a_missing_recipe_is_status_1(folder):
    done = run(folder, "check", "none.yaml")
    assert (done.returncode, done.stderr) == (
        1,
        "none.yaml: cannot read the recipe: No such file or directory\n",
    )


@pytest.mark.parametrize("command", [[], ["plan"], ["check"]], ids=str)
def test_help_has_an_example(folder, command):
    done = run(folder, *command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout or not command
