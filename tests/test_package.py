import importlib
import inspect
import json
import pkgutil

import pytest
from support.commands import run_apart

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


TRAINERS = {"lightning", "transformers", "accelerate"}
# From what needs least to what needs most, so that one process can import all of them in order.
TOO_HEAVY = {
    "optimplug": {*TRAINERS, "pydantic", "matplotlib", "rich", "typer", "yaml"},
    "optimplug.optim": {*TRAINERS, "pydantic", "matplotlib", "rich", "typer", "yaml"},
    "optimplug.recipe": {*TRAINERS, "matplotlib", "typer"},
    "optimplug.cli": {*TRAINERS, "matplotlib"},
}
IMPORT_ALL = """
import importlib, json, sys, torch

before, brought = set(sys.modules), {}
for module in sys.argv[1:]:
    importlib.import_module(module)
    brought[module] = sorted(set(sys.modules) - before)
print(json.dumps(brought))
"""


@pytest.fixture(scope="module")
def brought():
    """What each module, and those before it, bring in beside torch."""
    done = run_apart("python", "-c", IMPORT_ALL, *TOO_HEAVY, folder=".")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", TOO_HEAVY)
def test_importing_brings_in_no_more_than_it_needs(brought, module):
    assert module in brought[module]
    assert not TOO_HEAVY[module].intersection(brought[module])


ADAPTERS = {
    "optimplug.lightning": ("lightning", "lightning"),
    "optimplug.huggingface": ("transformers", "huggingface"),
    "optimplug.callbacks.lightning": ("lightning", "lightning"),
    "optimplug.callbacks.huggingface": ("transformers", "huggingface"),
}
IMPORT_WITHOUT = """
import importlib, json, sys

told = {}
for pair in sys.argv[1:]:
    module, trainer = pair.split("=")
    sys.modules[trainer] = None
    try:
        importlib.import_module(module)
    except ImportError as error:
        told[module] = str(error)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    """What each adapter says where its trainer is not installed."""
    pairs = [f"{module}={trainer}" for module, (trainer, _) in ADAPTERS.items()]
    done = run_apart("python", "-c", IMPORT_WITHOUT, *pairs, folder=".")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ADAPTERS)
def test_without_its_trainer_an_adapter_names_the_command(told, module):
    assert f'pip install "optimplug[{ADAPTERS[module][1]}]"' in told[module]
