"""What a room of tests imports: that of an optimizer must not wait for a trainer, nor need one."""

import ast
import json
from pathlib import Path

import pytest
from support.commands import run_apart

TESTS = Path(__file__).parent
ROOMS = ["tests/optim", "tests/lr_scheduler"]
TRAINERS = {"lightning", "pytorch_lightning", "transformers", "accelerate"}
COLLECT = """
import json, sys, pytest

status = pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *sys.argv[1:]])
print(json.dumps([int(status), sorted(sys.modules)]))
"""


def test_tests_of_optimizers_import_no_trainer():
    done = run_apart("python", "-c", COLLECT, *ROOMS, folder=TESTS.parent)
    status, modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 0, done.stdout + done.stderr
    assert "optimplug.optim" in modules
    assert not TRAINERS.intersection(modules)


def imported(file):
    """The packages that a file imports anywhere in it, also while a test runs."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_nor_do_they_while_they_run(room):
    files = [*(TESTS.parent / room).rglob("*.py")]
    assert files
    assert not TRAINERS.intersection(name for file in files for name in imported(file))
