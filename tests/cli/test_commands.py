import json
import re
from functools import partial

import pytest
from support import commands
from transformers import BertConfig, GPT2Config

import optimplug
from optimplug import Recipe
from optimplug.cli import main
from optimplug.optim import lr_scheduler
from optimplug.recipe.resolve import optimizer_names
from optimplug.recipe.schedule.vocabulary import preset_names

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
def deep(): return nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)])
def huge(): return nn.Sequential(nn.Linear(2**20, 2**20), nn.Linear(2**20, 1))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


@pytest.fixture
def run(folder):
    """Run the command in this process, which is many times faster than in one of its own."""
    return partial(commands.run, main, folder=folder, COLUMNS="400")


def run_apart(folder, *arguments, **variables):
    command = ["python", "-W", "error", "-m", "optimplug", *arguments]
    return commands.run_apart(*command, folder=folder, **variables)


def test_the_installed_command_is_the_module():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="optimplug")
    assert script.value == "optimplug.cli:main"


def test_check(run):
    done = run("check", "recipe.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (0, "recipe.yaml: ok\n", "")


@pytest.mark.parametrize("model", ["models:build", "models:ready"])
def test_plan(run, model):
    done = run("plan", "recipe.yaml", "--model", model, "--steps", "100")
    assert (done.returncode, done.stderr) == (0, "")
    assert "AdamW(lr=0.001), 100 steps" in done.stdout
    assert "steps 10 to 100: CosineAnnealingLR" in done.stdout


def test_all_gives_a_row_to_every_layer(folder, run):
    (folder / "recipe.yaml").write_text(RECIPE.replace('match: "*.bias"', "layer_decay: 0.5", 1))
    arguments = ("plan", "recipe.yaml", "--model", "models:deep", "--steps", "100")
    folded, whole = run(*arguments), run(*arguments, "--all")
    assert (folded.returncode, whole.returncode) == (0, 0)
    assert re.findall("^[0-8](?: - 8)?(?= )", folded.stdout, re.MULTILINE) == ["0 - 8"]
    assert re.findall("^[0-8](?= )", whole.stdout, re.MULTILINE) == list("012345678")


@pytest.mark.parametrize("encoding", [pytest.param("utf-8", marks=pytest.mark.slow), "ascii"])
def test_a_pipe_gets_the_table_without_colours_whatever_it_takes(folder, encoding):
    arguments = ("plan", "recipe.yaml", "--model", "models:build", "--steps", "100")
    done = run_apart(folder, *arguments, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "AdamW(lr=0.001), 100 steps" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_bad_usage_is_status_2_in_a_process_of_its_own(folder):
    done = run_apart(folder, "plan", "recipe.yaml", "--model", "models")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_plot(folder, run):
    model = ("--model", "models:build")
    done = run("plan", "recipe.yaml", *model, "--steps", "100", "--plot", "lr.png")
    assert done.returncode == 0
    assert (folder / "lr.png").stat().st_size > 1000


def test_json_is_the_plan_and_nothing_else(run):
    done = run("plan", "recipe.yaml", "--model", "models:build", "--steps", "10", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["total_steps"] == 10
    assert [group["members"] for group in found["groups"]] == [
        ["0.weight", "1.weight"],
        ["0.bias", "1.bias"],
    ]


def test_html(folder, run):
    model = ("--model", "models:build")
    done = run("plan", "recipe.yaml", *model, "--steps", "100", "--html", "plan.html")
    assert done.returncode == 0
    assert "AdamW(lr=0.001), 100 steps" in done.stdout
    assert (folder / "plan.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_explain(run):
    done = run("explain", "recipe.yaml", "0.bias", "1.weight", "--model", "models:build")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  groups[0] ('*.bias'): weight_decay = 0\n" in done.stdout
    assert "1.weight (float32, 1x3)\n  no rule speaks of it\n" in done.stdout
    done = run("explain", "recipe.yaml", "0.bias", "--model", "models:build", "--json")
    (found,) = json.loads(done.stdout)
    assert found["rules"][0]["value"] == 0


def test_schema(run):
    done = run("schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert "optimizer" in json.loads(done.stdout)["properties"]


def test_optimizers(run):
    done = run("optimizers", "ADA*w")
    assert (done.returncode, done.stderr) == (0, "")
    heads, _, row = done.stdout.splitlines()
    assert heads.split()[:2] == ["optimizer", "for"]
    assert re.split(r"  +", row.strip()) == [
        "AdamW",
        "the usual choice, above all for transformers",
        "1",
        "8, 12 with amsgrad",
        "compiled, fused, foreach, loop, differentiable",
        "float32, bfloat16, 8bit",
        "FSDP1, DTensor",
        "https://arxiv.org/abs/1711.05101",
    ]
    (found,) = json.loads(run("optimizers", "lion", "--json").stdout)
    assert (found["state_bytes"], found["facts"]["rate"]) == (4, [0.1, 0.33])
    names = [one["name"] for one in json.loads(run("optimizers", "--json").stdout)]
    assert names == sorted([*optimizer_names(), "MultiOptimizer"], key=str.lower)


def test_several_optimizers_in_one_are_in_the_table(run):
    row = run("optimizers", "multi*").stdout.splitlines()[2]
    assert re.split(r"  +", row.strip()) == [
        "MultiOptimizer",
        "several optimizers in one step, each group under its own",
        "the optimizer of a recipe, which names several under groups",
        "that of each group's optimizer",
        *["each group's own"] * 4,
    ]
    (found,) = json.loads(run("optimizers", "multi*", "--json").stdout)
    assert (found["state_bytes"], found["executions"]) == (None, [])


def test_schedulers(run):
    done = run("schedulers", "s*LR")
    assert (done.returncode, done.stderr) == (0, "")
    heads, _, *rows = done.stdout.splitlines()
    assert re.split(r"  +", heads.strip()) == ["scheduler", "does", "in a phase of a recipe"]
    assert [re.split(r"  +", row.strip()) for row in rows] == [
        [
            "SequentialLR",
            "Run schedulers one after the other; each starts anew from the group's own rate.",
            "none: it is for code alone",
        ],
        [
            "StepLR",
            "Scale the rate by a factor every so many steps.",
            "by name; step_size (required, a duration), gamma",
        ],
    ]
    (found,) = json.loads(run("schedulers", "warmup_*", "--json").stdout)
    assert (found["key"], found["required"]) == ("preset", ["num_decay_steps"])
    assert found["durations"] == ["warmup", "num_stable_steps", "num_decay_steps"]


def test_every_scheduler_and_preset_has_a_row_by_which_a_phase_can_be_written(run):
    rows = json.loads(run("schedulers", "--json").stdout)
    assert [row["name"] for row in rows] == [
        *(name for name in lr_scheduler.__all__ if name != "LRScheduler"),
        *preset_names(),
    ]
    values = {"monitor": "loss", "floor": 0.1, "milestones": [1], "gamma": 0.5}
    for row in rows:
        assert row["does"].endswith(".")
        if row["key"] is not None:
            needed = {key: values.get(key, 1) for key in row["required"]}
            phase = {row["key"]: row["name"], **needed, **dict.fromkeys(row["durations"], "5%")}
            if "milestones" in phase:
                phase["milestones"] = ["5%"]
            if "min_lr_rate" in row["others"]:  # which of the two to give, its line says
                phase["min_lr_rate"] = 0.1
            assert Recipe({"optimizer": {"name": "AdamW"}, "schedule": [phase]}).spec.schedule


def test_version(run):
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"optimplug {optimplug.__version__}\n")


def test_explain_takes_globs(run):
    done = run("explain", "recipe.yaml", "1.*", "*.bias", "--model", "models:build", "--json")
    assert done.returncode == 0, done.stderr
    names = [one["name"] for one in json.loads(done.stdout)]
    assert names == ["1.weight", "1.bias", "0.bias"]


IN_CLI_WORDS = [
    ("10%", ["plan"], "schedule[0].for: a percentage needs to know --steps"),
    ("2 epochs", ["plan", "--steps", "9"], "epochs need to know --steps-per-epoch"),
]


@pytest.mark.parametrize(("length", "command", "message"), IN_CLI_WORDS)
def test_errors_speak_of_options(folder, run, length, command, message):
    (folder / "recipe.yaml").write_text(RECIPE.replace("10%", length))
    done = run(command[0], "recipe.yaml", "--model", "models:build", *command[1:])
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert "Horizon" not in done.stderr


def test_a_factory_can_be_run_without_memory(run):
    arguments = ("plan", "recipe.yaml", "--model", "models:huge", "--meta", "--steps", "9")
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    # Two moments of four bytes for each number, and a count for each tensor.
    groups = json.loads(done.stdout)["groups"]
    numbers, tensors = (sum(group[key] for group in groups) for key in ("parameters", "tensors"))
    assert numbers > 2**40
    assert json.loads(done.stdout)["state_bytes"] == 8 * numbers + 4 * tensors


SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
BERT = BertConfig(**SMALL, architectures=["BertForMaskedLM"])
GPT2 = GPT2Config(n_layer=1, n_embd=8, n_head=2, architectures=["GPT2LMHeadModel"])


@pytest.mark.parametrize("given", ["model", "model/config.json", "./model"])
def test_a_folder_of_transformers_is_built_without_weights(folder, run, given):
    GPT2.save_pretrained(folder / "model")
    done = run("plan", "recipe.yaml", "--model", given, "--steps", "10", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tied"] == [["transformer.wte.weight", "lm_head.weight"]]
    assert [path.name for path in (folder / "model").iterdir()] == ["config.json"]


def test_its_weights_have_the_type_that_the_config_says(folder, run):
    BERT.save_pretrained(folder / "model")
    config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    arguments = ("explain", "recipe.yaml", "cls.predictions.bias", "--model", "model")
    assert "cls.predictions.bias (bfloat16, 30522)" in run(*arguments).stdout


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            "plan recipe.yaml --model models:build --steps 9 --json", marks=pytest.mark.slow
        ),
        "schema",
    ],
)
def test_a_reader_that_leaves_is_no_error(folder, command):
    shell = f"set -o pipefail; python -W error -m optimplug {command} | true"
    done = commands.run_apart("bash", "-c", shell, folder=folder)
    assert (done.returncode, done.stderr) == (0, "")


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
def test_a_bad_recipe_is_one_line_and_status_1(folder, run, old, new, line):
    (folder / "recipe.yaml").write_text(RECIPE.replace(old, new, 1))
    done = run("plan", "recipe.yaml", "--model", "models:build", "--steps", "100")
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
    (
        ["plan", "recipe.yaml", "--model", "models:build", "--steps", "9", "--html", "no/x.html"],
        "--html",
    ),
    (["plan", "recipe.yaml", "--model", "./nowhere"], "a folder with a config.json"),
    (["plan", "recipe.yaml", "--model", "."], "a folder with a config.json"),
    (["plan", "recipe.yaml", "--model", "models.py"], "no config of transformers"),
    (["plan", "recipe.yaml", "--model", "unknown"], "'architectures' must name a model class"),
    (["plan", "recipe.yaml", "--model", "remote"], "no config of transformers"),
    (["explain", "recipe.yaml", "--model", "models:build"], "PARAMETER"),
    (
        ["explain", "recipe.yaml", "0.bais", "--model", "models:build"],
        "no parameter '0.bais'; did you mean '0.bias'?",
    ),
    (["schema", "recipe.yaml"], "recipe.yaml"),
    (
        ["explain", "recipe.yaml", "*.bais", "--model", "models:build"],
        "'*.bais' matches no parameter; did you mean '*.bias'?",
    ),
    (["schedulers", "steplrr"], "no scheduler 'steplrr'; did you mean 'StepLR'?"),
    (["optimizers", "lionn*"], "no optimizer 'lionn*'; did you mean 'Lion'?"),
]


CONFIGS = {
    "unknown": {"model_type": "bert", "architectures": ["pipeline"]},
    "remote": {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}},
}


@pytest.mark.parametrize(("arguments", "message"), BAD_USAGE, ids=lambda x: str(x))
def test_bad_usage_is_status_2_without_a_traceback(folder, run, arguments, message):
    (folder / "recipe.yaml").write_text(RECIPE.replace("10%", "1"))
    for name, config in CONFIGS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "remote/code.py").write_text("raise SystemExit('was run')")
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "was run" not in done.stderr
    assert "Traceback" not in done.stderr


def test_an_optimizer_in_the_current_folder_can_be_named(folder, run):
    (folder / "mine.py").write_text("import torch\nclass Mine(torch.optim.SGD): pass\n")
    (folder / "recipe.yaml").write_text("optimizer: {name: mine.Mine, lr: 0.1}\n")
    assert run("check", "recipe.yaml").returncode == 0


def test_a_missing_recipe_is_status_1(run):
    done = run("check", "none.yaml")
    assert (done.returncode, done.stderr) == (
        1,
        "none.yaml: cannot read the recipe: No such file or directory\n",
    )
