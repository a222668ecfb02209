"""Optimizers that look at whole tensors and that torch has not, against the packages that have."""

import copy
import importlib
import io
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import optimi
import pytest
import pytorch_optimizer
import torch
import transformers
from support.labels import label
from support.tensors import descend, parameters, same_bits

from optimplug import ArgumentError
from optimplug.optim import CAME, LAMB, StableAdamW, TransformersAdafactor


class Apart:
    """An optimizer for each parameter, that steps where there is a gradient.

    For references that count a group's steps: here each parameter counts its own.
    """

    def __init__(self, cls, groups, **options):
        self.optimizers = [
            cls([{**group, "params": [p]}], **options) for group in groups for p in group["params"]
        ]
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]

    def step(self):
        for optimizer in self.optimizers:
            if optimizer.param_groups[0]["params"][0].grad is not None:
                optimizer.step()


def optimi_stable_adamw(groups, **options):
    # What it does to narrow types by itself, the rule does not.
    return Apart(optimi.StableAdamW, groups, **options, kahan_sum=False, triton=False)


def timm_lamb(groups, **options):
    # The package imports torchvision, which is not needed for this file of it.
    found = find_spec("timm")
    if found is None:
        pytest.skip("timm is not installed: see the Makefile")
    alone = ModuleType("timm_optim")
    alone.__path__ = [f"{path}/optim" for path in found.submodule_search_locations]
    sys.modules.setdefault("timm_optim", alone)
    cls = importlib.import_module("timm_optim.lamb").Lamb
    return Apart(cls, groups, **options, max_grad_norm=None)


def pytorch_optimizer_lamb(groups, bias_correction, always_adapt, **options):
    # It does neither otherwise, and corrects the size of a step, which the trust ratio has set,
    # unless told to leave it. It adds eps to a norm, and takes 10 for the norm of larger weights.
    assert not bias_correction
    assert always_adapt
    return Apart(pytorch_optimizer.Lamb, groups, **options, adam_debias=True)


def transformers_adafactor(groups, **options):
    return transformers.optimization.Adafactor(groups, **options)


def pytorch_optimizer_came(groups, **options):
    return pytorch_optimizer.CAME(groups, **options)


class Reference(NamedTuple):
    """One optimizer of another package, with options of ours that mean the same to it."""

    ours: type
    theirs: Callable[..., Any]
    options: list[dict[str, Any]]
    atol: float = 1e-7


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
    Reference(
        TransformersAdafactor,
        transformers_adafactor,
        [
            {},
            {"warmup_init": True, "weight_decay": 0.3},
            {"relative_step": False, "scale_parameter": False, "lr": 1e-3},
            {"relative_step": False, "lr": 0.05, "weight_decay": 0.3},
            {"relative_step": False, "scale_parameter": False, "weight_decay": 0.3, "lr": 1e-3},
            {"beta1": 0.9, "weight_decay": 0.3, "clip_threshold": 0.5, "decay_rate": -0.5},
            {"beta1": 0.0, "eps": (1e-4, 2.0)},
        ],
    ),
]
CASES = [
    pytest.param(row, options, id=f"{row.theirs.__name__}-{options}")
    for row in REFERENCES
    for options in row.options
]
EXECUTIONS = [{}, {"foreach": True}, {"foreach": False}]
SHAPES = ((3, 4), (7,), (5, 3, 2, 2), (), (6, 2))


def groups(cls, options, params):
    """Several groups, each with a rate of its own where the optimizer takes any."""
    own = [{"lr": 1e-2}, {"lr": 3e-3}, {}]
    if cls is TransformersAdafactor and options.get("relative_step", True):
        own = [{"weight_decay": 0.1}, {"weight_decay": 0.0}, {}]
    parts = params[:2], params[2:3], params[3:]
    return [{"params": part, **keys} for part, keys in zip(parts, own, strict=True)]


