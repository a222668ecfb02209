"""Rows of long tables: all are slow tests but a few, in which every value has its turn."""

from itertools import product
from random import Random

import pytest
from support.labels import label


def each_in_turn(*axes, least=0, among=None):
    """Every combination of values, one of each axis, as :func:`few_quick` marks them."""
    return few_quick(product(*axes), least, among)


def few_quick(rows, least=0, among=None):
    """Rows for ``parametrize``, slow but for a few that have each value of each column between them.

    Quick are ``least`` at the least, all of them with a first value that is ``among`` some. A value
    that is a tuple is several arguments.
    """
    rows, met, quick = list(rows), set(), set()
    # In no order, or the same values would always stand beside each other.
    for i in Random(0).sample(range(len(rows)), len(rows)):  # noqa: S311
        if among is not None and rows[i][0] not in among:
            continue
        values = {(column, label(value)) for column, value in enumerate(rows[i])}
        if len(quick) < least or not values <= met:
            quick.add(i)
            met |= values
    return [
        pytest.param(*arguments(row), marks=() if i in quick else pytest.mark.slow)
        for i, row in enumerate(rows)
    ]


def arguments(row):
    for value in row:
        yield from value if isinstance(value, tuple) else (value,)
