"""Each public class stands in one table of the package, so that adding one is a single row."""

import ast
from collections import defaultdict
from typing import get_args

import pytest
from support.sources import parse, sources

from optimplug import optim
from optimplug.optim import lr_scheduler
from optimplug.recipe.schedule.presets import PRESETS, Shape
from optimplug.recipe.schedule.vocabulary import SCHEDULERS, preset_names

# The bases stand in types everywhere, and some presets are called as the shapes of a rise are.
OTHERS = {"Optimizer", "LRScheduler", "lr_scheduler", *get_args(Shape)}
NAMES = {*optim.__all__, *lr_scheduler.__all__, *preset_names()} - OTHERS


def named(node):
    """What an entry of a table is called: a text, or the last part of a dotted name."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Attribute):
        of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
        return None if of_self else node.attr  # what an object has of its own is no class
    return node.id if isinstance(node, ast.Name) else None


def entries(node):
    """The entries of a table: the keys of a dict, the items of a set, a list or a tuple.

    A name that is compared with is an entry as well: ``if name == "StepLR"`` is a table of one row.
    """
    if isinstance(node, ast.Dict):
        return node.keys
    if isinstance(node, ast.Set):
        return node.elts
    if isinstance(node, ast.List | ast.Tuple):
        return () if isinstance(node.ctx, ast.Store) else node.elts  # variables that are set
    if isinstance(node, ast.Compare):
        texts = [node.left, *node.comparators]
        return [one for one in texts if isinstance(one, ast.Constant)]
    return ()


def is_export(node):
    return isinstance(node, ast.Assign) and [named(t) for t in node.targets] == ["__all__"]


def tables(of):
    """Every public name with the places, as file:line, of the tables that list it."""
    found = defaultdict(set)
    for source in of:
        for statement in source.tree.body:
            for node in () if is_export(statement) else ast.walk(statement):
                for name in NAMES & set(map(named, entries(node))):
                    found[name].add(f"{source.path}:{node.lineno}")
    return found


@pytest.fixture(scope="module")
def rows():
    return tables(sources())


def test_each_public_class_stands_in_one_table_at_the_most(rows):
    several = {name: sorted(places) for name, places in rows.items() if len(places) > 1}
    assert several == {}


def test_every_scheduler_has_a_row():
    assert SCHEDULERS.keys() == set(lr_scheduler.__all__)


def test_every_preset_is_listed_once():
    listed = preset_names()
    assert len(set(listed)) == len(listed) == len(PRESETS) + 1


@pytest.mark.parametrize(
    "second",
    [
        '_DEAD = {"CyclicLR", "Muon"}',
        '_COUNTS = {"CyclicLR": 1}',
        "_STEPPED = (torch.optim.lr_scheduler.CyclicLR, Muon)",
        'def f(name):\n    return name == "CyclicLR"',
        'def f(name):\n    return name in ["CyclicLR"]',
    ],
)
def test_a_second_table_is_found(second, rows):
    (place,) = tables([parse("new.py", second)])["CyclicLR"]
    assert place.startswith("new.py:")
    assert len(rows["CyclicLR"] | {place}) == 2


@pytest.mark.parametrize(
    "use",
    [
        'phase = {"name": "CyclicLR"}',
        '__all__ = ["CyclicLR"]',
        "scheduler = CyclicLR(sgd)",
        "name, CyclicLR = self.name, self.CyclicLR",
    ],
)
def test_a_use_is_no_table(use):
    assert "CyclicLR" not in tables([parse("new.py", use)])
