"""A small model whose runs are stopped, and gone on with under another recipe."""

import copy
import io

import torch
from torch import nn

from optimplug import Horizon, Recipe

UPDATES = 6
HORIZON = Horizon(total_steps=12, steps_per_epoch=4)
WARM_UP = {"name": "LinearLR", "start_factor": 0.1, "for": 4}
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "eval_loss", "patience": 0, "factor": 0.5}
RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 0.1, "max_grad_norm": 1.0},
    "groups": [
        {"match": "body.*", "freeze": {"until": 2}},
        {"match": "head.*", "weight_decay": 0.1},
    ],
    "schedule": [WARM_UP, PLATEAU],
}
LOSSES = [5.0, 4.0, 6.0, 7.0, 3.0, 3.0, 8.0, 1.0, 9.0, 2.0, 4.0, 5.0]


class Net(nn.Module):
    """A body and a head; the same weights at every call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def changed(recipe=RECIPE, **changes):
    """Return a recipe with other parts; ``optimizer`` is merged into what is there."""
    own = {**recipe, **changes}
    if "optimizer" in changes:
        own["optimizer"] = {**recipe["optimizer"], **changes["optimizer"]}
    return own


def gradients(model, t):
    """Give a model gradients of update ``t``, by whatever names it has its parameters."""
    model.zero_grad()
    model(torch.full((2, 3), 0.1 * (t + 1))).square().sum().backward()


def update(run, t):
    gradients(run.model, t)
    run.step()
    run.eval()
    run.validated({"eval_loss": LOSSES[t]})
    run.train()


def started(recipe=RECIPE, model=None, horizon=HORIZON):
    return Recipe(recipe).start(Net() if model is None else model, horizon)


def stopped(recipe=RECIPE, model=None, updates=UPDATES, horizon=HORIZON):
    """Return a run after some updates."""
    run = started(recipe, model, horizon)
    for t in range(updates):
        update(run, t)
    return run


def through_file(state):
    """Return what a file gives back, read without running code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def state_of(run):
    return through_file(copy.deepcopy(run.state_dict()))


def moments(optimizer):
    """Return the state of every parameter by name."""
    return {
        name: {key: torch.as_tensor(v).clone() for key, v in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
        if optimizer.state.get(p)
    }


def batches(updates=2 * UPDATES):
    """Return a batch for each update of a run."""
    generator = torch.Generator().manual_seed(3)
    return list(torch.randn(updates, 2, 3, generator=generator))


def loss_of(model, batch):
    return model(batch).square().mean()


def adapted_by_hand(before, after, policy="adapt", horizon=HORIZON, stop=UPDATES, new=None):
    """Train by one recipe, go on by another one, in a plain loop; return the second run."""
    first, all_batches = started(before, horizon=horizon), batches()
    _train(first, all_batches[:stop])
    run = started(after, horizon=new or horizon)
    run.model.load_state_dict(first.model.state_dict())
    run.load_state_dict(state_of(first), resume=policy)
    _train(run, all_batches[stop:])
    return run


def _train(run, of_updates):
    for batch in of_updates:
        loss_of(run.model, batch).backward()
        run.step()
