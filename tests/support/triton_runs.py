"""What the cases of Triton's kernels share: the same run in a kernel, and in the loop."""

import copy
import os

import pytest
import torch
from support.tensors import descend, same_bits
from support.tensors import parameters as parameters_on

from optimplug._core.optim.executions.bits import joined

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
NEEDS_A_DEVICE = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="there is neither interpreter nor GPU"
)

SHAPES = [(30, 40), (7,), (5, 5, 2), (), (0,), (1500,)]
WITHIN = {torch.float32: 1e-6 if INTERPRETED else 1e-5, torch.float64: 1e-12}
"""On a GPU, torch's operators round in other places than on the CPU."""


def parameters(*given, **named):
    return parameters_on(*given, **named, device=DEVICE)


def groups(params):
    return [{"params": params[:2], "lr": 0.01}, {"params": params[2:]}]


def flat(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def ready(optimizer):
    optimizer.train()
    return optimizer


def pair(cls, dtype=torch.float32, shapes=SHAPES, **options):
    """The same optimizer in a kernel, and in the loop."""
    return [
        ready(cls(groups(parameters(shapes, dtype)), **copy.deepcopy(options), **choice))
        for choice in ({}, {"foreach": False})
    ]


def run_both(cls, dtype=torch.float32, steps=4, shapes=SHAPES, **options):
    ours, loop = pair(cls, dtype, shapes, **options)
    for optimizer in (ours, loop):
        descend(optimizer, steps)
    return ours, loop


def assert_near(ours, loop, tight, whole=WITHIN[torch.float32]):
    """Hold parameters and states to a share of the largest element of each.

    ``whole`` is that of weights whose last bits are kept apart.
    """
    for p, q in zip(flat(ours), flat(loop), strict=True):
        found, expected = ours.state[p], loop.state[q]
        assert {n: v.dtype for n, v in found.items()} == {n: v.dtype for n, v in expected.items()}
        assert_alike(p.detach(), q.detach(), tight)
        for name in expected.keys() - {"remainder", "compensation"}:
            assert_alike(found[name], expected[name], tight)
        if "remainder" in expected:  # alone it is the last bits, which may differ
            both = [
                joined(r.detach().float(), kept["remainder"])
                for r, kept in ((p, found), (q, expected))
            ]
            assert_alike(*both, whole)


def assert_same(a, b, unit):
    """Equal in every bit; on a GPU, to one unit in the last place."""
    if INTERPRETED:
        assert same_bits(a, b)
    assert_alike(a.detach(), b.detach(), unit)


def assert_alike(a, b, tight):
    most = float(b.nan_to_num(0.0).abs().max()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=tight, atol=tight * most, equal_nan=True)
