"""Which parameters step together, and what is refused before any of them does."""

from collections import defaultdict

import pytest
import torch

from optimplug import ArgumentError
from optimplug._core.optim.layout import Layout
from optimplug._core.optim.rule import Rule, StateSpec


class Whole(Rule):
    """A rule that divides by the norm of a tensor, and so must see all of it."""

    scope = "tensor"
    state = (StateSpec("total", shape=lambda p: (), dtype=torch.float64),)

    def coefficients(self, hyper, t):
        return {"lr": 0.1}

    def update(self, p, g, state, k):
        p.add_(g, alpha=-k["lr"])


def laid_out(p, rule, state):
    return Layout([{"params": [p]}], [torch.ones_like(p)], [rule], state, count_on_device=False)


def test_a_state_may_have_a_shape_and_a_type_of_its_own():
    p, state = torch.nn.Parameter(torch.ones(3, 4)), defaultdict(dict)
    laid_out(p, Whole(), state)
    assert state[p]["total"].shape == ()
    assert state[p]["total"].dtype == torch.float64


def test_a_shard_is_refused_where_the_whole_is_needed():
    p, state = torch.nn.Parameter(torch.ones(3, 4)), defaultdict(dict)
    p.to_local = lambda: p  # what a DTensor has
    with pytest.raises(ArgumentError, match="Whole must see a whole tensor at once"):
        laid_out(p, Whole(), state)
    assert not state


def test_a_state_begins_as_its_spec_says():
    p = torch.nn.Parameter(torch.full((2, 3), 5.0, dtype=torch.bfloat16))
    specs = [
        (StateSpec("zeros"), torch.zeros(2, 3, dtype=torch.bfloat16)),
        (StateSpec("z", init=torch.clone), torch.full((2, 3), 5.0, dtype=torch.bfloat16)),
        (StateSpec("wide", dtype=torch.float32), torch.zeros(2, 3)),
        (
            StateSpec("rows", shape=lambda p: (p.shape[0],), init=torch.ones_like),
            torch.ones(2).bfloat16(),
        ),
    ]
    for spec, expected in specs:
        found = spec.create(p.detach())
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
