"""Rules for whole tensors as Triton kernels; ``test_triton.py`` runs this file as it does the others."""

import math

import pytest
import torch
from support.labels import label
from support.tensors import descend, same_bits
from support.triton_runs import (
    DEVICE,
    INTERPRETED,
    NEEDS_A_DEVICE,
    WITHIN,
    assert_alike,
    assert_near,
    flat,
    pair,
    parameters,
    run_both,
)

from optimplug._core.optim.executions.triton.whole import tables
from optimplug.optim import (
    CAME,
    LAMB,
    Adafactor,
    AdamW,
    MultiOptimizer,
    Prodigy,
    StableAdamW,
    TransformersAdafactor,
)

pytestmark = NEEDS_A_DEVICE

SHAPES = [(1100,), (2, 5, 2), (10, 140), ()]
"""More than a program, and not all of the last; planes; more columns than a program has."""
EMPTY = [(0,), (3, 0), (0, 3), (2, 0, 4), (1,), (7,)]
LARGE = [(100, 40), (20_000,), (3, 20, 300), (2, 1500), (70, 3), (9, 3, 3)]
"""Among them planes whose rows are cut into three sections, of several blocks of rows each."""
STABLE, LAMB_, PRODIGY = (StableAdamW, {"weight_decay": 0.1}), (LAMB, {"lr": 1e-2}), (Prodigy, {})
FACTORED = (Adafactor, {"weight_decay": 0.1})
CONFIDENT = (CAME, {"weight_decay": 0.1, "lr": 1e-3})
FEW = [STABLE, LAMB_, PRODIGY, FACTORED, CONFIDENT]
MORE = [
    (StableAdamW, {"maximize": True}),
    (LAMB, {"weight_decay": 0.0, "always_adapt": True, "trust_clip": True}),
    (Prodigy, {"weight_decay": 0.1, "decouple": False, "betas": (0.0, 0.9)}),
    (Adafactor, {"maximize": True, "eps": (1e-10, 1e-2), "d": 2.0}),
    (TransformersAdafactor, {"relative_step": False, "scale_parameter": False, "lr": 1e-2}),
    (TransformersAdafactor, {"relative_step": False, "lr": 1e-2, "beta1": 0.9}),
    (TransformersAdafactor, {"relative_step": False, "lr": 1e-2, "weight_decay": 0.1}),
]
EVERY = [*FEW, *(pytest.param(*row, marks=pytest.mark.slow) for row in MORE)]
ALL = [*FEW, *MORE]
TIGHT = {torch.float32: 5 * WITHIN[torch.float32], torch.float64: WITHIN[torch.float64]}
"""A norm that is added up in another order is off by a last bit, and with it all that follow."""
FLAT, TILED = ["pass0", "add_up", "pass1"], ["pass0", "add_up", "planes1", "pass1", "add_up"]


@pytest.mark.parametrize(("cls", "options"), EVERY, ids=label)
def test_a_run_is_that_of_the_loop(cls, options, launches):
    ours, loop = run_both(cls, torch.float32, 2, SHAPES, **options)
    assert {"pass0", "add_up"} <= set(launches)
    assert_near(ours, loop, TIGHT[torch.float32])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "shapes", "clip"),
    [(torch.float64, SHAPES, {"max_grad_norm": 0.5}), (torch.float32, LARGE, {})],
    ids=["clipped", "large"],
)
@pytest.mark.parametrize(("cls", "options"), ALL, ids=label)
def test_so_it_is_in_every_size(cls, options, dtype, shapes, clip, launches, monkeypatch):
    if shapes is LARGE:
        monkeypatch.setattr(tables, "_SECTIONS", 3)
        monkeypatch.setattr(tables, "_PROGRAMS", 1)
    ours, loop = run_both(cls, dtype, 3, shapes, **options, **clip)
    assert set(launches) >= {"pass0", "add_up", *(["norm"] if clip else [])}
    assert_near(ours, loop, TIGHT[dtype])


