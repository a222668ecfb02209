import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

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
        ("optimplug.huggingface", "accelerate", "huggingface"),
        ("optimplug.callbacks.lightning", "lightning", "lightning"),
        ("optimplug.callbacks.huggingface", "transformers", "huggingface"),
        ("optimplug.callbacks.huggingface", "accelerate", "huggingface"),
    ],
)
def test_without_its_trainer_an_adapter_names_the_command(module, trainer, extra):
    code = f"import sys; sys.modules['{trainer}'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f'pip install "optimplug[{extra}]"' in done.stderr.splitlines()[-1]
