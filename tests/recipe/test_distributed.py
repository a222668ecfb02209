"""Recipes under data parallelism, in two processes."""

import pytest
import torch
import torch.distributed as dist
from support.processes import in_two_processes
from torch.nn.parallel import DistributedDataParallel

from optimplug import Horizon, Recipe

RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 0.1, "max_grad_norm": 1.0},
    "groups": [{"match": "0.*", "freeze": {"until": 3}}, {"match": "1.*", "schedule": "linear"}],
    "schedule": [{"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 0, "factor": 0.5}],
}
STEPS = 6


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 2, generator=generator)


def train(model, wrap, part):
    """Return the weights before every update, and the rates."""
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    optimizer, scheduler = Recipe.load(RECIPE).build(model, Horizon(total_steps=STEPS))
    wrapped = wrap(model)
    weights, rates = [], []
    for step in range(STEPS):
        weights.append([p.detach().clone() for p in model.parameters()])
        rates.append(scheduler.get_last_lr())
        optimizer.zero_grad()
        wrapped(batch(step)[part]).square().mean().backward()
        optimizer.step()
        scheduler.step()
        scheduler.step_metric({"loss": float(step)})
    return weights, rates


def build():
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))


def run():
    first = 2 * dist.get_rank()
    return train(build(), DistributedDataParallel, slice(first, first + 2))


@pytest.mark.slow
def test_two_processes_train_as_one_and_thaw_together():
    weights, rates = train(build(), lambda model: model, slice(None))
    first, second = in_two_processes(run)
    assert first[1] == second[1] == rates
    for step in range(STEPS):
        for a, b, alone in zip(first[0][step], second[0][step], weights[step], strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, alone)
    frozen = [step[0] for step in first[0]]
    assert all(torch.equal(frozen[0], later) for later in frozen[1:4])
    assert not torch.equal(frozen[3], frozen[4])
