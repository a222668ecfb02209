"""The share of low-precision weights that an update leaves where they are, by truths of hand."""

import pytest
import torch
from support.labels import label
from support.processes import in_two_processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from optimplug import Horizon, Recipe
from optimplug.callbacks.lost_updates import LostUpdates
from optimplug.optim import SGD, AdamW, Lion, MultiOptimizer, SparseAdam

LOST = 1e-4
"""A rate that moves no bfloat16 of 0.5, where its gradient or its sign is 1."""


def parameter(*values, dtype=torch.bfloat16):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def measured(optimizer, gradient=1.0):
    """Step once, and return what was lost."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, gradient)
    lost = LostUpdates()
    lost.watch(optimizer)
    optimizer.step()
    return lost.take()


TRUTHS = [
    (torch.optim.SGD, {"lr": LOST}, 1.0),
    (SGD, {"lr": LOST}, 1.0),
    (SGD, {"lr": 0.1}, 0.0),
    (AdamW, {"lr": LOST}, 1.0),
    (AdamW, {"lr": LOST, "foreach": False}, 1.0),
    (AdamW, {"lr": LOST, "state_dtype": "float32"}, 1.0),
    (AdamW, {"lr": LOST, "rounding": "exact"}, 0.0),
    (AdamW, {"lr": LOST, "rounding": "kahan"}, 0.0),
    (Lion, {"lr": LOST, "rounding": "exact"}, 0.0),
    (AdamW, {"lr": 1e-12, "rounding": "exact", "weight_decay": 0.0}, 1.0),  # float32 loses it too
    (AdamW, {"lr": 0.0}, 0.0),  # there is no update to lose
]


@pytest.mark.parametrize(("cls", "settings", "share"), TRUTHS, ids=label)
def test_a_weight_of_a_half_and_a_rate_that_is_too_small(cls, settings, share):
    optimizer = cls([parameter(0.5, 0.5)], **settings)
    assert measured(optimizer) == ({"0": share}, share)
    assert measured(optimizer) == ({"0": share}, share)  # its state is there already


def test_drawn_weights_count_as_they_are_seen():
    p = nn.Parameter(torch.full((10_000,), 0.5, dtype=torch.bfloat16))
    # A quarter of what is between 0.5 and the bfloat16 below it, so that every fourth moves.
    found = measured(SGD([p], lr=2**-11, rounding="stochastic"))
    assert found.together == pytest.approx(0.75, abs=0.03)
    assert found.together == pytest.approx((p == 0.5).float().mean().item())


def test_weight_decay_is_an_update_without_a_gradient():
    settings = {"lr": 1e-3, "weight_decay": 0.02}
    assert measured(AdamW([parameter(0.5, 0.0)], **settings), 0.0).together == 0.5
    assert measured(AdamW([parameter(0.5)], **settings, rounding="exact"), 0.0).together == 0.0
    assert measured(AdamW([parameter(0.5)], lr=1e-3, weight_decay=0.0), 0.0).together == 0.0


def test_each_group_has_its_share_and_all_have_it_by_their_sizes():
    groups = [
        {"params": [parameter(*[0.5] * 6)], "name": "body"},
        {"params": [parameter(0.5, 0.0)], "name": "head"},
        {"params": [parameter(0.5, dtype=torch.float32)], "name": "wide"},
    ]
    assert measured(SGD(groups, lr=LOST)) == ({"body": 1.0, "head": 0.5}, 7 / 8)


def test_float16_is_low_precision_too_and_without_any_there_is_nothing():
    assert measured(SGD([parameter(0.5, dtype=torch.float16)], lr=1e-5)).together == 1.0
    assert measured(SGD([parameter(0.5, dtype=torch.float32)], lr=1e-12)) == ({}, 0.0)


def test_of_a_large_parameter_a_sample_is_looked_at():
    values = torch.zeros(1000, 300, dtype=torch.bfloat16)
    values[:, 100:] = 0.5
    found = measured(SGD([nn.Parameter(values.t())], lr=LOST))
    assert found.together == pytest.approx(2 / 3, abs=0.01)


def test_what_takes_no_part_does_not_count():
    still, moving = parameter(0.5, 0.5), parameter(0.5)
    optimizer = SGD([still, moving], lr=LOST)
    moving.grad = torch.ones_like(moving)
    lost = LostUpdates()
    lost.watch(optimizer)
    optimizer.step()
    assert lost.take() == ({"0": 1.0}, 1.0)


def test_a_group_that_a_recipe_has_frozen_for_a_time_does_not_count():
    model = nn.ParameterList([parameter(0.5, 0.5), parameter(0.5)])
    rule = {"match": "0", "freeze": {"until": 1}}
    recipe = Recipe.load({"optimizer": {"name": "SGD", "lr": LOST}, "groups": [rule]})
    run = recipe.start(model, Horizon(total_steps=10))
    lost, found = LostUpdates(), []
    for _ in range(2):
        for p in model:
            p.grad = torch.ones_like(p)
        lost.watch(run.optimizer)  # its gradients are dropped after that
        run.step()
        found.append({*lost.take().groups})
    assert found == [{"1"}, {"0", "1"}]


SKIPS = [
    lambda p: AdamW([p], lr=LOST, skip_nonfinite=True),
    lambda p: Recipe.load(
        {"optimizer": {"name": "torch.optim.AdamW", "lr": LOST, "skip_nonfinite": True}}
    ).build_optimizer(nn.ParameterList([p])),
]


@pytest.mark.parametrize("build", SKIPS, ids=["ours", "another"])
def test_an_update_that_is_left_out_has_lost_nothing(build):
    optimizer = build(parameter(0.5))
    assert measured(optimizer, float("inf")) is None
    assert measured(optimizer).together == 1.0


@pytest.mark.parametrize("fused", [False, True])
def test_neither_has_one_that_a_scaler_skips(fused):
    p = parameter(0.5)
    optimizer = AdamW([p], lr=LOST, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    lost = LostUpdates()
    shares = []
    for value in (float("inf"), 1.0):
        scaler.scale(torch.zeros(())).item()
        p.grad = torch.full_like(p, value)
        lost.watch(optimizer)
        scaler.step(optimizer)
        scaler.update()
        shares.append(lost.take())
    assert shares == [None, ({"0": 1.0}, 1.0)]


CLEARED = {
    "to none": lambda optimizer, args, kwargs: optimizer.zero_grad(),
    "to zero": lambda optimizer, args, kwargs: optimizer.zero_grad(set_to_none=False),
}


@pytest.mark.parametrize("clear", CLEARED.values(), ids=CLEARED)
def test_gradients_that_a_hook_clears_after_the_step_are_looked_at_before(clear):
    optimizer = SGD([parameter(0.5, 0.0)], lr=LOST)
    optimizer.register_step_post_hook(clear)
    assert measured(optimizer) == ({"0": 0.5}, 0.5)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    lost = LostUpdates()
    lost.watch(optimizer)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2, dtype=torch.bfloat16)
    optimizer.step()
    optimizer.step()  # which nobody asked about
    assert lost.take() == ({"0": 0.5}, 0.5)


class ByItself(torch.optim.Optimizer):
    """Clears the gradients within its step."""

    def __init__(self, params):
        super().__init__(params, {"lr": LOST})

    def step(self, closure=None):
        self.zero_grad()


def test_where_all_gradients_are_gone_after_a_step_the_share_is_unknown():
    assert measured(ByItself([parameter(0.5)])) is None
    wide = ByItself([parameter(0.5, dtype=torch.float32)])
    assert measured(wide) == ({}, 0.0)  # which has nothing to lose


def test_a_step_that_is_not_watched_is_not_measured():
    optimizer = SGD([parameter(0.5)], lr=LOST)
    lost = LostUpdates()
    lost.watch(optimizer)
    assert lost.take() is None  # no step came
    assert not optimizer._optimizer_step_post_hooks
    optimizer.step()
    assert lost.take() is None


def test_several_optimizers_in_one_and_sparse_gradients():
    groups = [
        {"params": [parameter(0.5)], "optimizer": "Lion", "lr": LOST},
        {"params": [parameter(0.5)], "optimizer": "SGD", "lr": 0.1},
    ]
    assert measured(MultiOptimizer(groups)) == ({"0": 1.0, "1": 0.0}, 0.5)
    table = nn.Embedding(4, 2, sparse=True, dtype=torch.bfloat16)
    nn.init.constant_(table.weight, 0.5)
    optimizer = SparseAdam(table.parameters(), lr=LOST)
    table(torch.tensor([1])).sum().backward()
    lost = LostUpdates()
    lost.watch(optimizer)
    optimizer.step()
    assert lost.take().together == 0.25


def of_two():
    """Rows of 0.5 and of 0, of which each process has some."""
    mesh = init_device_mesh("cpu", (2,))
    values = torch.zeros(3, 4, dtype=torch.bfloat16)
    values[:2] = 0.5  # the first process has two rows, and the second one
    groups = [
        {"params": [nn.Parameter(distribute_tensor(values, mesh, [Shard(0)]))], "name": "cut"},
        {
            "params": [nn.Parameter(distribute_tensor(values, mesh, [Replicate()]))],
            "name": "copied",
        },
        {"params": [nn.Parameter(values[:2].clone())], "name": "plain"},
        # Of which the second process has nothing.
        {"params": [nn.Parameter(distribute_tensor(values[:1], mesh, [Shard(0)]))], "name": "row"},
    ]
    found = measured(SGD(groups, lr=LOST))
    return found.groups, found.together


@pytest.mark.slow
def test_the_share_of_what_is_sharded_is_that_of_the_whole():
    for groups, together in in_two_processes(of_two):
        assert groups == pytest.approx({"cut": 2 / 3, "copied": 2 / 3, "plain": 1.0, "row": 1.0})
        assert together == pytest.approx((8 + 8 + 8 + 4) / 36)
