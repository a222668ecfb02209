"""What is newer than anything that was run gives one warning."""

import ast
import re
import subprocess
import sys
import warnings
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

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


def test_python_itself(versions, monkeypatch):
    monkeypatch.setattr(tested.platform, "python_version", lambda: "3.99.1")
    with pytest.warns(UserWarning, match=r"not tested with python 3\.99\.1"):
        tested.warn_if_untested("python")


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


@pytest.mark.slow
def test_it_comes_as_the_module_that_needs_it_is_imported():
    code = f"import importlib{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert [len(messages) for messages in told] == [1, 1, 0, 1, 0]
    for messages, names in zip(
        told, [["torch"], ["lightning"], [], ["transformers", "accelerate"], []], strict=True
    ):
        assert all(f"{name} 99.0" in messages[0] for name in names)


ROOT = Path(__file__).parents[1]
OF_PACKAGES = {name: release for name, release in tested.NEWEST.items() if name != "python"}


def pins(end):
    """What an end's constraints say, by the names of packages as they are normally written."""
    lines = (ROOT / "constraints" / f"{end}.txt").read_text().splitlines()
    found = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): release for name, release in found}


def test_the_lower_bounds_are_what_was_run():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        project["optional-dependencies"][name] for name in ("lightning", "huggingface", "plot")
    ]
    for requirement in map(Requirement, [*project["dependencies"], *chain(*extras)]):
        (bound,) = requirement.specifier
        oldest = pins("oldest")[canonicalize_name(requirement.name)]
        assert bound.operator == ">="
        assert Version(bound.version) == Version(oldest), requirement.name


def test_the_newest_that_was_run_is_what_is_not_warned_of():
    newest = pins("newest")
    for name, release in OF_PACKAGES.items():
        assert newest[canonicalize_name(name)].rpartition(".")[0] == release


def test_the_page_has_what_was_run():
    rows = re.findall(
        r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|$",
        (ROOT / "docs" / "versions.md").read_text(),
        re.M,
    )
    assert {canonicalize_name(name) for name, *_ in rows} == set(
        map(canonicalize_name, OF_PACKAGES)
    )
    for name, oldest, newest in rows:
        assert (oldest, newest) == (pins("oldest")[name], pins("newest")[name])
