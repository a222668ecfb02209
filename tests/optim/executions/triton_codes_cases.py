"""Moments in eight bits in a Triton kernel; ``test_triton.py`` runs this file as it does the others."""

import math
from dataclasses import dataclass

import pytest
import torch
from support.labels import label
from support.tensors import descend, same_bits
from support.triton_runs import DEVICE, NEEDS_A_DEVICE, assert_alike, flat, pair, parameters

from optimplug._core.optim.batch import Batch, Cell, Form
from optimplug._core.optim.executions.bits import joined
from optimplug._core.optim.executions.triton.execution import Triton
from optimplug._core.optim.rule import Rule, StateSpec, coded_names
from optimplug._core.optim.storage.codes import BLOCK, CODES, offset
from optimplug._core.optim.storage.stored import StoredRule
from optimplug.optim import (
    ADOPT,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AdEMAMix,
    Lion,
    NAdam,
    RAdam,
    RMSprop,
    ScheduleFreeAdamW,
)

pytestmark = NEEDS_A_DEVICE

SHAPES = [(30, 40), (1024,), (10,), (129,)]
"""More than a program, which ends within a block; a program; too few elements; one more than a
block."""
ROUNDINGS = ["nearest", "exact", "kahan", "stochastic"]
CLIPPED = [{}, {"max_grad_norm": 0.5}]
QUICK = [(AdamW, {"weight_decay": 0.1})]
OTHERS = [
    (SGD, {"lr": 0.01, "momentum": 0.9}),
    (Adam, {"amsgrad": True}),
    (Adamax, {}),
    (NAdam, {}),
    (RAdam, {"betas": (0.8, 0.9)}),
    (Adagrad, {"initial_accumulator_value": 0.1}),
    (Adadelta, {}),
    (RMSprop, {"momentum": 0.9, "centered": True}),
    (Lion, {"lr": 0.01}),
    (AdEMAMix, {}),
    (ADOPT, {"lr": 0.01}),
    (ScheduleFreeAdamW, {"warmup_steps": 3}),  # narrow, it is an average of what was rounded
]
EVERY = [*QUICK, *(pytest.param(*row, marks=pytest.mark.slow) for row in OTHERS)]
NARROW = [(rounding, {}) for rounding in ROUNDINGS]
NARROW += [pytest.param(rounding, CLIPPED[1], marks=pytest.mark.slow) for rounding in ROUNDINGS]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Keep tensors of 100 elements in codes: the interpreter takes long for large ones."""
    monkeypatch.setattr("optimplug._core.optim.storage.stored.SMALLEST", 100)


@dataclass(frozen=True)
class Keeping(Rule):
    """A rule that keeps its gradient, and makes the parameter what it has kept before."""

    code: str
    counts_steps = False

    @property
    def state(self):
        return (StateSpec("z", code=self.code),)

    def coefficients(self, hyper, t):
        return {}

    def update(self, p, g, state, k):
        p.copy_(state["z"])
        state["z"].copy_(g)


def numbers(code):
    """Blocks of every kind, and the beginning of one."""
    generator = torch.Generator().manual_seed(5)
    blocks = [10.0**power * torch.randn(BLOCK, generator=generator) for power in range(-45, 39, 3)]
    blocks.append(torch.logspace(-40, 38, BLOCK))
    for special in (0.0, -0.0, math.inf, -math.inf, math.nan):
        blocks += [torch.full((BLOCK,), special), blocks[12].clone()]
        blocks[-1][17] = special
    flat = torch.cat([*blocks, blocks[15][:5]])
    return flat.abs() if code == "unsigned" else flat


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=label)
@pytest.mark.parametrize("code", CODES)
def test_codes_and_numbers_are_those_of_the_definition(code, dtype, step):
    kept, given = numbers(code).roll(BLOCK), numbers(code)
    (codes,), (scales,) = CODES[code].encode([kept])
    (expected,), (expected_scales,) = CODES[code].encode([given], offset(step))
    (shown,) = CODES[code].decode([codes], [scales])
    on_device = [codes.clone(), scales.clone()]
    p, g, codes, scales = (
        t.to(DEVICE)
        for t in (given.new_zeros(given.shape, dtype=dtype), given.to(dtype), *on_device)
    )
    rule = StoredRule(Keeping(code), "nearest", "8bit")
    states = dict(zip(coded_names("z"), ([codes], [scales]), strict=True))
    cell = Cell(0, None, False, part=slice(0, 1))
    batch = Batch(
        *(rule, [cell], [{"rounding_step": step}], [p], [g], states),
        *([], False, {}, [p], Form.of(p)),
    )
    Triton().prepare(batch).run(None, None)
    assert same_bits(codes, expected)
    torch.testing.assert_close(scales.cpu(), expected_scales, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(p.cpu(), shown.to(dtype), rtol=0, atol=0, equal_nan=True)


def assert_near(ours, loop, most=1):
    """One number in thousands may have the next code, and what follows from that.

    ``most`` is how far a code may be off, where the loop has rounded gradients as it clipped them.
    """
    for p, q in zip(flat(ours), flat(loop), strict=True):
        found, expected = ours.state[p], loop.state[q]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name.endswith("_codes"):
                off = (found[name].int() - value.int()).abs()
                assert off.max() <= most
                assert off.double().mean() < (0.002 if most == 1 else 0.2)
            elif name not in ("remainder", "compensation"):
                assert_alike(found[name], value, 0.02)
        p, q = (
            joined(w.detach().float(), kept["remainder"]) if "remainder" in kept else w.detach()
            for w, kept in ((p, found), (q, expected))
        )
        tight = 2**-7 if p.dtype == torch.bfloat16 or most > 1 else 1e-5
        off = (p - q).abs() > tight * q.abs() + 1e-5
        assert off.double().mean() < (0.005 if most == 1 else 0.05)


@pytest.mark.parametrize(("rounding", "clip"), NARROW, ids=label)
@pytest.mark.parametrize(("cls", "options"), EVERY[:-1], ids=label)
def test_narrow_weights_are_those_of_the_loop(cls, options, rounding, clip, launches):
    storage = {"state_dtype": "8bit", "rounding": rounding, **clip}
    ours, loop = pair(cls, torch.bfloat16, SHAPES, **options, **storage)
    for optimizer in (ours, loop):
        descend(optimizer, 2)
    assert set(launches) == {"update", *(["norm"] if clip else [])}
    assert_near(ours, loop, most=8 if clip else 1)


@pytest.mark.parametrize(
    ("dtype", "clip"), [(torch.float32, CLIPPED[1]), (torch.float64, {})], ids=label
)
@pytest.mark.parametrize(("cls", "options"), EVERY, ids=label)
def test_wide_weights_are_those_of_the_loop(cls, options, dtype, clip, launches):
    ours, loop = pair(cls, dtype, SHAPES, **options, state_dtype="8bit", **clip)
    for optimizer in (ours, loop):
        descend(optimizer, 3)
    assert set(launches) == {"update", *(["norm"] if clip else [])}
    assert_near(ours, loop)


def test_a_step_is_one_launch_and_two_with_a_norm_for_200_groups(planned):
    apart = [
        {"params": [p], "lr": 1e-3 * i, "weight_decay": i % 2}
        for i, p in enumerate(parameters([(100,)] * 200))
    ]
    optimizer = AdamW(apart, state_dtype="8bit")
    descend(optimizer, 1, skip=False)
    assert planned == ["update"]
    optimizer.max_grad_norm = 0.5
    optimizer.step()
    assert planned == ["update", "norm", "update"]
    assert all("exp_avg_codes" in kept for kept in optimizer.state.values())


def test_tensors_too_small_for_codes_are_another_rule_with_one_launch_of_its_own(launches):
    optimizer = AdamW([{"params": [p]} for p in parameters([(100,), (3,)] * 3)], state_dtype="8bit")
    optimizer.max_grad_norm = 0.5
    descend(optimizer, 1, skip=False)
    assert launches == ["norm", "update", "update"]


@pytest.mark.parametrize("how", ["skip_nonfinite", "found_inf"])
@pytest.mark.parametrize(("cls", "options"), [(AdamW, {}), (Lion, {}), (SGD, {"momentum": 0.9})])
def test_a_step_that_is_skipped_has_not_been(cls, options, how, launches):
    """Also where the offset depends on a count of the group's: SGD and Lion count no steps."""

    def run(wrong):
        optimizer = cls(
            parameters([(300,)]), lr=0.1, state_dtype="8bit", skip_nonfinite=True, **options
        )
        for number, is_wrong in enumerate(wrong):
            (p,) = flat(optimizer)
            generator = torch.Generator().manual_seed(number - sum(wrong[:number]))
            p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
            if is_wrong and how == "skip_nonfinite":
                p.grad[5] = math.nan
            elif how == "found_inf":
                optimizer.found_inf = torch.tensor(float(is_wrong), device=DEVICE)
            optimizer.step()
        return optimizer

    ours, plain = run([0, 1, 0, 1, 1, 0]), run([0, 0, 0])
    assert launches.count("update") == 9  # nobody has waited to know
    (p,), (q,) = flat(ours), flat(plain)
    assert same_bits(p, q)
    for name, value in plain.state[q].items():
        assert same_bits(ours.state[p][name], value)