def flat(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
@pytest.mark.parametrize(("row", "options"), CASES)
def test_every_execution_is_the_reference(row, options, execution):
    ours = row.ours(groups(row.ours, options, parameters(SHAPES)), **options, **execution)
    theirs = row.theirs(groups(row.ours, options, parameters(SHAPES)), **options)
    for a, b in zip(descend(ours, 100), descend(theirs, 100), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=row.atol)


def error(found, truth):
    """Root of the summed squares of what differs."""
    pairs = zip(found, truth, strict=True)
    return sum((a.double() - b.double()).square().sum().item() for a, b in pairs) ** 0.5


@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
@pytest.mark.parametrize(("row", "options"), CASES)
def test_narrow_weights_are_no_further_from_float64_than_the_reference(row, options, execution):
    shapes = [(8, 8), (30,), (4, 4, 2, 2)] * 6

    def run(make, dtype, **execution):
        optimizer = make(
            groups(row.ours, options, parameters(shapes, dtype)), **options, **execution
        )
        return descend(optimizer, 20, skip=False, rounding=torch.bfloat16)

    truth = run(row.theirs, torch.float64)
    theirs = run(row.theirs, torch.bfloat16)
    ours = run(row.ours, torch.bfloat16, **execution)
    # Rounding is a matter of luck, though little in so many numbers.
    assert error(ours, truth) <= 1.05 * error(theirs, truth)


@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
@pytest.mark.parametrize("cls", {row.ours: None for row in REFERENCES})
def test_a_run_resumes_bit_for_bit(cls, execution):
    whole = cls(groups(cls, {}, parameters(SHAPES)), **execution)
    descend(whole, 5)
    params = [torch.nn.Parameter(p.detach().clone()) for p in flat(whole)]
    resumed = cls(groups(cls, {}, params), **execution)
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


ADAFACTOR = [
    {},
    {"beta1": 0.9},
    {"lr": 1e-2, "relative_step": False, "scale_parameter": False, "weight_decay": 0.1},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["theirs to ours", "ours to theirs"])
@pytest.mark.parametrize("options", ADAFACTOR, ids=label)
def test_a_state_of_adafactor_goes_on_in_the_other(options, way, dtype):
    known = {"theirs": transformers_adafactor, "ours": TransformersAdafactor}
    first, second = (known[name] for name in way.split(" to "))
    begun = first(groups(TransformersAdafactor, options, parameters(SHAPES, dtype)), **options)
    descend(begun, 5)
    params = [torch.nn.Parameter(p.detach().clone()) for p in flat(begun)]
    other = second(groups(TransformersAdafactor, options, params), **options)
    other.load_state_dict(copy.deepcopy(begun.state_dict()))
    # torch rounds a state that is loaded to the type of its parameter.
    rtol = 1e-6 if dtype == torch.float32 else 0.0 if way == "theirs to ours" else 0.02
    for a, b in zip(descend(begun, 5, seed=7), descend(other, 5, seed=7), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-7 if rtol else 0.0)
    kept = other.state_dict()["state"][0]
    assert {"step", "exp_avg_sq_row", "exp_avg_sq_col"} <= kept.keys()


def test_a_state_that_was_rounded_is_wide_again():
    ours = TransformersAdafactor([torch.nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))])
    descend(ours, 2, skip=False)
    state = ours.state_dict()
    rounded = {key: value.bfloat16() for key, value in state["state"][0].items() if key != "step"}
    state["state"][0].update(rounded)
    ours.load_state_dict(state)
    found = ours.state[flat(ours)[0]]
    assert {found[key].dtype for key in rounded} == {torch.float32}


def test_a_state_of_came_goes_on_here():
    begun = pytorch_optimizer_came(groups(CAME, {}, parameters(SHAPES)))
    descend(begun, 5)
    ours = CAME(groups(CAME, {}, [torch.nn.Parameter(p.detach().clone()) for p in flat(begun)]))
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
    (TransformersAdafactor, {"lr": 1e-3}, "Cannot combine manual `lr` and `relative_step=True`"),
    (
        TransformersAdafactor,
        {"warmup_init": True, "relative_step": False},
        "`warmup_init=True` requires `relative_step=True`",
    ),
    (TransformersAdafactor, {"relative_step": False}, "lr is required: give it to the optimizer"),
    (TransformersAdafactor, {"eps": (1e-3,)}, "Invalid eps"),
    (TransformersAdafactor, {"clip_threshold": 0.0}, "Invalid clip_threshold"),
    (TransformersAdafactor, {"decay_rate": 0.8}, "Invalid decay_rate"),
    (TransformersAdafactor, {"beta1": 1.0}, "Invalid beta1"),
    (TransformersAdafactor, {"weight_decay": -0.1}, "Invalid weight_decay value"),
]


@pytest.mark.parametrize(("cls", "options", "message"), BAD, ids=label)
def test_a_bad_argument_is_named(cls, options, message):
    with pytest.raises(ArgumentError, match=message):
        cls(parameters(), **options)


def test_groups_of_adafactor_may_have_each_a_rate_of_another_kind():
    given, found = parameters(((2, 2), (2, 2)))
    optimizer = TransformersAdafactor(
        [{"params": [given], "lr": 0.5, "relative_step": False}, {"params": [found]}]
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, None]
    with pytest.raises(ArgumentError, match=r"param_groups\[2\]: lr must be given where"):
        optimizer.add_param_group({"params": parameters(((1,),)), "relative_step": False})
