"""Which state may go to which optimizer."""

import copy
import itertools

import lion_pytorch
import pytest
import torch
from torch import nn

from optimplug import optim
from optimplug.recipe.checkpoint.kinds import kind_of, means_the_same
from optimplug.recipe.checkpoint.saved import read_state
from optimplug.recipe.resolve import optimizer_names

CLASSES = {
    **{name: getattr(optim, name) for name in optimizer_names()},
    **{
        f"torch.optim.{name}": getattr(torch.optim, name)
        for name in optimizer_names()
        if hasattr(torch.optim, name)
    },
}


def stepped(cls):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(4, 4))
    optimizer = cls([p], lr=0.1) if cls is optim.SGD else cls([p], **rate_of(cls))
    getattr(optimizer, "train", lambda: None)()
    p.grad = torch.randn_like(p)
    if "Sparse" in cls.__name__:
        p.grad = p.grad.to_sparse()
    optimizer.step(*[lambda: torch.tensor(1.0)] * ("LBFGS" in cls.__name__))
    return optimizer


def rate_of(cls):
    without = ("Prodigy", "TransformersAdafactor", "CAME", "Adafactor")
    return {} if cls.__name__ in without else {"lr": 0.1}


@pytest.mark.slow
def test_a_state_goes_to_optimizers_of_its_kind_alone():
    optimizers = {name: stepped(cls) for name, cls in CLASSES.items()}
    states = {n: read_state(copy.deepcopy(o.state_dict())) for n, o in optimizers.items()}
    wrong = [
        (one, other)
        for one, other in itertools.product(CLASSES, CLASSES)
        if means_the_same(
            states[one], states[one].groups[0], CLASSES[other], optimizers[other].param_groups[0]
        )
        is not (kind_of(one) == kind_of(other))
    ]
    assert wrong == []


def test_what_another_package_keeps_alike_is_taken_for_the_same():
    saved = read_state(stepped(lion_pytorch.Lion).state_dict())
    for name, cls in CLASSES.items():
        same = means_the_same(saved, saved.groups[0], cls, stepped(cls).param_groups[0])
        assert same is (name == "Lion"), name


@pytest.mark.parametrize("missing", ["fused", "decoupled_weight_decay", "maximize", "capturable"])
def test_what_older_versions_of_torch_lack_tells_nothing(missing):
    state = copy.deepcopy(stepped(torch.optim.AdamW).state_dict())
    state["param_groups"][0].pop(missing)
    saved = read_state(state)
    for name, cls in CLASSES.items():
        same = means_the_same(saved, saved.groups[0], cls, stepped(cls).param_groups[0])
        assert same is (name.rpartition(".")[2] in ("Adam", "AdamW")), name
