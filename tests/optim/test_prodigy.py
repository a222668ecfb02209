"""Prodigy: the reference's where that takes the groups, and a scale for each where it does not."""

import contextlib
import copy
import io

import prodigyopt
import pytest
import torch
from support.labels import label
from support.tensors import parameters, same_bits

from optimplug import ArgumentError, StateError
from optimplug.optim import Prodigy

SHAPES = ((4, 5), (7,), (3, 2, 2), (6,), ())


def build(cls, dtype=torch.float64, **options):
    params = parameters(SHAPES, dtype)
    groups = [{"params": params[:2], "weight_decay": 0.0}, {"params": params[2:]}]
    with contextlib.redirect_stdout(io.StringIO()):  # the reference prints that it decays
        return cls(groups, **{"weight_decay": 0.1, **options})


def run(optimizer, steps=100):
    """Steps towards 0, with noise, of which a parameter misses one now and then."""
    generator = torch.Generator().manual_seed(0)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        for i, p in enumerate(params):
            noise = torch.randn(p.shape, generator=generator).to(p.dtype)
            p.grad = None if (step + i) % 5 == 0 else p.detach() + 0.1 * noise
        optimizer.step()
    return [p.detach().clone() for p in params]


OPTIONS = [
    {},
    {"use_bias_correction": True, "beta3": 0.9},
    {"safeguard_warmup": True, "d_coef": 0.5},
    {"growth_rate": 1.02, "betas": (0.8, 0.99)},
    {"decouple": False},
    {"d0": 1e-3, "lr": 0.5},
]


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("options", OPTIONS, ids=label)
def test_it_is_the_reference(options, foreach):
    # In float64: what is found feeds back, and makes roundings of float32 grow. Without eps: beside it
    # stands the scale of this step, as in the paper, and in the reference the next.
    options = {**options, "eps": 1e-100}
    ours, theirs = build(Prodigy, foreach=foreach, **options), build(prodigyopt.Prodigy, **options)
    torch.testing.assert_close(run(ours), run(theirs), rtol=1e-6, atol=1e-9)
    for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert a["k"] == b["k"]
        for name in ("d", "d_max", "d_numerator"):
            assert a[name] == pytest.approx(b[name], rel=1e-6)


def test_float32_finds_what_the_reference_finds():
    found, expected = build(Prodigy, torch.float32), build(prodigyopt.Prodigy, torch.float32)
    torch.testing.assert_close(run(found), run(expected), rtol=1e-3, atol=1e-4)
    assert found.param_groups[0]["d"] == pytest.approx(expected.param_groups[0]["d"], rel=1e-5)


def test_groups_with_rates_of_their_own_have_scales_of_their_own():
    together = build(Prodigy)
    together.param_groups[0]["lr"] = 0.5
    apart = [Prodigy([{**group}]) for group in build(Prodigy).param_groups]
    apart[0].param_groups[0]["lr"] = 0.5
    generator = torch.Generator().manual_seed(0)
    params = [p for group in together.param_groups for p in group["params"]]
    others = [p for o in apart for p in o.param_groups[0]["params"]]
    for _ in range(20):
        for p, q in zip(params, others, strict=True):
            p.grad = p.detach() + 0.1 * torch.randn(p.shape, generator=generator).double()
            q.grad = p.grad.clone()
        for optimizer in (together, *apart):
            optimizer.step()
    assert all(map(same_bits, params, others))
    scales = [group["d"] for group in together.param_groups]
    assert scales == [o.param_groups[0]["d"] for o in apart]
    assert scales[0] != scales[1]


def test_groups_alike_share_the_scale_that_all_their_parameters_find():
    ours = build(Prodigy)
    run(ours, 10)
    assert ours.param_groups[0]["d"] == ours.param_groups[1]["d"] > 1e-6


def test_without_momentum_a_step_has_one_scale():
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    ours = Prodigy([p], betas=(0.0, 0.5), d0=0.5, eps=0.0)
    p.grad = torch.ones(1, dtype=torch.float64)
    ours.step()  # v = 0.5 x 0.25, so the step is 0.5 x 0.5 / sqrt(0.125)
    assert p.item() == pytest.approx(1 - 0.25 / 0.125**0.5)
    assert "exp_avg" not in ours.state[p]


