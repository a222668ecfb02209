"""What is newer than anything that was run gives one warning."""

import ast
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from optimplug._core import tested


@pytest.fixture
def versions(monkeypatch):
    installed = {name: SimpleNamespace(__version__=f"{v}.9") for name, v in tested.NEWEST.items()}
    monkeypatch.setattr(tested.sys, "modules", {**sys.modules, **installed})
    tested.warn_if_untested.cache_clear()
    yield installed
    tested.warn_if_untested.cache_clear()


@pytest.mark.parametrize("older", ["1.0", "2.6.0", "2.6.9", "2.6.0.dev20250101", "2.6.1+cpu"])
def test_what_was_run_is_silent(versions, older):
    versions["lightning"].__version__ = older
    tested.warn_if_untested("lightning")


@pytest.mark.parametrize("newer", ["2.7.0", "2.7.0.dev20250101", "2.10", "3.0.0rc1", "2.7.0+cpu"])
def test_what_is_newer_warns_once(versions, newer):
    versions["lightning"].__version__ = newer
    expected = rf"not tested with lightning {newer} \(newest tested: 2\.6\)".replace("+", r"\+")
    with pytest.warns(UserWarning, match=expected):
        tested.warn_if_untested("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tested.warn_if_untested("lightning")


def test_several_are_one_warning(versions):
    versions["transformers"].__version__, versions["accelerate"].__version__ = "6.0.0", "2.0.0"
    with pytest.warns(UserWarning, match="not tested with") as told:
        tested.warn_if_untested("transformers", "accelerate")
    (warning,) = told
    assert "transformers 6.0.0 (newest tested: " in str(warning.message)
    assert ", accelerate 2.0.0 (newest tested: " in str(warning.message)


PROGRAM = """
import warnings
import torch, lightning.pytorch, transformers.trainer, accelerate
for module in (torch, lightning, transformers, accelerate):
    module.__version__ = "99.0"
modules = ("optim", "lightning", "callbacks.lightning", "huggingface", "callbacks.huggingface")
for name in modules:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        importlib.import_module(f"optimplug.{name}")
    print([str(w.message) for w in told if "optimplug was not tested" in str(w.message)])
"""


def test_it_comes_as_the_module_that_needs_it_is_imported():
    code = f"import importlib{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert [len(messages) for messages in told] == [1, 1, 0, 1, 0]
    for messages, names in zip(
        told, [["torch"], ["lightning"], [], ["transformers", "accelerate"], []], strict=True
    ):
        assert all(f"{name} 99.0" in messages[0] for name in names)