@pytest.mark.parametrize(("cls", "options"), [FACTORED, STABLE], ids=label)
def test_tensors_without_elements_are_no_trouble(cls, options, launches):
    ours, loop = run_both(cls, torch.float64, 2, EMPTY, **options)
    assert "pass0" in launches
    assert_near(ours, loop, TIGHT[torch.float64])
    descend(cls(parameters([(0,), (3, 0)]), **options), 1)


@pytest.mark.parametrize(
    ("cls", "options", "rounding"),
    [
        (*STABLE, "exact"),
        *(
            pytest.param(*row, rounding, marks=pytest.mark.slow)
            for row in FEW
            for rounding in ("nearest", "exact", "kahan", "stochastic")
        ),
    ],
    ids=label,
)
def test_narrow_weights_are_those_of_the_loop(cls, options, rounding, launches):
    storage = {"rounding": rounding, "state_dtype": "bfloat16" if rounding == "nearest" else None}
    ours, loop = run_both(cls, torch.bfloat16, 2, SHAPES, **options, **storage)
    assert "pass0" in launches
    assert_near(ours, loop, 2**-7, 1e-5)


@pytest.mark.parametrize(
    ("cls", "options"),
    [STABLE, *(pytest.param(*row, marks=pytest.mark.slow) for row in (LAMB_, PRODIGY, FACTORED))],
    ids=label,
)
def test_moments_in_eight_bits_are_those_of_the_loop(cls, options, launches, monkeypatch):
    monkeypatch.setattr("optimplug._core.optim.storage.stored.SMALLEST", 100)
    ours, loop = pair(cls, torch.float32, [(1500,), (30, 40)], **options, state_dtype="8bit")
    for optimizer in (ours, loop):
        descend(optimizer, 2, skip=False)
    assert launches[:2] == FLAT[:2]
    for p, q in zip(flat(ours), flat(loop), strict=True):
        assert ((p - q).abs() > 1e-5 * (1 + q.abs())).double().mean() < 0.005
        for name in (name for name in loop.state[q] if name.endswith("_codes")):
            off = (ours.state[p][name].int() - loop.state[q][name].int()).abs()
            assert off.max() <= 1
            assert off.double().mean() < 0.002


def test_codes_are_no_rows_and_columns_and_take_another_way(launches, monkeypatch):
    monkeypatch.setattr("optimplug._core.optim.storage.stored.SMALLEST", 100)
    ours, loop = run_both(CAME, torch.float32, 1, [(30, 40)], state_dtype="8bit")
    assert launches == []
    assert_near(ours, loop, 1e-5)


COUNTED = [
    (*STABLE, (3,), FLAT),
    (*LAMB_, (3,), FLAT),
    (*PRODIGY, (3,), ["pass0", "add_up", "last"]),
    (*FACTORED, (3,), FLAT),
    (*FACTORED, (3, 2), [*TILED, "pass2", "last"]),
    (*CONFIDENT, (3, 2), [*TILED, "pass2", "add_up", "planes3", "pass3", "last"]),
]


@pytest.mark.parametrize(("cls", "options", "shape", "expected"), COUNTED, ids=label)
def test_the_launches_of_a_step_do_not_depend_on_the_number_of_groups(
    cls, options, shape, expected, planned
):
    for count in (1, 200):
        params = parameters([shape] * count)
        apart = [{"params": [p], "weight_decay": 0.1 + 1e-3 * i} for i, p in enumerate(params)]
        optimizer = cls(apart, **{**options, "max_grad_norm": 0.5})
        for p in params:
            p.grad = torch.ones_like(p)
        if cls is Prodigy:  # what it measures is read, and nothing has been measured
            optimizer.max_grad_norm = None
        del planned[:]
        optimizer.step()
        assert planned == [*(["norm"] if cls is not Prodigy else []), *expected]


