"""Weights in a storage of their own under schedule-free optimizers, which change them by mode."""

import pytest
import torch
from support.labels import label
from support.optimizer_runs import flat, stored
from support.rows import each_in_turn
from support.tensors import descend, parameters, same_bits
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from optimplug._core.optim.executions.bits import joined
from optimplug.optim import AdamW, MultiOptimizer, ScheduleFreeAdamW, ScheduleFreeSGD

NARROW = torch.bfloat16
CHOICES = [{}, {"foreach": True}, {"foreach": False}]
ROUNDINGS = ["exact", "kahan", "stochastic"]
CASES = [
    (ScheduleFreeAdamW, {"lr": 0.01}),
    (ScheduleFreeAdamW, {"lr": 0.01, "betas": (0.6, 0.99), "weight_decay": 0.1, "warmup_steps": 9}),
    (ScheduleFreeSGD, {"lr": 0.05, "weight_decay": 0.1}),
]


def values(optimizer):
    """What the weights stand for: in float32, with what is kept beside them."""
    return [value_of(p, optimizer.state.get(p, {})) for p in flat(optimizer)]


def value_of(p, kept):
    plain = p.detach().float()
    if "remainder" in kept:
        return joined(plain, kept["remainder"].float())
    return plain + kept["compensation"].float() if "compensation" in kept else plain


def trained(optimizer, steps, seed=2):
    optimizer.train()
    descend(optimizer, steps, seed=seed, rounding=NARROW)
    return optimizer


def build(cls, options, dtype=NARROW, shapes=((3, 4), (7,), (5, 5, 2), ())):
    params = [torch.nn.Parameter(p.detach().to(dtype)) for p in parameters(shapes, NARROW)]
    return cls([{"params": params[:1]}, {"params": params[1:]}], **options)


@pytest.mark.parametrize(("cls", "options", "choice"), each_in_turn(CASES, CHOICES), ids=label)
def test_exact_weights_of_both_modes_are_those_of_float32_bit_for_bit(cls, options, choice):
    ours = build(cls, {**options, **choice, "rounding": "exact"})
    wide = build(cls, {**options, **choice}, torch.float32)
    for seed in range(20):
        for optimizer in (ours, wide):
            trained(optimizer, 10, seed)
        assert all(map(same_bits, values(ours), values(wide)))
        for optimizer in (ours, wide):
            optimizer.eval()
        assert all(map(same_bits, values(ours), values(wide)))
        assert all(p.dtype == NARROW for p in flat(ours))
    for p, q in zip(flat(ours), flat(wide), strict=True):
        assert all(same_bits(ours.state[p][name], value) for name, value in wide.state[q].items())


@pytest.mark.parametrize(
    ("cls", "options", "rounding", "most"),
    each_in_turn(CASES, [("kahan", 1e-6), ("stochastic", 1e-3)]),
    ids=label,
)
def test_the_mean_stays_through_many_changes_of_the_mode(cls, options, rounding, most):
    # Each weight of about 1 is drawn 200 times, off by 1.5e-3 (standard deviation), their mean by
    # 2e-4: 1e-3 is 5 of them.
    ours = trained(build(cls, {**options, "rounding": rounding}, shapes=((100, 100), (2,))), 7)
    before = values(ours)[0]
    for _ in range(100):
        ours.eval()
        ours.train()
    moved = values(ours)[0] - before
    assert abs(moved.mean().item()) < most
    assert moved.abs().max() < 3e4 * most * before.abs().max()
    assert not torch.equal(moved, torch.zeros_like(moved))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("cls", [ScheduleFreeAdamW, ScheduleFreeSGD])
def test_weights_in_place_are_near_those_of_float32(cls, rounding):
    ours = build(cls, {"lr": 0.01, "rounding": rounding})
    wide = build(cls, {"lr": 0.01}, torch.float32)
    for seed in range(3):
        for optimizer in (ours, wide):
            trained(optimizer, 10, seed).eval()
        for p, q in zip(flat(ours), flat(wide), strict=True):
            torch.testing.assert_close(p.float(), q, rtol=0.06, atol=0.06)


