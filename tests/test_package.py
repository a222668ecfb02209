import importlib
import subprocess
import sys

import pytest

import optimplug

PUBLIC = [
    "optimplug",
    "optimplug.callbacks.huggingface",
    "optimplug.callbacks.lightning",
    "optimplug.callbacks.trace",
    "optimplug.cli",
    "optimplug.errors",
    "optimplug.huggingface",
    "optimplug.lightning",
    "optimplug.optim",
    "optimplug.optim.lr_scheduler",
    "optimplug.plot",
    "optimplug.recipe",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_sorted_whole_and_true(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, member) for member in module.__all__)


@pytest.mark.parametrize("name", ["optimplug.optim", "optimplug.optim.lr_scheduler"])
def test_public_names_are_torchs(name):
    ours = importlib.import_module(name)
    torchs = importlib.import_module(name.replace("optimplug", "torch"))
    assert all(hasattr(torchs, member) for member in ours.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Recipes'"):
        optimplug.Recipes  # noqa: B018


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("optimplug", "lightning transformers accelerate pydantic matplotlib rich typer yaml"),
        (
            "optimplug.optim",
            "lightning transformers accelerate pydantic matplotlib rich typer yaml",
        ),
        ("optimplug.recipe", "lightning transformers accelerate matplotlib typer"),
        ("optimplug.cli", "lightning transformers accelerate matplotlib"),
    ],
)
def test_importing_brings_in_no_more_than_it_needs(module, heavy):
    code = (
        f"import sys, torch; before = set(sys.modules); import {module}; "
        f"print(*(set('{heavy}'.split()) & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("module", "trainer", "extra"),
    [
        ("optimplug.lightning", "lightning", "lightning"),
        ("optimplug.huggingface", "transformers", "huggingface"),
        ("optimplug.callbacks.lightning", "lightning", "lightning"),
        ("optimplug.callbacks.huggingface", "transformers", "huggingface"),
    ],
)
def test_without_its_trainer_an_adapter_names_the_command(module, trainer, extra):
    code = f"import sys; sys.modules['{trainer}'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f'pip install "optimplug[{extra}]"' in done.stderr.splitlines()[-1]