@pytest.mark.parametrize(
    "how", ["skip_nonfinite", pytest.param("found_inf", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("cls", "options"),
    [FACTORED, PRODIGY, pytest.param(*CONFIDENT, marks=pytest.mark.slow)],
    ids=label,
)
def test_a_step_that_is_skipped_has_not_been(cls, options, how, launches):
    """Nor are there traces in the means of rows and columns, of tensors without elements either."""

    def run(wrong):
        optimizer = cls(parameters([(4, 5), (0, 3), (7,)]), skip_nonfinite=True, **options)
        for number, is_wrong in enumerate(wrong):
            generator = torch.Generator().manual_seed(number - sum(wrong[:number]))
            for p in flat(optimizer):
                p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
            if is_wrong and how == "skip_nonfinite":
                flat(optimizer)[0].grad[1, 1] = math.nan
            elif how == "found_inf":
                optimizer.found_inf = torch.tensor(float(is_wrong), device=DEVICE)
            optimizer.step()
        return optimizer

    ours, plain = run([0, 1, 0]), run([0, 0])
    assert launches.count("pass0") == (5 if cls is Prodigy else 10)  # nobody has waited to know
    for p, q in zip(flat(ours), flat(plain), strict=True):
        assert same_bits(p, q)
        for name, value in plain.state[q].items():
            assert same_bits(ours.state[p][name], value)
    assert ours.state_dict()["param_groups"] == plain.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("cls", "options"), [STABLE, pytest.param(*FACTORED, marks=pytest.mark.slow)], ids=label
)
def test_it_is_the_same_every_time(cls, options):
    found = [flat(run_both(cls, torch.float32, 1, SHAPES, **options)[0]) for _ in range(2)]
    assert all(map(same_bits, *found))


@pytest.mark.parametrize("kind", ["one element from its start", "transposed"])
@pytest.mark.parametrize(("cls", "options"), [STABLE, FACTORED], ids=label)
def test_memory_of_every_kind(cls, options, kind, launches):
    found = []
    for choice in ({}, {"foreach": False}):
        memory = parameters([(1500,)])[0].detach()
        at = memory[1:201].view(10, 20)
        p = torch.nn.Parameter(at if kind != "transposed" else at.t())
        like = p.detach().clone(memory_format=torch.preserve_format)
        optimizer = cls([p], **options, **choice)
        for step in range(2):
            p.grad = like * (step + 1)
            optimizer.step()
        found.append(p.detach())
    assert ("pass0" in launches) == (kind != "transposed")
    assert_alike(*found, 1e-5)


def test_several_rules_have_one_norm_and_a_few_launches_each(launches):
    def build(**choice):
        params = parameters([(3, 4), (7,), (1100,)])
        named = [
            {"params": params[:1], "optimizer": "LAMB"},
            {"params": params[1:2], "optimizer": "AdamW"},
            {"params": params[2:], "optimizer": "StableAdamW"},
        ]
        return MultiOptimizer(named, max_grad_norm=0.5, **choice)

    ours, loop = build(), build(foreach=False)
    for optimizer in (ours, loop):
        descend(optimizer, 2, skip=False)
    assert sorted(launches) == sorted(["norm", "update", *FLAT, *FLAT] * 2)
    assert launches[0] == "norm"
    assert_near(ours, loop, TIGHT[torch.float32])


def test_a_gradient_that_is_not_finite_makes_a_tensor_so_and_no_other():
    ours, loop = pair(StableAdamW, torch.float32, [(30,), (40,)])
    for optimizer in (ours, loop):
        for p in flat(optimizer):
            p.grad = torch.ones_like(p)
        flat(optimizer)[0].grad[3] = math.inf
        optimizer.step()
    for p, q in zip(flat(ours), flat(loop), strict=True):
        torch.testing.assert_close(p, q, equal_nan=True)
    assert not INTERPRETED or flat(ours)[1].isfinite().all()


def test_elements_and_whole_tensors_are_told_apart(launches):
    """The same shapes, one rule after the other: nothing of a batch is taken for another's."""
    params = parameters([(1100,), (3, 4)])
    for cls in (AdamW, LAMB, AdamW, StableAdamW):
        descend(cls(params, lr=1e-3), 1, skip=False)
    assert launches == ["update", *FLAT, "update", *FLAT]