@pytest.mark.parametrize(
    ("cls", "rounding", "state_dtype", "mode"),
    each_in_turn(
        [ScheduleFreeAdamW, ScheduleFreeSGD],
        ["nearest", *ROUNDINGS],
        [None, "float32", "bfloat16"],
        ["train", "eval"],
        least=12,
    ),
    ids=label,
)
def test_a_run_saved_in_either_mode_goes_on_bit_for_bit(cls, rounding, state_dtype, mode):
    options = {"lr": 0.01, "rounding": rounding, "state_dtype": state_dtype}
    whole = trained(build(cls, options), 3)
    getattr(whole, mode)()
    resumed = build(cls, options)
    with torch.no_grad():
        for p, q in zip(flat(resumed), flat(whole), strict=True):
            p.copy_(q)
    resumed.load_state_dict(stored(whole.state_dict()))
    for optimizer in (whole, resumed):
        trained(optimizer, 4, seed=7).eval()
    assert all(map(same_bits, flat(whole), flat(resumed)))
    assert all(map(same_bits, values(whole), values(resumed)))


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_the_end_of_the_way_is_no_moment(state_dtype):
    ours = trained(build(ScheduleFreeAdamW, {"state_dtype": state_dtype}), 3)
    kept = ours.state[flat(ours)[0]]
    assert kept["z"].dtype == torch.float32
    assert kept["exp_avg_sq"].dtype == getattr(torch, state_dtype)


def test_the_end_of_the_way_moves_under_small_updates_though_the_weights_are_narrow():
    w = torch.nn.Parameter(torch.full((3,), 1.0, dtype=NARROW))
    ours = ScheduleFreeSGD([w], lr=1e-4, rounding="exact")
    ours.train()
    for _ in range(100):
        w.grad = torch.ones_like(w)
        ours.step()
    torch.testing.assert_close(ours.state[w]["z"], torch.full((3,), 1 - 1e-2))


def test_only_a_group_in_the_other_mode_moves_and_counts_it():
    ours = trained(build(ScheduleFreeAdamW, {"rounding": "stochastic"}), 3)
    ours.train()
    before = [group["rounding_step"] for group in ours.param_groups]
    assert before == [2, 3]  # the first one's parameter had no gradient at first
    ours.eval()
    ours.eval()
    assert [group["rounding_step"] for group in ours.param_groups] == [3, 4]


def test_a_change_of_the_mode_leaves_what_has_not_begun():
    ours = build(ScheduleFreeAdamW, {"rounding": "exact"})
    before = [p.detach().clone() for p in flat(ours)]
    ours.train()
    ours.eval()
    assert not ours.state
    assert all(map(same_bits, before, flat(ours)))


def test_modes_change_where_autograd_is_off_for_good():
    ours = trained(build(ScheduleFreeAdamW, {}), 3)
    for group in ours.param_groups:
        group["rounding"] = "exact"  # so that a remainder begins there
    with torch.inference_mode():
        ours.eval()
    trained(ours, 2)
    assert all("remainder" in ours.state[p] for p in flat(ours))


def test_one_of_several_optimizers_changes_its_mode():
    one, other = parameters([(3,), (4,)], NARROW)
    ours = MultiOptimizer(
        [
            {"params": [one], "optimizer": "ScheduleFreeSGD", "lr": 0.1, "rounding": "exact"},
            {"params": [other], "optimizer": "AdamW", "rounding": "exact"},
        ]
    )
    twin = AdamW([torch.nn.Parameter(other.detach().clone())], rounding="exact")
    alone = ScheduleFreeSGD([torch.nn.Parameter(one.detach().clone())], lr=0.1, rounding="exact")
    for step in range(3):
        for optimizer in (ours, alone):
            optimizer.train()
        for p, q in zip(flat(ours), [*flat(alone), *flat(twin)], strict=True):
            p.grad = torch.full_like(p, 1.0 + step)
            q.grad = p.grad.clone()
        for optimizer in (ours, alone, twin):
            optimizer.step()
        for optimizer in (ours, alone):
            optimizer.eval()
        assert all(map(same_bits, values(ours), [*values(alone), *values(twin)]))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_sharded_weights_change_their_mode_as_plain_ones(mesh, rounding):
    plain = parameters(dtype=NARROW)
    forms = [[Shard(0)], [Replicate()], [Shard(1)], [Replicate()]]
    placed = [
        torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh, form))
        for p, form in zip(plain, forms, strict=True)
    ]
    ours, theirs = (ScheduleFreeAdamW(ps, rounding=rounding) for ps in (placed, plain))
    for _ in range(3):
        for p, q, form in zip(placed, plain, forms, strict=True):
            q.grad = torch.ones_like(q)
            p.grad = distribute_tensor(q.grad.clone(), mesh, form)
        for optimizer in (ours, theirs):
            optimizer.train()
            optimizer.step()
            optimizer.eval()
    for p, q in zip(placed, plain, strict=True):
        assert same_bits(p.full_tensor().detach(), q.detach())
