"""Moments go on however they were kept, and are kept here."""

import copy

import pytest
import torch
from support.resuming import through_file
from torch import nn

from optimplug import Horizon, Recipe, StateError

KINDS = {
    "plain": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "8bit": {"state_dtype": "8bit"},
    "codes": {"state_dtype": "8bit", "compact_state": True},
    "exact": {"rounding": "exact"},
    "kahan": {"rounding": "kahan"},
    "stochastic": {"rounding": "stochastic", "rounding_seed": 3},
}
BITS_8 = ("8bit", "codes")


def started(kind, rules=({"match": "1.*", "weight_decay": 0.2},)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 2)).bfloat16()
    optimizer = {"name": "AdamW", "lr": 0.01, **KINDS[kind]}
    recipe = Recipe({"optimizer": optimizer, "groups": list(rules), "schedule": "cosine"})
    return recipe.start(model, Horizon(total_steps=12))


def go(run, updates):
    for t in updates:
        run.model(torch.full((4, 80), 0.1 * (t + 1)).bfloat16()).square().sum().backward()
        run.step()


def stopped(kind):
    run = started(kind)
    go(run, range(6))
    return run


@pytest.mark.parametrize("policy", ["exact", "adapt"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_one_goes_on_bit_for_bit(kind, policy):
    whole, first, run = started(kind), stopped(kind), started(kind)
    go(whole, range(12))
    run.model.load_state_dict(first.model.state_dict())
    state = through_file(copy.deepcopy(first.state_dict()))
    assert run.load_state_dict(state, resume=policy).is_exact
    go(run, range(6, 12))
    pairs = zip(run.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_another_one_is_a_difference_that_adapt_converts(before, after):
    state = through_file(copy.deepcopy(stopped(before).state_dict()))
    if before != after and not {before, after} <= {*BITS_8}:
        with pytest.raises(StateError, match=r"(rounding|state_dtype) of 0, 1 .* adapt"):
            started(after).load_state_dict(state)
    run = started(after, rules=[{"match": "*.bias", "weight_decay": 0.2}])
    found = run.load_state_dict(state, resume="adapt")
    assert len(found.moved) == 4
    go(run, range(6, 12))
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
