"""Weights of which the halves are kept apart, and random numbers: the same in every execution."""

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard

from optimplug._core.optim.batch import Batch, Cell, Form
from optimplug._core.optim.executions import bits, draws
from optimplug._core.optim.executions.compiler import compiler
from optimplug.optim import SGD

EVERY = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
"""Every bfloat16 there is."""


def some_floats():
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(-(2**31), 2**31, (100_000,), generator=generator).to(torch.int32)
    return found.view(torch.float32)


def test_a_number_is_put_together_from_its_halves():
    x = some_floats()
    high, low = bits.visible(x), bits.hidden(x)
    assert torch.equal(high.bfloat16().float()[~x.isnan()], high[~x.isnan()])
    assert low.abs().max() <= 2**15
    assert torch.equal(low.to(torch.int16).float(), low)
    finite = high.isfinite()
    assert finite.sum() > 90_000
    assert torch.equal(bits.joined(high, low)[finite], x[finite])
    assert torch.equal(bits.joined(high, low).isnan(), x.isnan())


def test_the_half_that_is_seen_is_the_nearest():
    x = some_floats()
    x = x[x.isfinite()]
    nearest = x.bfloat16().float()
    same = bits.visible(x) == nearest
    tied = (bits.hidden(x) == -(2**15)) & ~same
    assert torch.equal(same | tied, torch.ones_like(same))
    assert torch.equal(bits.visible(torch.tensor([1 + 2**-8])), torch.tensor([1 + 2**-7]))


def test_what_is_drawn_is_right_in_the_mean():
    # A quarter of the way from one bfloat16 to the next: a quarter of all numbers lead there.
    x = torch.tensor(1 + 2**-9).expand(2**16)
    found = bits.drawn(x, torch.arange(2**16))
    assert found.unique().tolist() == [1.0, 1 + 2**-7]
    assert found.double().mean().item() == x[0].item()


@pytest.mark.parametrize("random", [0, 1, 2**16 - 1])
def test_what_is_not_finite_is_not_drawn_for_and_nothing_becomes_so(random):
    wide = EVERY.float()
    found = bits.drawn(wide, random)
    torch.testing.assert_close(found, wide, rtol=0, atol=0, equal_nan=True)
    most = torch.tensor([torch.finfo(torch.float32).max])
    assert bits.drawn(most, random).isfinite().all()


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("rounding", ["exact", "kahan", "stochastic"])
def test_every_execution_reads_and_writes_the_same_bits(rounding):
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(2**16, generator=generator).mul(EVERY.float()).mul(2**-10).bfloat16()
    low = torch.randint(-(2**15), 2**15, (2**16,), generator=generator).to(torch.int16)
    found = []
    for choice in ({}, {"foreach": True}, {"foreach": False}):
        p = torch.nn.Parameter(EVERY.clone())
        ours = SGD([p], lr=1.0, rounding=rounding, **choice)
        if rounding == "exact":
            ours.state[p]["remainder"] = low.clone()
        for _ in range(3):
            p.grad = change.clone()
            ours.step()
        found.append([p.detach(), *ours.state[p].values()])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=0, equal_nan=True)


# Random numbers. The seeds are fixed, so these pass or fail for ever; had they been drawn, each of
# the comparisons would be out of its bounds, of 6 standard deviations, once in 5e8 times.

SIZE = 2**16


def numbers(seed=0, step=0, place=0, size=SIZE):
    p = torch.zeros(size)
    cell = Cell(0, None, False, part=slice(0, 1))
    hyper = {"rounding_seed": seed, "rounding_step": step}
    batch = Batch(
        *(None, [cell], [hyper], [p], [p], {}, [], False, {}, [p], Form.of(p)), places=[place]
    )
    (found,) = draws.draw(batch, draws.draw_keys(batch), [p], [0])
    return found


def correlation(x, y):
    return torch.corrcoef(torch.stack([x, y]).double())[0, 1].item() * SIZE**0.5


def test_numbers_are_whole_and_even():
    found = numbers()
    assert torch.equal(found, found.floor())
    assert 0 <= found.min() < found.max() < 2**16
    deviation = 2**16 / 12**0.5 / SIZE**0.5
    assert abs(found.double().mean() - (2**16 - 1) / 2) < 6 * deviation
    for bit in range(16):
        ones = (found.long() >> bit & 1).sum().item()
        assert abs(ones - SIZE / 2) < 6 * SIZE**0.5 / 2


OTHERS = [
    {"seed": 1},
    {"step": 1},
    {"place": 1},
    {"seed": 2**40},
    {"step": 2**31},
    {"seed": 1, "step": 1},
    {"step": 1, "place": 1},
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_other_seeds_steps_and_parameters_draw_something_else(other):
    found, more = numbers(), numbers(**other)
    assert abs(correlation(found, more)) < 6
    same = (found == more).sum().item()  # 1 is expected: a Poisson number, above 14 once in 1e12
    assert same < 15


@pytest.mark.parametrize("distance", [1, 2, 3, 256, 768])
def test_other_elements_draw_something_else(distance):
    found = numbers(size=SIZE + distance)
    assert abs(correlation(found[:-distance], found[distance:])) < 6


def test_what_is_drawn_again_is_the_same():
    assert torch.equal(numbers(3, 4, 5), numbers(3, 4, 5))


class Sharded(torch.Tensor):
    """A shard that knows where it is, without other processes."""

    @classmethod
    def of(cls, whole, mesh, placements):
        self = whole.as_subclass(cls)
        self.device_mesh, self.placements = mesh, placements
        return self

    def to_local(self):
        raise NotImplementedError


PLACEMENTS = [
    (Replicate(), Shard(0)),
    (Replicate(), Shard(1)),
    (Shard(0), Shard(1)),
    (Shard(0), Shard(0)),
    (Shard(2), Replicate()),
]


@pytest.mark.parametrize("placements", PLACEMENTS, ids=str)
def test_an_element_knows_its_place_in_the_whole(placements):
    shape = (5, 4, 3)
    whole, seen = torch.arange(60).view(shape), []
    for rank in range(6):  # of two by three processes
        mesh = DeviceMesh("cpu", torch.arange(6).view(2, 3), _init_backend=False, _rank=rank)
        draws._shard_place.cache_clear()  # meshes are equal, whichever process asks
        shard = Sharded.of(torch.zeros(shape), mesh, placements)
        places = draws._places(shard)
        sizes, offsets = draws.shard_start(shape, mesh, placements)
        window = tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))
        assert torch.equal(places, whole[window].reshape(-1))
        start, in_order = draws._shard_place(torch.Size(shape), mesh, placements)
        if in_order and len(places):
            assert torch.equal(places, start + torch.arange(len(places)))
        seen.append(places)
    assert torch.equal(torch.cat(seen).unique(), torch.arange(60))
    assert in_order == all(p.is_replicate() or p.dim == 0 for p in placements)