def test_the_references_states_load():
    theirs = build(prodigyopt.Prodigy)
    with torch.no_grad():
        theirs.param_groups[0]["params"][0].zero_()  # of which it keeps one number
    run(theirs, 10)
    ours = build(Prodigy)
    ours.load_state_dict(theirs.state_dict())
    for a, b in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert all(a[name].shape == a["exp_avg"].shape for name in ("s", "p0"))
        torch.testing.assert_close(a["s"].flatten(), b["s"])
    assert ours.param_groups[0]["d"] == theirs.param_groups[0]["d"]
    run(ours, 1)


def test_a_run_goes_on_bit_for_bit():
    ours = build(Prodigy)
    run(ours, 10)
    resumed = build(Prodigy)
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    weights = [p for group in ours.param_groups for p in group["params"]]
    with torch.no_grad():
        for group in resumed.param_groups:
            for p in group["params"]:
                p.copy_(weights.pop(0))
    assert all(map(same_bits, run(ours, 5), run(resumed, 5)))


def test_gradients_of_0_teach_nothing():
    ours = build(Prodigy)
    for group in ours.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    ours.step()
    assert [(group["d"], group["k"]) for group in ours.param_groups] == [(1e-6, 0)] * 2


def test_a_skipped_step_leaves_the_scale():
    ours = build(Prodigy, skip_nonfinite=True)
    run(ours, 3)
    before = [dict(group, params=None) for group in ours.param_groups]
    ours.param_groups[0]["params"][0].grad = torch.full((4, 5), torch.inf, dtype=torch.float64)
    ours.step()
    assert [dict(group, params=None) for group in ours.param_groups] == before


def test_a_group_begins_with_its_own_first_scale():
    ours = Prodigy([{"params": parameters(SHAPES[:1]), "d0": 1e-4}], d0=1e-6)
    assert ours.param_groups[0]["d"] == ours.param_groups[0]["d_max"] == 1e-4


@pytest.mark.parametrize("bad", ["x", -1, float("nan"), None])
@pytest.mark.parametrize("key", ["d", "d_max", "k"])
def test_a_state_that_has_learnt_nonsense_is_refused(key, bad):
    state = build(Prodigy).state_dict()
    state["param_groups"][0][key] = bad
    with pytest.raises(StateError, match=rf"param_groups\[0\]: {key} must be"):
        build(Prodigy).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"d0": 0.0}, "Invalid d0: 0.0; must be > 0"),
        ({"d_coef": 0.0}, "Invalid d_coef: 0.0; must be > 0"),
        ({"growth_rate": 0.5}, "Invalid growth_rate: 0.5; must be >= 1"),
        ({"beta3": 1.0}, "Invalid beta3: 1.0; must be in"),
        ({"lr": -1.0}, "Invalid learning rate"),
    ],
    ids=label,
)
def test_values_that_break_their_rule(options, error):
    with pytest.raises(ArgumentError, match=error):
        Prodigy(parameters(SHAPES), **options)


def test_groups_alike_share_their_scale_although_one_misses_a_gradient():
    ours, theirs = build(Prodigy, eps=1e-100), build(prodigyopt.Prodigy, eps=1e-100)
    for optimizer in (ours, theirs):
        generator = torch.Generator().manual_seed(0)
        for step in range(20):
            for i, group in enumerate(optimizer.param_groups):
                for p in group["params"]:
                    noise = torch.randn(p.shape, generator=generator).double()
                    p.grad = None if i == 1 and step in (0, 7) else p.detach() + 0.1 * noise
            optimizer.step()
    found, expected = ([(g["d"], g["k"]) for g in o.param_groups] for o in (ours, theirs))
    assert found[0] == found[1]
    assert found[0] == pytest.approx(expected[0], rel=1e-6)


def test_rates_that_are_nearly_the_same_are_not():
    def groups(*rates):
        params = parameters(((3,), (4,)), torch.float64)
        return [{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)]

    tensors = [torch.tensor(r, dtype=torch.float64) for r in (1.00001, 1.00002)]
    for rates in ((1.00001, 1.00002), tensors):
        ours = Prodigy(groups(*rates))
        run(ours, 10)
        assert ours.param_groups[0]["d"] != ours.param_groups[1]["d"]