@pytest.mark.parametrize("kind", ["one element from its start", "transposed"])
def test_memory_of_every_kind(kind, launches):
    """Blocks follow the order of the elements in the shape: other orders take another way."""
    found = []
    for choice in ({}, {"foreach": False}):
        memory = parameters([(1500,)])[0].detach()
        made = memory[1:1301] if kind != "transposed" else memory[:1200].view(30, 40).t()
        p = torch.nn.Parameter(made)
        like = p.detach().clone(memory_format=torch.preserve_format)
        optimizer = AdamW([p], lr=0.1, state_dtype="8bit", **choice)
        for step in range(2):
            p.grad = like * (step + 1)
            optimizer.step()
        found.append((p.detach(), optimizer.state_dict()["state"][0]))
    assert launches == ([] if kind == "transposed" else ["update"] * 2)
    (p, ours), (q, loop) = found
    assert_alike(p, q, 1e-5)
    for name in ("exp_avg", "exp_avg_sq"):
        assert_alike(ours[name], loop[name], 0.02)


def test_a_run_goes_on_bit_for_bit_from_any_step(launches):
    def begin():
        return AdamW(parameters([(300,)], torch.bfloat16), state_dtype="8bit", rounding="exact")

    whole, half, other = begin(), begin(), begin()
    descend(whole, 2, seed=1)
    descend(half, 2, seed=1)
    other.load_state_dict(half.state_dict())
    with torch.no_grad():
        flat(other)[0].copy_(flat(half)[0])
    for optimizer in (whole, other):
        descend(optimizer, 3, seed=4)
    assert set(launches) == {"update"}
    (p,), (q,) = flat(whole), flat(other)
    assert same_bits(p, q)
    for name, value in whole.state[p].items():
        assert same_bits(other.state[q][name], value)
