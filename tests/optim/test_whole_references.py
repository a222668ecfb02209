"""Optimizers that look at whole tensors and that torch has not, against the packages that have."""

import copy
import importlib
import io
import sys
from importlib.util import find_spec
from types import ModuleType

import optimi
import pytest
import pytorch_optimizer
import torch
from support.labels import label
from support.references import EXECUTIONS, SHAPES, EachByItself, Reference, copies
from support.rows import each_in_turn
from support.tensors import descend, parameters, same_bits

from optimplug import ArgumentError
from optimplug.optim import CAME, LAMB, Adafactor, StableAdamW, TransformersAdafactor


def optimi_stable_adamw(groups, **options):
    # What it does to narrow types by itself, the rule does not.
    return EachByItself(optimi.StableAdamW, groups, **options, kahan_sum=False, triton=False)


def timm_lamb(groups, **options):
    # The package imports torchvision, which is not needed for this file of it.
    found = find_spec("timm")
    if found is None:
        pytest.skip("timm is not installed: see the Makefile")
    alone = ModuleType("timm_optim")
    alone.__path__ = [f"{path}/optim" for path in found.submodule_search_locations]
    sys.modules.setdefault("timm_optim", alone)
    cls = importlib.import_module("timm_optim.lamb").Lamb
    return EachByItself(cls, groups, **options, max_grad_norm=None)


def pytorch_optimizer_lamb(groups, bias_correction, always_adapt, **options):
    # It does neither otherwise, and corrects the size of a step, which the trust ratio has set,
    # unless told to leave it. It adds eps to a norm, and takes 10 for the norm of larger weights.
    assert not bias_correction
    assert always_adapt
    return EachByItself(pytorch_optimizer.Lamb, groups, **options, adam_debias=True)


def pytorch_optimizer_came(groups, **options):
    return pytorch_optimizer.CAME(groups, **options)


REFERENCES = [
    Reference(
        StableAdamW,
        optimi_stable_adamw,
        [
            {"lr": 1e-3},
            {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
            {"lr": 0.05, "eps": 2.0},
            {"lr": 0.05, "weight_decay": 0.0},
        ],
    ),
    Reference(
        LAMB,
        timm_lamb,
        [
            {},
            {"lr": 0.05, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.3},
            {"bias_correction": False, "grad_averaging": False},
            {"trust_clip": True, "lr": 0.05},
            {"always_adapt": True, "weight_decay": 0.0},
            {"weight_decay": 0.0, "lr": 0.05},
        ],
    ),
    Reference(
        LAMB,
        pytorch_optimizer_lamb,
        [
            {"bias_correction": False, "always_adapt": True, "weight_decay": 0.0},
        ],
    ),
    Reference(
        CAME,
        pytorch_optimizer_came,
        [
            {},
            {"betas": (0.8, 0.9, 0.95), "eps1": 1e-3, "eps2": 1e-2, "lr": 0.05},
            {"clip_threshold": 0.3, "weight_decay": 0.3},
        ],
        # Its first steps are a hundred times the rate, since the means that it divides by start at
        # 0: what is rounded in them is of the weights' own size, and stays in those near 0.
        atol=1e-6,
    ),
]
CASES = [(row, options) for row in REFERENCES for options in row.options]
EVERY = pytest.mark.parametrize(
    ("row", "options", "execution"),
    each_in_turn(CASES, EXECUTIONS),
    ids=lambda value: value.theirs.__name__ if isinstance(value, Reference) else label(value),
)


@EVERY
def test_every_execution_is_the_reference(row, options, execution):
    row.check_100_steps(options, execution)


@EVERY
def test_narrow_weights_are_no_further_from_float64_than_the_reference(row, options, execution):
    row.check_narrow(options, execution)


@pytest.mark.parametrize("cls", [Adafactor, TransformersAdafactor, StableAdamW, LAMB, CAME])
def test_many_of_one_shape_step_as_one_by_one(cls):
    shapes = [(4, 3)] * 3 + [(3, 4, 2, 2)] * 2 + [(7,)] * 2 + [(120, 90)] * 2  # large ones as well
    found, truth = (
        descend(cls(parameters(shapes), foreach=foreach), 10) for foreach in (True, False)
    )
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
@pytest.mark.parametrize("row", {row.ours: row for row in REFERENCES}.values(), ids=label)
def test_a_run_resumes_bit_for_bit(row, execution):
    whole = row.ours(row.grouped(parameters(SHAPES)), **execution)
    descend(whole, 5)
    resumed = row.ours(row.grouped(copies(whole)), **execution)
    written = io.BytesIO()
    torch.save(copy.deepcopy(whole).state_dict(), written)
    written.seek(0)
    resumed.load_state_dict(torch.load(written, weights_only=True))
    assert all(map(same_bits, descend(whole, 4, seed=7), descend(resumed, 4, seed=7)))


@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
def test_the_trust_ratio_of_lamb_is_1_where_a_norm_is_0(execution):
    params = [torch.nn.Parameter(torch.tensor(v)) for v in ([0.0, 0.0], [3.0, 4.0])]
    optimizer = LAMB(params, lr=0.1, weight_decay=0.0, always_adapt=True, **execution)
    params[0].grad, params[1].grad = torch.tensor([2.0, -2.0]), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.tensor([-0.1, 0.1]))
    torch.testing.assert_close(params[1].detach(), torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
def test_a_sudden_gradient_lowers_the_rate_of_its_own_tensor_alone(execution):
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = StableAdamW(params, lr=0.1, betas=(0.0, 0.99), weight_decay=0.0, **execution)
    for grads in ((1.0, 1.0), (1.0, 1.0), (1.0, 1e3)):
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.full((2,), g)
        optimizer.step()
    moved = [(b - p).mean().item() for b, p in zip(before, params, strict=True)]
    # Without it the second would move by sqrt(3) times as much as the first.
    assert moved == pytest.approx([0.1, 0.1], rel=1e-4)


def test_a_state_of_came_goes_on_here():
    begun = pytorch_optimizer_came([{"params": parameters(SHAPES)}])
    descend(begun, 5)
    ours = CAME([{"params": copies(begun)}])
    ours.load_state_dict(copy.deepcopy(begun.state_dict()))
    for a, b in zip(descend(begun, 5, seed=7), descend(ours, 5, seed=7), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    factors = {f"exp_avg_{kind}_{of}" for kind in ("sq", "res") for of in ("row", "col")}
    assert ours.state_dict()["state"][0].keys() == {"exp_avg", "RMS", *factors}


BAD = [
    (StableAdamW, {"lr": -1.0}, "Invalid learning rate"),
    (StableAdamW, {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1"),
    (StableAdamW, {"eps": -1.0}, "Invalid epsilon value"),
    (LAMB, {"lr": -1.0}, "Invalid learning rate"),
    (LAMB, {"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0"),
    (LAMB, {"weight_decay": -1.0}, "Invalid weight_decay value"),
    (CAME, {"lr": -1.0}, "Invalid learning rate"),
    (CAME, {"betas": (0.9, 0.999)}, "must be three numbers"),
    (CAME, {"clip_threshold": 0.0}, "Invalid clip_threshold"),
    (CAME, {"eps2": -1.0}, "Invalid eps2 value"),
]


@pytest.mark.parametrize(("cls", "options", "message"), BAD, ids=label)
def test_a_bad_argument_is_named(cls, options, message):
    with pytest.raises(ArgumentError, match=message):
        cls(parameters(), **options)
