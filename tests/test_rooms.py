"""What a room of tests imports: that of an optimizer must not wait for a trainer, nor need one."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TRAINERS = {"lightning", "pytorch_lightning", "transformers", "accelerate", "huggingface"}
TRAINERS |= {"lightning_package"}  # of tests/support, which imports one of the two
ROOMS = ["optim", "lr_scheduler"]


def imported(file):
    """The modules that a file imports anywhere in it, also while a test runs."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def files_of(room):
    """The files of a room, and what they import of tests/support, and that in turn."""
    found, left = set(), [TESTS / "conftest.py", *(TESTS / room).rglob("*.py")]
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            shared = (TESTS / f"{name.replace('.', '/')}.py" for name in imported(file))
            left += [file for file in shared if file.exists()]
    return found


def trainers_in(files):
    modules = {name: file for file in files for name in imported(file)}
    return {name: file for name, file in modules.items() if TRAINERS.intersection(name.split("."))}


@pytest.mark.parametrize("room", ROOMS)
def test_tests_of_optimizers_import_no_trainer(room):
    files = files_of(room)
    assert TESTS / "support" / "tensors.py" in files
    assert trainers_in(files) == {}


def test_a_trainer_would_be_found_also_behind_what_is_shared():
    assert "transformers" in trainers_in({TESTS / "support" / "bert.py"})
    assert TESTS / "support" / "bert.py" in files_of("recipe")
    assert "support.lightning_package" in trainers_in(files_of("lightning"))
