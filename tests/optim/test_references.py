"""Optimizers that torch has not, against the packages that have them."""

import copy

import lion_pytorch
import pytest
import torch
from support.labels import label
from support.tensors import descend, parameters, same_bits

from optimplug.optim import Lion

LION = [
    {},
    {"lr": 1e-2, "betas": (0.95, 0.98)},
    {"lr": 1e-2, "weight_decay": 0.1},
]
REFERENCES = [(Lion, lion_pytorch.Lion, options) for options in LION]
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


@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
@pytest.mark.parametrize(("cls", "reference", "options"), REFERENCES, ids=label)
def test_every_execution_is_the_reference(cls, reference, options, execution):
    # Autograd allows no change in place of what requires gradients itself.
    leaves = not execution.get("differentiable")
    params = [p if leaves else p.detach() for p in parameters()]
    ours = cls(groups(params), **options, **execution)
    theirs = reference(groups(parameters()), **options)
    for a, b in zip(descend(ours, 100), descend(theirs, 100), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("execution", EXECUTIONS[:3], ids=label)
def test_lion_stands_still_where_there_is_no_direction(execution):
    params = [torch.nn.Parameter(torch.ones(3))]
    optimizer = Lion(params, lr=0.1, **execution)
    params[0].grad = torch.tensor([0.0, -2.0, float("nan")])
    optimizer.step()
    # As torch's sign: that of 0 is 0, and so is that of what is no number.
    torch.testing.assert_close(params[0].detach(), torch.tensor([1.0, 1.1, 1.0]))


@pytest.mark.parametrize("execution", EXECUTIONS[:3], ids=label)
def test_a_run_of_lion_resumes_bit_for_bit(execution):
    whole = Lion(groups(parameters()), **execution)
    descend(whole, 5)
    params = [torch.nn.Parameter(p.detach().clone()) for p in flat(whole)]
    resumed = Lion(groups(params), **execution)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert all(map(same_bits, descend(whole, 4, seed=7), descend(resumed, 4, seed=7)))
