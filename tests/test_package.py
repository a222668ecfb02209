import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from support.labels import label

import optimplug

MODULES = [
    module.name
    for module in pkgutil.walk_packages(optimplug.__path__, "optimplug.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", ["optimplug", *MODULES])
def test_all_names_what_is_public_and_exists(name):
    module = importlib.import_module(name)
    own = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == name
        if isinstance(value, type) or inspect.isfunction(value)
    }
    listed = getattr(module, "__all__", [])
    assert own <= set(listed)
    assert all(hasattr(module, member) for member in listed)
    assert len(set(listed)) == len(listed)


BESIDE_TORCHS = {
    "ADOPT",
    "AdEMAMix",
    "CAME",
    "LAMB",
    "Lion",
    "MultiOptimizer",
    "Prodigy",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "StableAdamW",
    "TransformersAdafactor",
}


@pytest.mark.parametrize("name", ["optimplug.optim", "optimplug.optim.lr_scheduler"])
def test_public_names_are_torchs(name):
    ours = importlib.import_module(name)
    torchs = importlib.import_module(name.replace("optimplug", "torch"))
    assert {member for member in ours.__all__ if not hasattr(torchs, member)} <= BESIDE_TORCHS


@pytest.mark.parametrize("name", ["optimplug", "optimplug.recipe"])
def test_an_unknown_name_is_an_attribute_error(name):
    module = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'Recipes'"):
        module.Recipes  # noqa: B018


ERRORS = (
    "ArgumentError GradientError MissingExtraError ModeError OptimplugError RecipeError StateError"
)
PUBLIC = {
    "optimplug": f"{ERRORS} Horizon LRCurve Recipe Resumption Run __version__ find_lr",
    "optimplug.recipe": "Horizon LRCurve Plan Recipe RecipeScheduler Resumption Run build_scheduler find_lr",
    "optimplug.show.checkpoint": "CheckpointTable",
    "optimplug.show.difference": "KeyChange PlanDifference changed_keys keys_table plans_table",
    "optimplug.show.optimizers": "OptimizerTable rate state",
    "optimplug.show.schedulers": "SchedulerRow SchedulerTable",
    "optimplug.show.page": "render",
    "optimplug.show.plot": "draw",
    "optimplug.show.table": "PlanTable",
    "optimplug.cli": "app main",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_these(name):
    # Written out once more, so that none comes or goes without somebody's meaning it.
    assert set(importlib.import_module(name).__all__) == set(PUBLIC[name].split())


SHOWS = "rich typer matplotlib optimplug.show"


IMPORTS = [
    (
        "import optimplug",
        "torch",
        f"lightning pytorch_lightning transformers accelerate pydantic yaml {SHOWS}",
    ),
    (
        "import optimplug.optim",
        "torch",
        f"lightning pytorch_lightning transformers accelerate pydantic yaml triton {SHOWS}",
    ),
    (
        "from optimplug.recipe.text import form, override, reader",
        "sys",
        f"torch optimplug.recipe.parameters optimplug.recipe.schedule {SHOWS}",
    ),
    (
        "from optimplug.recipe import *",
        "torch",
        f"lightning pytorch_lightning transformers accelerate {SHOWS}",
    ),
    (
        "import optimplug.lightning, optimplug.callbacks.lightning",
        "lightning.pytorch.cli",
        f"transformers accelerate {SHOWS}",
    ),
    (
        "import optimplug.huggingface, optimplug.callbacks.huggingface",
        "transformers",
        f"lightning pytorch_lightning {SHOWS}",
    ),
    (
        "import optimplug.cli",
        "torch",
        "lightning pytorch_lightning transformers accelerate matplotlib",
    ),
]
ADAPTERS = [
    ("optimplug.lightning", "lightning pytorch_lightning", "lightning"),
    ("optimplug.huggingface", "transformers", "huggingface"),
    ("optimplug.huggingface", "accelerate", "huggingface"),
    ("optimplug.callbacks.lightning", "lightning pytorch_lightning", "lightning"),
    ("optimplug.callbacks.huggingface", "transformers", "huggingface"),
    ("optimplug.callbacks.huggingface", "accelerate", "huggingface"),
]
ASKED = Path(__file__).parent / "support" / "import_questions.py"


def question(row):
    """What is imported first, and code that fails where more is imported than should be."""
    of_import = row in IMPORTS
    imports, first, heavy = row if of_import else (f"import {row[0]}", "optimplug.recipe", row[1])
    return first, f"import sys; sys.modules.update(dict.fromkeys({heavy.split()})); {imports}"


@pytest.fixture(scope="module")
def answers():
    """The errors of all questions, by their code; of one that nothing is wrong with, nothing."""
    asked = defaultdict(list)
    for first, code in map(question, [*IMPORTS, *ADAPTERS]):
        asked[first].append(code)
    # Some packages have threads from the beginning; what is asked here needs none of them.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(ASKED)]
    done = subprocess.run(
        command, input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("row", IMPORTS, ids=lambda row: row[0])
def test_importing_brings_in_no_more_than_it_needs(row, answers):
    # What a trainer imports by itself is no fault of ours; from then on, who imports it fails.
    assert answers[question(row)[1]] == ""


@pytest.mark.parametrize("row", ADAPTERS, ids=label)
def test_without_its_trainer_an_adapter_names_the_command(row, answers):
    error = answers[question(row)[1]]
    assert error.startswith("MissingExtraError: ")
    assert f'pip install "optimplug[{row[2]}]"' in error
