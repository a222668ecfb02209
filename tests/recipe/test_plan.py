import json
import sys

import pytest
import torch
from support.bert import tiny_bert
from support.labels import label
from support.recipes import recipe_of
from torch import nn

from optimplug import Horizon, Recipe
from optimplug._core.optim.storage.arguments import STORAGE
from optimplug.optim import AdamW

RUN = Horizon(total_steps=100, steps_per_epoch=10)
RECIPE = Recipe.load(
    {
        "optimizer": {"name": "AdamW", "lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 2.0},
        "groups": [
            {"layer_decay": 0.5},
            {"match": "*.bias", "weight_decay": 0},
            {"match": "*position_embeddings*", "freeze": True},
        ],
        "schedule": [
            {"name": "LinearLR", "start_factor": 0.1, "for": "10%"},
            {"name": "CosineAnnealingLR", "floor": 0.2},
        ],
    }
)


def test_the_plan_is_what_build_builds():
    model = tiny_bert()
    plan = RECIPE.plan(model, RUN)
    optimizer, scheduler = RECIPE.build(model, RUN)
    found = plan.to_dict()["groups"]
    for said, group, built in zip(found, plan.groups, optimizer.param_groups, strict=True):
        assert (said["name"], said["members"]) == (built["name"], built["param_names"])
        assert said["weight_decay"] == built["weight_decay"]
        settings = {**plan.defaults, **group.settings}
        built = {**STORAGE, **built}  # groups have only what is not as in torch
        of_groups = settings.keys() - {"max_grad_norm", "skip_nonfinite", "compact_state"}
        assert of_groups <= built.keys()
        assert {k: settings[k] for k in of_groups - {"lr"}} == {
            k: built[k] for k in of_groups - {"lr"}
        }
        assert said["tensors"] == len(built["params"])
        assert said["parameters"] == sum(p.numel() for p in built["params"])
    assert plan.settings["max_grad_norm"] == optimizer.max_grad_norm
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == set(plan.to_dict()["frozen"])
    rates = []
    for t in range(101):
        rates.append(scheduler.get_last_lr())
        assert [plan.lr(group, t) for group in plan.groups] == rates[-1]
        assert [built["lr"] for built in optimizer.param_groups] == rates[-1]
        optimizer.step()
        scheduler.step()
    for said, trace in zip(found, zip(*rates, strict=True), strict=True):
        assert list(said["lr"].values()) == [trace[0], max(trace), trace[-1]]


OWN = Recipe.load(
    {
        "optimizer": {"name": "AdamW", "lr": 1e-3, "weight_decay": 0.1},
        "groups": [
            {"match": "classifier.*", "schedule": {"preset": "cosine", "warmup": "20%"}},
            {"match": "bert.embeddings.*", "freeze": {"until": "30%"}},
        ],
        "schedule": [{"preset": "linear"}, {"preset": "constant", "of": "weight_decay"}],
    }
)


def test_schedules_of_groups_and_frozen_times_are_told_as_they_come_to_be():
    model = tiny_bert()
    plan = OWN.plan(model, RUN)
    optimizer, scheduler = OWN.build(model, RUN)
    found = {group["name"]: group for group in plan.to_dict()["groups"]}
    assert found["classifier"]["schedule"] == "groups[0]"
    assert found["bert.embeddings"]["frozen_until"] == 30
    rates = []
    for t in range(101):
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert [plan.lr(group, t) for group in plan.groups] == rates[-1]
        optimizer.step()
        scheduler.step()
    for built, trace in zip(optimizer.param_groups, zip(*rates, strict=True), strict=True):
        lr = found[built["name"]]["lr"]
        assert list(lr.values()) == [trace[0], max(trace), trace[-1]]
    lines = [line.strip() for line in str(plan).splitlines()]
    assert "groups[0], lr, steps 0 to 100: cosine" in lines
    assert "weight_decay, steps 0 to 100: constant" in lines
    assert "classifier has the schedule of groups[0]" in lines
    assert "bert.embeddings is frozen until step 30, by groups[1]" in lines


def on_bytes(model, optimizer):
    """The bytes of the distinct tensors in an optimizer's state after a step of all."""
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    kept = {id(t): t for state in optimizer.state.values() for t in state.values()}
    return sum(t.numel() * t.element_size() for t in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=label)
@pytest.mark.parametrize("rule", [{}, {"match": "*.bias", "lr_scale": 2}], ids=["one", "two"])
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "SGD"},
        {"name": "SGD", "momentum": 0.9},
        {"name": "Adam"},
        {"name": "Adam", "foreach": False},
        {"name": "AdamW"},
        {"name": "AdamW", "amsgrad": True},
        {"name": "AdamW", "fused": True},
    ],
    ids=label,
)
def test_the_state_takes_the_bytes_that_the_plan_says(settings, dtype, rule):
    recipe = recipe_of(*[rule] if rule else [], **settings)
    model = tiny_bert().to(dtype)
    said = recipe.plan(model, RUN).state_bytes
    on_meta = recipe.plan(tiny_bert().to(dtype).to("meta"), RUN).state_bytes
    optimizer, _ = recipe.build(model, RUN)
    assert said == on_meta == on_bytes(model, optimizer)
    assert said > 0 or settings == {"name": "SGD"}


