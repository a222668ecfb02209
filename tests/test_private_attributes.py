"""Private attributes of other people's objects are touched in the files ``internals.py`` alone.

There each has its reason, and a test that says which release broke it. Elsewhere an object may
reach into itself, and classes of one folder into each other.
"""

import ast
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import PurePosixPath

import pytest
from support.sources import parse, sources

# What one folder of the package asks of another's objects: by file and attribute, with the reason.
ALLOWED = {
    ("_core/lr_scheduler/*.py", "_overwritten"): "our own mark on an optimizer, for the next scheduler",
    ("callbacks/step_interval.py", "_takes_metric"): "a plateau may stand anywhere in a scheduler of ours",
    ("recipe/schedule/curves.py", "_check_next"): "refuses a metric before any plateau has taken it",
}  # fmt: skip

# Public, whatever they look like: the methods of every NamedTuple.
NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
ACCESSORS = {"getattr", "hasattr", "setattr", "delattr"}


def is_private(name):
    text = isinstance(name, str) and name not in NAMED_TUPLES
    return text and name.startswith("_") and not name.endswith("__")


def accessed(node):
    """The object and the attribute that a piece of code asks for, or a call such as getattr."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ACCESSORS:
        return node.args[0], getattr(node.args[1], "value", None)
    return None, None


def imported(node):
    """What an import asks for: of our own modules the names alone, for ``_core`` is our own."""
    if isinstance(node, ast.Import):
        return [part for alias in node.names for part in alias.name.split(".")]
    if isinstance(node, ast.ImportFrom):
        own = node.module.split(".")[0] == "optimplug"
        return [*([] if own else node.module.split(".")), *(alias.name for alias in node.names)]
    return []


def is_self(owner):
    return isinstance(owner, ast.Name) and owner.id in ("self", "cls")


def folder(source):
    return PurePosixPath(source.path).parent


def defined(cls):
    """The names of a class: its methods and fields, and what it sets on itself."""
    for node in ast.walk(cls):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr if is_self(node.value) else ""


def violations(of):
    """What is private to somebody else and is touched: pairs of a file and a name, with lines."""
    own = defaultdict(set)
    for source in of:
        for node in ast.walk(source.tree):
            own[folder(source)] |= {*defined(node)} if isinstance(node, ast.ClassDef) else set()
    found = defaultdict(list)
    for source in of:
        for node in ast.walk(source.tree):
            owner, name = accessed(node)
            foreign = owner and not is_self(owner) and name not in own[folder(source)]
            for one in [name] if foreign else imported(node):
                if is_private(one) and PurePosixPath(source.path).name != "internals.py":
                    found[source.path, one].append(node.lineno)
    return found


def listed(place, table):
    """The rows of a table that allow a violation."""
    return {row for row in table if all(map(fnmatch, place, row))}


@pytest.fixture(scope="module")
def touched():
    return violations(sources())


def test_private_attributes_are_touched_in_internals_alone(touched):
    known = ALLOWED.keys()
    others = [
        f"optimplug/{path}:{line}: {name}"
        for (path, name), lines in touched.items()
        for line in lines
        if not listed((path, name), known)
    ]
    assert not others, "these belong in an internals.py, with their reasons: " + ", ".join(others)


def test_nothing_is_allowed_that_is_not_done(touched):
    known = ALLOWED.keys()
    used = set().union(*(listed(place, known) for place in touched))
    assert known - used == set(), "take these rows away"


@pytest.mark.parametrize(
    "code",
    [
        "trainer._evaluate()",
        "super()._evaluate()",
        'getattr(trainer, "_evaluate", None)',
        'hasattr(self.trainer, "_evaluate")',
        "trainer._evaluate = None",
        "from transformers.trainer import _evaluate",
        "from transformers._evaluate import x",
        "import transformers._evaluate",
        "from optimplug.huggingface.trainer import _evaluate",
    ],
)
def test_what_is_private_is_found(code):
    text = f"def f(self, trainer):\n    {code}"
    assert violations([parse("room/new.py", text)]) == {("room/new.py", "_evaluate"): [2]}


@pytest.mark.parametrize(
    "code",
    [
        "self._evaluate()",
        "other._mine = 1",
        "other.__class__",
        "from optimplug._core.arguments import owner_of",
        "from __future__ import annotations",
    ],
)
def test_what_is_ones_own_is_not(code):
    texts = [
        "class A:\n    def f(self):\n        self._mine = 0",
        f"def f(self, other):\n    {code}",
    ]
    assert violations([parse(f"room/{i}.py", text) for i, text in enumerate(texts)]) == {}


def test_another_folders_class_is_not_ones_own():
    texts = {"here/a.py": "class A:\n    _mine = 0", "there/b.py": "A()._mine"}
    assert violations([parse(*item) for item in texts.items()]) == {("there/b.py", "_mine"): [1]}
