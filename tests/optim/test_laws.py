"""What holds for every optimizer; where something does not, the optimizer says so."""

import re

import pytest
from support.labels import label
from support.laws import IN_TWO_PROCESSES, LAWS, sharded
from support.optimizer_runs import ROWS, assert_close, choices, row_of, under_laws
from support.processes import in_two_processes
from support.rows import few_quick
from torch.distributed.device_mesh import init_device_mesh

from optimplug import OptimplugError
from optimplug.recipe.resolve import optimizer_names

CLASSES = under_laws()


def test_every_optimizer_is_under_the_laws():
    assert (
        ROWS.keys() == {cls.__name__ for cls in CLASSES} == {*optimizer_names(), "MultiOptimizer"}
    )
    for row in ROWS.values():
        assert row.refuses.keys() <= {*LAWS, *IN_TWO_PROCESSES}


# Quick is every law of every optimizer once, now in one and now in another of its executions.
TRIED = [((cls, law), choice) for cls in CLASSES for law in LAWS for choice in choices(cls)]


@pytest.mark.parametrize(
    ("cls", "law", "choice"),
    few_quick(TRIED),
    ids=lambda value: getattr(value, "__name__", label(value)),
)
def test_law(cls, law, choice):
    refusal = row_of(cls).refuses.get(law)
    if refusal is None:
        LAWS[law](cls, **choice)
        return
    errors = (OptimplugError, TypeError) if refusal.message else AssertionError
    with pytest.raises(errors, match=refusal.message):
        LAWS[law](cls, **choice)


def learn_sharded():
    """One of two processes: what each optimizer has learnt, or why it refuses."""
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for cls in CLASSES:
        try:
            found[cls.__name__] = sharded(cls, mesh)
        except OptimplugError as error:
            found[cls.__name__] = str(error)
    return found


@pytest.fixture(scope="module")
def learnt():
    return in_two_processes(learn_sharded)


@pytest.mark.slow
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_two_processes(cls, learnt):
    refusal = row_of(cls).refuses.get("two processes")
    for found in learnt:
        if refusal is not None:
            assert re.search(refusal.message, found[cls.__name__])
        else:
            assert_close(found[cls.__name__], sharded(cls))
