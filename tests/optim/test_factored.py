"""Adafactor where torch's is at fault, and what its factors are."""

import pytest
import torch
from support.tensors import same_bits

from optimplug.optim import Adafactor


def first_step(cls, dtype, scale, **options):
    """How far the weights move by a first step, with gradients of this size."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(8, 6).to(dtype))
    p.grad = (torch.randn(8, 6) * scale).to(dtype)
    before = p.detach().clone()
    cls([p], lr=0.1, **options).step()
    return (p.detach().float() - before.float()).norm().item()


@pytest.mark.parametrize("foreach", [None, False])
def test_a_bfloat16_weight_moves_as_far_as_a_float32_one(foreach):
    # With the precision of bfloat16 as its least root, torch's moves 77 times less.
    wide = first_step(Adafactor, torch.float32, 1e-4, foreach=foreach)
    narrow = first_step(Adafactor, torch.bfloat16, 1e-4, foreach=foreach)
    assert narrow == pytest.approx(wide, rel=0.02)
    assert first_step(torch.optim.Adafactor, torch.bfloat16, 1e-4, foreach=False) < wide / 50


@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("foreach", [None, False])
def test_a_float16_weight_moves_as_far_as_torchs(foreach, scale):
    found = first_step(Adafactor, torch.float16, scale, foreach=foreach)
    expected = first_step(torch.optim.Adafactor, torch.float16, scale, foreach=False)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("foreach", [None, False])
def test_the_type_of_one_parameter_is_none_of_the_next_ones_business(foreach):
    def stepped(*dtypes):
        torch.manual_seed(0)
        values, grads = torch.randn(4, 3), torch.randn(4, 3) * 1e-4
        params = [torch.nn.Parameter(values.to(dtype)) for dtype in dtypes]
        for p in params:
            p.grad = grads.to(p.dtype)
        Adafactor(params, foreach=foreach).step()
        return params[-1].detach()

    alone = stepped(torch.float32)
    assert same_bits(stepped(torch.bfloat16, torch.float32), alone)
    torch.testing.assert_close(
        stepped(torch.bfloat16, torch.float64).float(), alone, rtol=1e-5, atol=0
    )


def test_the_state_is_a_row_and_a_column_of_the_last_two_dimensions():
    shapes = {(): "variance", (5,): "variance", (4, 3): None, (2, 4, 3): None}
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.ones_like(p)
    ours = Adafactor(params)
    ours.step()
    for p, whole in zip(params, shapes.values(), strict=True):
        kept = {name: tuple(value.shape) for name, value in ours.state[p].items()}
        if whole:
            assert kept == {"step": (), whole: tuple(p.shape)}
        else:
            *front, rows, columns = p.shape
            expected = {"row_var": (*front, rows, 1), "col_var": (*front, 1, columns)}
            assert kept == {"step": (), **expected}