def test_a_momentum_of_one_group_alone_counts_for_that_group():
    model = tiny_bert()
    recipe = recipe_of({"match": "classifier.*", "momentum": 0.9}, name="SGD")
    said = recipe.plan(model, RUN).state_bytes
    assert said == 4 * sum(p.numel() for p in model.classifier.parameters())
    assert said == on_bytes(model, recipe.build(model, RUN)[0])


@pytest.mark.parametrize("name", ["torch.optim.AdamW", "recipe.test_plan.Derived"])
def test_the_state_of_other_optimizers_is_unknown(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "recipe.test_plan", sys.modules[__name__])
    plan = recipe_of(name=name).plan(tiny_bert(), RUN)
    assert plan.state_bytes is None
    assert plan.to_dict()["state_bytes"] is None
    assert f"optimizer state: unknown, {name} is not of optimplug.optim" in str(plan)


class Derived(AdamW):
    """What a derived class keeps is its own affair."""


def test_frozen_and_tied_parameters_are_listed():
    model = tiny_bert()
    model.bert.pooler.dense.bias = model.classifier.bias = nn.Parameter(torch.zeros(3))
    plan = RECIPE.plan(model, RUN)
    assert plan.to_dict()["tied"] == [["bert.pooler.dense.bias", "classifier.bias"]]
    lines = [line.strip() for line in str(plan.table(unfold=True)).splitlines()]
    assert "tied: bert.pooler.dense.bias = classifier.bias" in lines
    assert "frozen: bert.embeddings.position_embeddings.weight" in lines


def test_the_dict_counts_everything_once():
    model = tiny_bert()
    found = RECIPE.plan(model, RUN).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["frozen"] == ["bert.embeddings.position_embeddings.weight"]
    frozen = model.bert.embeddings.position_embeddings.weight.numel()
    counted = sum(group["parameters"] for group in found["groups"])
    assert counted == sum(p.numel() for p in model.parameters()) - frozen
    (top,) = (
        g
        for g in found["groups"]
        if g["name"] == "classifier.bias" or "classifier.bias" in g["members"]
    )
    assert top["lr"] == pytest.approx({"start": 1e-4, "peak": 1e-3, "end": 2e-4})
    assert top["settings"] == {"weight_decay": 0}
    assert top["rules"] == ["groups[0]", "groups[1]"]
    assert found["phases"] == [
        {"name": "LinearLR", "start": 0, "steps": 10},
        {"name": "CosineAnnealingLR", "start": 10, "steps": 90},
    ]


def test_plan_holds_for_the_optimizers_own_defaults():
    recipe = Recipe.load({"optimizer": {"name": "AdamW"}})
    plan = recipe.plan(nn.Linear(2, 2), RUN)
    assert plan.groups[0].lr == AdamW(nn.Linear(2, 2).parameters()).defaults["lr"]


def test_the_peak_is_right_when_the_length_is_unknown():
    phase = {"name": "LinearLR", "start_factor": 0.1, "end_factor": 0.5, "for": 10}
    recipe = Recipe.load({"optimizer": {"name": "AdamW", "lr": 1.0}, "schedule": [phase]})
    (group,) = recipe.plan(nn.Linear(2, 2), Horizon()).to_dict()["groups"]
    assert group["lr"] == {"start": 0.1, "peak": 0.5, "end": 0.5}


def test_the_peak_of_a_cycle_much_shorter_than_the_run_is_found():
    cycle = {"name": "CyclicLR", "floor": 0.1, "step_size_up": 7}
    plan = recipe_of(schedule=[cycle], lr=1.0).plan(nn.Linear(2, 2), Horizon(total_steps=100_000))
    assert plan.to_dict()["groups"][0]["lr"]["peak"] == pytest.approx(1.0)
