"""What holds for every optimizer; where something does not, the optimizer says so."""

import pytest
from support.laws import LAWS, ROWS, choices, public, row_of

from optimplug import OptimplugError
from optimplug.recipe.resolve import optimizer_names

CLASSES = public()


def test_every_optimizer_is_under_the_laws():
    assert ROWS.keys() == {cls.__name__ for cls in CLASSES} == set(optimizer_names())
    for row in ROWS.values():
        assert row.refuses.keys() <= LAWS.keys()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_law(cls, law):
    refusal = row_of(cls).refuses.get(law)
    for choice in choices(cls):
        if refusal is None:
            LAWS[law](cls, **choice)
            continue
        with pytest.raises((OptimplugError, TypeError), match=refusal.message):
            LAWS[law](cls, **choice)
