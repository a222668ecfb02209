"""An optimizer of another package under test conditions: what ours are held against."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from support.tensors import descend, parameters

EXECUTIONS = [{}, {"foreach": True}, {"foreach": False}]
SHAPES = ((3, 4), (7,), (5, 3, 2, 2), (), (6, 2))


class EachByItself:
    """A reference that counts the steps of a group, one for each parameter.

    So it counts as torch's optimizers and ours do: the updates of each parameter, and none where
    its gradient is missing.
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


class Reference(NamedTuple):
    """One optimizer of another package, with options of ours that mean the same to it."""

    ours: type
    theirs: Callable[..., Any]
    options: list[dict[str, Any]]
    groups: tuple[dict[str, Any], ...] = ({"lr": 1e-2}, {"lr": 3e-3}, {})
    """What each of three groups has of its own."""
    atol: float = 1e-7

    def grouped(self, params):
        """Several groups, the first two parameters in one, the third in another."""
        parts = params[:2], params[2:3], params[3:]
        return [{"params": part, **own} for part, own in zip(parts, self.groups, strict=True)]

    def check_100_steps(self, options, execution):
        """Hold every weight against the reference's, with gradients missing now and then."""
        ours = self.ours(self.grouped(parameters(SHAPES)), **options, **execution)
        theirs = self.theirs(self.grouped(parameters(SHAPES)), **options)
        for a, b in zip(descend(ours, 100), descend(theirs, 100), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=self.atol)

    def check_narrow(self, options, execution):
        """Hold how far bfloat16 weights come to be from float64 against the reference's."""
        shapes = [(8, 8), (30,), (4, 4, 2, 2)] * 6

        def run(make, dtype, **choice):
            optimizer = make(self.grouped(parameters(shapes, dtype)), **options, **choice)
            return descend(optimizer, 20, skip=False, rounding=torch.bfloat16)

        truth = run(self.theirs, torch.float64)
        theirs = run(self.theirs, torch.bfloat16)
        ours = run(self.ours, torch.bfloat16, **execution)
        # Rounding is a matter of luck, though little in so many numbers.
        assert error(ours, truth) <= 1.05 * error(theirs, truth)


def error(found, truth):
    """Root of the summed squares of what differs."""
    pairs = zip(found, truth, strict=True)
    return sum((a.double() - b.double()).square().sum().item() for a, b in pairs) ** 0.5


def flat(optimizer):
    """The parameters of all groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def copies(optimizer):
    """Parameters of their own with the same values."""
    return [torch.nn.Parameter(p.detach().clone()) for p in flat(optimizer)]
