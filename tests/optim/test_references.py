"""Optimizers that torch has not, against the packages that have them."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import lion_pytorch
import pytest
import pytorch_optimizer
import torch
from support.labels import label
from support.references import EachByItself
from support.rows import each_in_turn
from support.tensors import descend, parameters, same_bits

from optimplug import ArgumentError
from optimplug._core.optim.rules.ademamix import AdEMAMixRule
from optimplug.optim import ADOPT, AdEMAMix, Lion


def ademamix(groups, t_alpha=None, t_beta3=None, **options):
    # The reference has one length for both ramps, and would put the decay into the gradient.
    assert t_alpha == t_beta3
    options = {"weight_decay": 1e-2, **options, "t_alpha_beta3": t_alpha, "weight_decouple": True}
    return EachByItself(pytorch_optimizer.AdEMAMix, groups, **options)


class LateDecay(EachByItself):
    """ADOPT whose decoupled decay, as with its authors, waits for the second update."""

    def step(self):
        decays = [group["weight_decay"] for o in self.optimizers for group in o.param_groups]
        for optimizer in self.optimizers:
            if not optimizer.state:
                optimizer.param_groups[0]["weight_decay"] = 0.0
        super().step()
        for optimizer, decay in zip(self.optimizers, decays, strict=True):
            optimizer.param_groups[0]["weight_decay"] = decay


def adopt(groups, clip_exp=0.25, decouple=False, **options):
    # The reference counts the first update, which moves nothing; the authors do not.
    bound = None if clip_exp is None else lambda step: max(step - 1, 0) ** clip_exp
    options = {**options, "clip_lambda": bound, "weight_decouple": decouple}
    cls = LateDecay if decouple else EachByItself
    return cls(pytorch_optimizer.ADOPT, groups, **options)


class Row(NamedTuple):
    """One optimizer, and what makes the reference from the same groups and options."""

    reference: Callable[..., Any]
    options: list[dict[str, Any]]
    compiled_rtol: float = 1e-6
    """More where a compiled step, which rounds less often, is nearer to float64 than the reference
    and so not as near to the reference."""


TABLE = {
    Lion: Row(
        lion_pytorch.Lion,
        [{}, {"lr": 1e-2, "betas": (0.95, 0.98)}, {"lr": 1e-2, "weight_decay": 0.1}],
    ),
    AdEMAMix: Row(
        ademamix,
        [
            {},
            {"betas": (0.8, 0.95, 0.99), "alpha": 2.0, "eps": 1e-3, "weight_decay": 0.2},
            {"t_alpha": 60, "t_beta3": 60},
            {"t_alpha": 1000, "t_beta3": 1000, "maximize": True},
        ],
        # Its steps are up to six times Adam's, and so is what rounding does: from float64 the
        # reference is 2.5e-6 away, ours 1.9e-6.
        compiled_rtol=2e-6,
    ),
    ADOPT: Row(
        adopt,
        [
            {},
            {"betas": (0.5, 0.99), "eps": 0.3, "weight_decay": 0.2, "maximize": True},
            {"clip_exp": None, "weight_decay": 0.2, "decouple": True},
        ],
    ),
}
REFERENCES = [
    (cls, row.reference, options) for cls, row in TABLE.items() for options in row.options
]
EXECUTIONS = [{}, {"foreach": True}, {"foreach": False}, {"differentiable": True}]


def flat(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def groups(params):
    """Several groups, each with a rate of its own."""
    return [
        {"params": params[:2], "lr": 1e-2, "weight_decay": 0.0},
        {"params": params[2:3], "lr": 3e-3},
        {"params": params[3:]},
    ]


SHAPES = [(3, 4), (7,), (5, 5, 2), ()]
MANY = [(40, 30), (30,), (20, 20), ()]


def run(make, options, dtype=torch.float32, shapes=SHAPES, leaves=True):
    # Autograd allows no change in place of what requires gradients itself.
    params = [p if leaves else p.detach() for p in parameters(shapes, dtype)]
    return descend(make(groups(params), **options), 100, rounding=torch.float32)


@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
@pytest.mark.parametrize(("cls", "reference", "options"), REFERENCES, ids=label)
def test_every_execution_is_the_reference(cls, reference, options, execution):
    ours = run(cls, {**options, **execution}, leaves=not execution.get("differentiable"))
    rtol = 1e-6 if execution else TABLE[cls].compiled_rtol
    for a, b in zip(ours, run(reference, options), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize(
    ("cls", "reference", "options", "execution"),
    each_in_turn(REFERENCES, EXECUTIONS[:3]),
    ids=label,
)
def test_none_is_further_from_float64_than_the_reference(cls, reference, options, execution):
    truth = run(reference, options, torch.float64, MANY)
    for a, b in zip(run(cls, {**options, **execution}, torch.float64, MANY), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def error(found):
        pairs = zip(found, truth, strict=True)
        return sum((a.double() - b).square().sum().item() for a, b in pairs) ** 0.5

    ours = run(cls, {**options, **execution}, shapes=MANY)
    # Rounding is a matter of luck, though little in so many numbers.
    assert error(ours) <= 1.05 * error(run(reference, options, shapes=MANY))


@pytest.mark.parametrize("execution", EXECUTIONS[:3], ids=label)
def test_lion_stands_still_where_there_is_no_direction(execution):
    params = [torch.nn.Parameter(torch.ones(3))]
    optimizer = Lion(params, lr=0.1, **execution)
    params[0].grad = torch.tensor([0.0, -2.0, float("nan")])
    optimizer.step()
    # As torch's sign: that of 0 is 0, and so is that of what is no number.
    torch.testing.assert_close(params[0].detach(), torch.tensor([1.0, 1.1, 1.0]))


@pytest.mark.parametrize("execution", EXECUTIONS[:3], ids=label)
@pytest.mark.parametrize("cls", TABLE)
def test_a_run_resumes_bit_for_bit(cls, execution):
    options = TABLE[cls].options[-1]
    whole = cls(groups(parameters()), **options, **execution)
    descend(whole, 5)
    params = [torch.nn.Parameter(p.detach().clone()) for p in flat(whole)]
    resumed = cls(groups(params), **options, **execution)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert all(map(same_bits, descend(whole, 4, seed=7), descend(resumed, 4, seed=7)))


@pytest.mark.parametrize("t", [1, 7, 39, 40, 41, 99, 100, 2000])
def test_the_ramps_of_ademamix_are_the_papers_each_of_its_own_length(t):
    hyper = AdEMAMix(parameters(), t_alpha=40, t_beta3=100).defaults
    k = AdEMAMixRule().coefficients(hyper, t)
    reference = pytorch_optimizer.AdEMAMix
    assert k["alpha"] == pytest.approx(reference.schedule_alpha(40, t, 5.0), rel=1e-12)
    beta3 = reference.schedule_beta3(100, t, 0.9, 0.9999)
    assert 1 - k["one_minus_beta3"] == pytest.approx(beta3, rel=1e-12)


def test_a_fast_mean_that_forgets_at_once_does_not_hinder_the_ramp():
    found = []
    for beta1 in (0.0, 1e-300):
        hyper = AdEMAMix(parameters(), betas=(beta1, 0.999, 0.9999), t_beta3=10).defaults
        found.append([AdEMAMixRule().coefficients(hyper, t)["one_minus_beta3"] for t in (1, 5, 9)])
    assert found[0] == pytest.approx(found[1], rel=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (0.9, 0.999)}, "must be three numbers in"),
        ({"betas": (0.9, 0.999, 1.0)}, "Invalid beta parameter at index 2: 1"),
        ({"alpha": -1.0}, "Invalid alpha value: -1"),
        ({"t_alpha": -1}, "Invalid t_alpha: -1; must be a number of updates >= 0, or None"),
        ({"t_beta3": "60%"}, "Invalid t_beta3: '60%'; must be a number of updates"),
    ],
    ids=label,
)
def test_a_bad_argument_of_ademamix_is_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        AdEMAMix(parameters(), **options)


@pytest.mark.parametrize("clip_exp", [0.25, None])
@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_a_first_update_of_adopt_beside_later_ones_is_as_one_by_itself(execution, eps, clip_exp):
    def both(make):
        old, new = (torch.ones(4).requires_grad_(leaves) for _ in range(2))
        optimizer = make([{"params": [old]}, {"params": [new]}])
        moved = []
        # The second moment is 0 where the later update divides by it, and a gradient overflows.
        for new_grad in (None, torch.tensor([0.0, torch.inf, 1e38, -3.0]), torch.ones(4)):
            old.grad, new.grad = torch.tensor([float(len(moved)), 2.0, -3.0, 4.0]), new_grad
            optimizer.step()
            moved.append([old.detach().clone(), new.detach().clone()])
        return moved

    leaves = not execution.get("differentiable")
    options = {"lr": 0.1, "eps": eps, "clip_exp": clip_exp}
    found = both(lambda groups: ADOPT(groups, **options, **execution))
    assert torch.equal(found[1][1], torch.ones(4))
    if eps:  # without, 0 / 0 is no number in either
        leaves = True
        expected = both(lambda groups: adopt(groups, **options))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
