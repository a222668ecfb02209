"""Moments in eight bits: what a code keeps, and that both ways to make one agree."""

import pytest
import torch
from support.tensors import same_bits

from optimplug._core.optim.executions.compiler import compiler
from optimplug._core.optim.storage.codes import BLOCK, CODES, NEAREST, SMALLEST, offset
from optimplug.optim import SGD, Adagrad

NAMES = ["signed", "unsigned"]


def numbers(name, size=100_000):
    """Random numbers of about sixty orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    size_of = torch.rand(size, generator=generator) * 60 - 38
    sign = torch.randint(0, 2, (size,), generator=generator) * 2 - 1 if name == "signed" else 1
    return sign * 10.0**size_of


def back(name, x, at=NEAREST):
    (codes,), (scales,) = CODES[name].encode([x], at)
    return CODES[name].decode([codes], [scales])[0]


def every_code(name, scale):
    """Each code in a block of its own, beside the largest, and the scales."""
    code = CODES[name]
    least = -code.levels if name == "signed" else 0
    codes = torch.full((code.levels - least + 1, BLOCK), code.levels)
    codes[:, 0] = torch.arange(least, code.levels + 1)
    return codes.to(code.dtype).view(-1), torch.full((len(codes),), scale)


@pytest.mark.parametrize("at", [NEAREST, offset(0), offset(1), 1023 / 1024], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.1, 3.7, 1e-36, 1e37])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_decoded_gets_the_same_codes(name, scale, at):
    codes, scales = every_code(name, scale)
    (found,), (found_scales,) = CODES[name].encode(CODES[name].decode([codes], [scales]), at)
    assert torch.equal(found, codes)
    assert torch.equal(found_scales, scales)


@pytest.mark.parametrize("name", NAMES)
def test_every_code_stands_for_another_number(name):
    codes, scales = every_code(name, 1.0)
    (found,) = CODES[name].decode([codes], [scales])
    assert (found.view(-1, BLOCK)[:, 0].diff() > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_as_near_as_the_code_says(name):
    code = CODES[name]
    x = torch.rand(4096, generator=torch.Generator().manual_seed(1))
    if name == "signed":
        x = x * 2 - 1
    top = x.view(-1, BLOCK).abs().amax(1, keepdim=True).expand(-1, BLOCK).reshape(-1)
    place = (x.abs() / top) ** (1 / code.power) * code.levels
    gap = ((place + 1) ** code.power - place**code.power) / code.levels**code.power * top
    assert ((back(name, x) - x).abs() <= 0.51 * gap).all()


def test_a_number_above_zero_stays_above_zero():
    x = torch.tensor([1.0, 1e-12, 1e-30, 1e-44, 0.0])
    for at in (offset(0), NEAREST, 1023 / 1024):
        found = back("unsigned", x, at)
        assert (found[:-1] > 0).all()
        assert found[-1] == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_block_with_a_number_that_is_not_finite_is_nan(name, value):
    x = torch.ones(3 * BLOCK)
    x[BLOCK + 5] = value
    found = back(name, x).view(3, BLOCK)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], torch.ones(2, BLOCK))


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize("name", NAMES)
def test_the_last_block_may_be_short(name, size):
    x = torch.linspace(0.1, 1.0, size)
    (codes,), (scales,) = CODES[name].encode([x])
    assert codes.shape == x.shape
    assert scales.tolist() == [block.max() for block in x.split(BLOCK)]


def test_many_tensors_are_encoded_each_by_itself():
    tensors = [torch.randn(3, 50), torch.zeros(2), torch.randn(200)]
    offsets = [0.25, 0.5, 0.75]
    together = CODES["signed"].encode(tensors, offsets)
    for i, (x, at) in enumerate(zip(tensors, offsets, strict=True)):
        alone = CODES["signed"].encode([x], at)
        assert all(torch.equal(many[i], one) for many, (one,) in zip(together, alone, strict=True))


def test_offsets_are_spread_evenly():
    found = torch.tensor([offset(step) for step in range(1000)])
    assert found.min() > 0
    assert found.max() < 1
    counts = torch.histc(found, bins=10, min=0, max=1)
    assert (counts - 100).abs().max() <= 6
    assert all(offset(step) * 1024 % 1 == 0 for step in range(100))


def test_a_second_moment_is_right_in_the_mean_where_rounding_to_nearest_is_not():
    def error(nearest):
        generator = torch.Generator().manual_seed(0)
        v, truth = torch.zeros(SMALLEST), torch.zeros(SMALLEST, dtype=torch.float64)
        for step in range(1, 3001):
            g = torch.randn(SMALLEST, generator=generator)
            truth.mul_(0.999).addcmul_(g.double(), g.double(), value=0.001)
            v = v.mul(0.999).addcmul_(g, g, value=0.001)
            v = back("unsigned", v, NEAREST if nearest else offset(step))
        return (v.double().mean() / truth.mean() - 1).item()

    assert abs(error(nearest=False)) < 0.01
    assert error(nearest=True) > 0.05


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("special", [None, torch.nan, torch.inf])
@pytest.mark.parametrize(("cls", "name"), [(SGD, "momentum_buffer"), (Adagrad, "sum")])
def test_compiled_codes_are_the_same_bit_for_bit(cls, name, special):
    # After one step each moment is the gradient, or its square: the same number in both.
    options = {"momentum": 0.9} if cls is SGD else {}
    g = numbers("signed", SMALLEST + 77)
    g = g if cls is SGD else g.sign() * g.abs().sqrt()
    if special is not None:
        g[200] = special
    found = []
    for choice in ({}, {"foreach": True}, {"foreach": False}):
        p = torch.nn.Parameter(torch.zeros(g.numel()))
        p.grad = g.clone()
        ours = cls([p], lr=1e-3, state_dtype="8bit", **options, **choice)
        ours.step()
        found.append(ours.state[p])
    for other in found[1:]:
        assert torch.equal(other[f"{name}_codes"], found[0][f"{name}_codes"])
        assert same_bits(other[f"{name}_scales"], found[0][f"{name}_scales"])
