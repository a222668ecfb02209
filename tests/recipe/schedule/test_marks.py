import copy

import pytest
import torch
from torch import nn

from optimplug import Horizon, Recipe
from optimplug.recipe import build_scheduler
from optimplug.recipe.schedule.marks import MARKS

RULES = [
    {"match": "0.*", "freeze": {"until": 3}},
    {"match": "1.*", "schedule": "constant"},
]


def recipe_of(name):
    optimizer = {"name": name, "lr": 1.0}
    return Recipe.load({"optimizer": optimizer, "groups": RULES, "schedule": "linear"})


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))


def marks_of(optimizer):
    return [{mark: group.get(mark) for mark in MARKS} for group in optimizer.param_groups]


def plain_state(model, **marks):
    """A state of torch's own optimizer over the same groups, that has taken a step."""
    groups = [{"params": [p], **marks} for p in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize("name", ["SGD", "torch.optim.SGD"])
@pytest.mark.parametrize("marks", [{}, {"freeze": "groups[7]", "schedule": "groups[7]"}])
def test_a_state_of_another_run_takes_no_marks_away(name, marks):
    model = model_of()
    state = plain_state(model, **marks)
    optimizer, scheduler = recipe_of(name).build(model, Horizon(total_steps=10))
    before, frozen = marks_of(optimizer), model[0].weight.detach().clone()
    optimizer.load_state_dict(state)
    assert marks_of(optimizer) == before
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    assert torch.equal(model[0].weight, frozen)
    assert scheduler.get_last_lr() == [0.7, 1.0]


def test_a_name_that_was_saved_stays_where_the_group_has_none():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    build_scheduler("linear", optimizer, Horizon(total_steps=4))
    named = torch.optim.SGD([{"params": [weight], "name": "all"}], lr=1.0)
    optimizer.load_state_dict(named.state_dict())
    assert optimizer.param_groups[0]["name"] == "all"


def test_a_closed_scheduler_keeps_nothing():
    model = model_of()
    optimizer, scheduler = recipe_of("SGD").build(model, Horizon(total_steps=10))
    scheduler.close()
    optimizer.load_state_dict(plain_state(model))
    assert [group.get("freeze") for group in optimizer.param_groups] == [None, None]


@pytest.mark.parametrize("groups", [3, [], [1, 2]])
def test_what_is_no_state_is_for_the_optimizer_to_refuse(groups):
    optimizer, _ = recipe_of("SGD").build(model_of(), Horizon(total_steps=10))
    with pytest.raises(ValueError, match=r"param_groups|parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": groups})
