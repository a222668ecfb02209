"""What bfloat16 weights do not take, and what a recipe says about it."""

from contextlib import contextmanager

import pytest
import torch
from support.labels import label
from support.recipes import RUN
from torch import nn

from optimplug import Recipe, RecipeError


def model(dtype=torch.bfloat16):
    return nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).to(dtype)


def plan(*groups, dtype=torch.bfloat16, **optimizer):
    recipe = {"optimizer": {"name": "AdamW", "lr": 1e-3, **optimizer}, "groups": list(groups)}
    return Recipe.load(recipe).plan(model(dtype), RUN)


def lost(*groups, **options):
    return [str(w) for w in plan(*groups, **options).warnings if "rounds to nothing" in str(w)]


SAID = [
    ({}, "weight_decay: takes 1e-05 of a weight in a step"),
    ({"name": "Lion", "lr": 1e-4, "weight_decay": 0.1}, "for 100% of the weights: set rounding to"),
    ({"name": "AdEMAMix", "t_alpha": "60%"}, "takes 1e-05 of a weight"),
    ({"name": "SGD", "lr": 0.01, "weight_decay": 0.1}, "in bfloat16 (under 1/512)"),
    ({"name": "Adafactor", "lr": 0.01, "weight_decay": 0.1}, "takes 0.001 of a weight"),
    ({"name": "ScheduleFreeAdamW", "lr": 1e-3, "weight_decay": 0.1}, "takes 0.0001 of a weight"),
]
SILENT = [
    {"rounding": "exact"},
    {"rounding": "stochastic"},
    {"weight_decay": 0.0},
    {"weight_decay": 10.0},
    {"dtype": torch.float32},
    {"name": "Adam", "weight_decay": 0.1},  # its decay is a step like any other
    {"name": "Prodigy", "weight_decay": 0.1},  # it does not know its rate yet
    {"name": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1},
]


@pytest.mark.parametrize(("options", "message"), SAID, ids=label)
def test_a_plan_tells_of_weight_decay_that_rounds_to_nothing(options, message):
    (said,) = lost(**options)
    assert message in said


@pytest.mark.parametrize("options", SILENT, ids=label)
def test_it_is_silent_where_nothing_is_lost_or_nothing_helps(options):
    assert lost(**options) == []


def test_it_is_said_of_matrices_that_are_cut():
    (said,) = lost(
        name="Muon",
        weight_decay=0.1,
        split=4,
        fallback={"name": "AdamW", "lr": 1e-3, "rounding": "exact"},
    )
    assert "takes 0.0001 of a weight" in said
    assert "for 50% of the weights" in said


def test_a_rule_gives_some_weights_a_rounding_of_their_own():
    rule = {"match": "0.*", "rounding": "exact"}
    (said,) = lost(rule)
    assert "for 50% of the weights" in said
    assert plan(rule).state_bytes == 16 * (4 + 4 + 2) + 16 * (2 + 2) + 2 * 4
    optimizer, _ = Recipe.load(
        {"optimizer": {"name": "AdamW", "lr": 1e-3}, "groups": [rule]}
    ).build(model(), RUN)
    assert [group.get("rounding") for group in optimizer.param_groups] == ["exact", None]


def test_a_rounding_that_there_is_not_is_an_error_that_names_the_line():
    with pytest.raises(RecipeError, match=r"optimizer.rounding: rounding must be one of nearest"):
        plan(rounding="up")
    with pytest.raises(
        RecipeError, match=r"groups\[0\].state_dtype: state_dtype, if not None, must be"
    ):
        plan({"match": "0.*", "state_dtype": "4bit"})


@contextmanager
def bfloat16_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("defaults", [lambda: torch.device("meta"), bfloat16_by_default])
def test_it_says_so_whatever_torchs_defaults_are(defaults, caplog):
    recipe = Recipe.load({"optimizer": {"name": "AdamW", "lr": 1e-3}})
    with defaults():
        recipe.build(model(), RUN)
    assert any("takes 1e-05 of a weight" in message for message in caplog.messages)


@pytest.mark.parametrize("module", ["rule_warnings", "schedule_warnings"])
def test_a_model_is_as_it_was_where_a_warning_cannot_be_told(module, monkeypatch):
    def fails(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(f"optimplug.recipe.recipe.{module}", fails)
    recipe = Recipe.load(
        {
            "optimizer": {"name": "AdamW", "lr": 1e-3},
            "groups": [{"match": "0.*", "freeze": True}],
        }
    )
    whole = model()
    with pytest.raises(RuntimeError, match="no"):
        recipe.build(whole, RUN)
    assert all(p.requires_grad for p in whole.parameters())
