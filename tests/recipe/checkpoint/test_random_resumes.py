"""An unchanged run goes on bit for bit: any optimizer, any storage, from any update."""

import copy
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.optimizer_runs import ROWS
from support.resuming import through_file
from support.tensors import same_bits
from torch import nn

from optimplug import Horizon, Recipe, RecipeError
from optimplug.recipe.resolve import optimizer_names

TOTAL = 7
STORAGES = [
    {**state, **rounding}
    for state, rounding in itertools.product(
        [{}, {"state_dtype": "float32"}, {"state_dtype": "bfloat16"}, {"state_dtype": "8bit"},
         {"state_dtype": "8bit", "compact_state": True}],
        [{}, {"rounding": "stochastic", "rounding_seed": 3}, {"rounding": "kahan"}, {"rounding": "exact"}],
    )
]  # fmt: skip
SCHEDULES = [
    [],
    "cosine",
    [{"name": "LinearLR", "start_factor": 0.1, "for": 3},
     {"name": "ReduceLROnPlateau", "monitor": "eval_loss", "patience": 0, "factor": 0.5}],
]  # fmt: skip


def net(dtype):
    torch.manual_seed(0)
    # The matrix is large enough to be kept in 8 bits, its rows are no whole number of blocks.
    return nn.Sequential(nn.Linear(70, 60), nn.Linear(60, 3)).to(dtype)


def recipe_of(name, storage, schedule="cosine"):
    optimizer = {"name": name, **ROWS[name].options, **storage}
    if name == "Muon":
        optimizer["fallback"] = {"name": "AdamW", "lr": 0.01}
    alone = name == "LBFGS"  # it takes one group
    groups = [] if alone else [{"match": "1.*", "lr_scale": 0.5}]
    return {"optimizer": optimizer, "groups": groups, "schedule": schedule}


def allowed():
    """Return every optimizer with every storage that a recipe lets it have."""
    found = []
    for name, storage in itertools.product(optimizer_names(), STORAGES):
        try:
            Recipe(recipe_of(name, storage))
        except RecipeError:
            continue
        found.append((name, storage))
    return found


ALLOWED = allowed()


def test_every_optimizer_is_drawn_and_nearly_every_storage():
    assert {name for name, _ in ALLOWED} == {*optimizer_names()}
    assert len(ALLOWED) > 0.6 * len(optimizer_names()) * len(STORAGES)


def go(run, updates):
    for t in updates:
        generator = torch.Generator().manual_seed(t)
        grads = [
            torch.randn(p.shape, generator=generator).to(p.dtype) for p in run.model.parameters()
        ]

        def closure(run=run, grads=grads):
            for p, g in zip(run.model.parameters(), grads, strict=True):
                p.grad = (
                    g.to_sparse(1) if ROWS[run.recipe.spec.optimizer.name].sparse else g.clone()
                )
            return torch.tensor(1.0)

        needs = ROWS[run.recipe.spec.optimizer.name].closure
        run.train()
        if not needs:
            closure()
        run.step(closure if needs else None)
        run.eval()
        run.validated({"eval_loss": (t * 7) % 5})


def same(one, other):
    """Tell whether two states are the same in every bit, lists of tensors among them too."""
    if isinstance(one, torch.Tensor):
        return same_bits(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def check(of, schedule, dtype, k, policy):
    recipe = recipe_of(*of, schedule)
    whole = Recipe(recipe).start(net(dtype), Horizon(TOTAL, 3))
    go(whole, range(k))
    state = through_file(copy.deepcopy(whole.state_dict()))
    run = Recipe(recipe).start(net(dtype), Horizon(TOTAL, 3))
    run.model.load_state_dict(copy.deepcopy(whole.model.state_dict()))
    found = run.load_state_dict(state, resume=policy)
    assert found.is_exact, str(found)
    go(whole, range(k, TOTAL))
    go(run, range(k, TOTAL))
    assert whole.scheduler.get_last_lr() == run.scheduler.get_last_lr()
    for p, q in zip(whole.model.parameters(), run.model.parameters(), strict=True):
        assert same_bits(p.detach(), q.detach())
    one, other = (r.optimizer.state_dict()["state"] for r in (whole, run))
    assert same(one, other)


def drawn(count):
    def decorate(test):
        given_all = given(
            st.sampled_from(ALLOWED),
            st.sampled_from(SCHEDULES),
            st.sampled_from([torch.float32, torch.bfloat16]),
            st.integers(0, TOTAL),
            st.sampled_from(["exact", "adapt"]),
        )
        quiet = [HealthCheck.too_slow]
        shape = settings(
            max_examples=count, deadline=None, derandomize=True, suppress_health_check=quiet
        )
        return shape(given_all(test))

    return decorate


@drawn(8)
def test_a_few(of, schedule, dtype, k, policy):
    check(of, schedule, dtype, k, policy)


@pytest.mark.slow
@drawn(150)
def test_many(of, schedule, dtype, k, policy):
    check(of, schedule, dtype, k, policy)
