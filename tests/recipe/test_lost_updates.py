"""What bfloat16 weights do not take, and what a recipe says about it."""

import re
import sys
from contextlib import contextmanager

import pytest
import torch
from support.labels import label
from support.recipes import RUN, recipe_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from optimplug import Recipe, RecipeError
from optimplug.optim import AdamW


def model(dtype=torch.bfloat16):
    return nn.Sequential(*(nn.Linear(4, 4, bias=False, dtype=dtype) for _ in range(2)))


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


def told(key, model, *groups, **optimizer):
    found = recipe_of(*groups, **optimizer).plan(model, RUN).warnings
    words = {"lr": "half a unit", "weight_decay": "of a weight", "state_dtype": "in bfloat16, of"}
    return [p.message for p in found if p.path == f"optimizer.{key}" and words[key] in p.message]


def weights(*values, size=64, dtype=torch.bfloat16):
    """A model of one vector for each of these values."""
    return nn.ParameterList(torch.full((size,), value, dtype=dtype) for value in values)


# Half a unit in the last place of 0.5 is 2^-9, and half of that downwards; of 0.7, 2^-9 both ways.
STAYS = [
    ({"lr": 2**-11}, [0.5, 0.5], "100%"),
    ({"lr": 2**-11}, [0.5, 0.001], "50%"),
    ({"lr": 2**-9 * 0.9}, [0.7, 0.7, 0.7, 0.4], "75%"),
    ({"name": "Lion", "lr": 2**-11}, [0.5, 0.0], "50%"),
    ({"name": "RMSprop", "lr": 2**-12, "momentum": 0.5}, [0.5], "100%"),
    ({"name": "Adagrad", "lr": 2**-11}, [0.5, 0.001], "50%"),
    ({"name": "StableAdamW", "lr": 2**-11}, [0.5, 0.001], "50%"),
    ({"name": "Adafactor", "lr": 2**-10}, [0.5, 0.5], "100%"),  # of the parameter's own size
    ({"name": "LAMB", "lr": 2**-10, "weight_decay": 0.1}, [0.5, 0.5], "100%"),
]
MOVES = [
    ({"lr": 2**-8}, [0.5]),
    ({"lr": 2**-9 * 1.1}, [0.7]),
    ({"lr": 2**-9 * 0.9}, [0.5, -0.5]),  # towards zero alone
    ({"lr": 2**-11}, [0.0, 0.001]),
    ({"lr": 2**-11, "rounding": "exact"}, [0.5]),
    ({"lr": 2**-11, "rounding": "kahan"}, [0.5]),
    ({"lr": 2**-11, "rounding": "stochastic"}, [0.5]),
    ({"name": "RMSprop", "lr": 2**-11, "momentum": 0.9}, [0.5]),
    ({"name": "RMSprop", "lr": 2**-11, "centered": True}, [0.5]),
    ({"name": "AdEMAMix", "lr": 2**-11}, [0.5]),  # its slow mean may add five times as much
    ({"name": "SGD", "lr": 2**-11, "momentum": 0.9}, [0.5]),  # its step is the gradient's
    ({"name": "Rprop", "lr": 2**-11}, [0.5]),
    ({"name": "Adafactor", "lr": 2**-7}, [0.5]),
    ({"name": "Prodigy", "lr": 2**-11}, [0.5]),
    ({"name": "CAME", "lr": 2**-11}, [0.5]),
    ({"name": "ScheduleFreeAdamW", "lr": 2**-11}, [0.5]),
    ({"name": "torch.optim.AdamW", "lr": 2**-11}, [0.5]),
]


@pytest.mark.parametrize(("settings", "values", "share"), STAYS, ids=label)
def test_a_plan_tells_of_steps_that_move_no_weight(settings, values, share):
    (said,) = told("lr", weights(*values), **settings)
    assert f"under half a unit in the last place for {share} of the weights" in said
    assert "set rounding to exact, kahan or stochastic" in said


@pytest.mark.parametrize(("settings", "values"), MOVES, ids=label)
def test_it_says_nothing_of_steps_that_move_them_or_are_not_known(settings, values):
    assert told("lr", weights(*values), **settings) == []


@pytest.mark.parametrize("settings", [case[0] for case in STAYS], ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=label)
def test_it_says_nothing_of_wider_weights_nor_of_float16_for_which_nothing_helps(settings, dtype):
    for key in ("lr", "weight_decay", "state_dtype"):
        assert told(key, weights(0.5, dtype=dtype), **settings) == []


def test_the_share_is_the_one_that_a_step_leaves():
    torch.manual_seed(0)
    weight = torch.randn(300, 100).mul_(0.02).bfloat16()
    optimizer = AdamW([p := nn.Parameter(weight.clone())], lr=2e-5, weight_decay=0.0)
    p.grad = torch.randn(300, 100).bfloat16()
    optimizer.step()
    stayed = (p == weight).float().mean().item()
    (said,) = told("lr", nn.ParameterList([weight]), lr=2e-5)
    share = float(re.search(r"(\d+)% of the weights", said)[1]) / 100
    assert 0.5 < share < 0.9
    # Some go down by half as much as they would go up; and a sample is looked at.
    assert share == pytest.approx(stayed, abs=0.05)


def test_a_rate_of_a_rule_counts():
    rule = {"match": "0", "lr_scale": 0.1}
    (said,) = told("lr", weights(0.7, 0.7), rule, lr=0.01)
    assert "moves a weight by about 0.001 in a step" in said
    assert "for 50% of the weights" in said


def test_each_of_several_optimizers_is_told_of_at_its_own_place():
    rules = [{"match": "1", "optimizer": {"name": "Lion", "lr": 1e-4}}]
    plan = recipe_of(*rules, lr=1e-3).plan(weights(0.7, 0.7), RUN)
    paths = [said.path for said in plan.warnings if "half a unit" in said.message]
    assert paths == ["optimizer.lr", "groups[0].optimizer.lr"]


def test_of_weights_that_are_not_there_no_steps_are_told():
    with torch.device("meta"):
        paths = [said.path for said in plan().warnings]
    assert paths == ["optimizer.weight_decay", "optimizer.state_dtype"]


def test_of_fakes_nothing_is_told():
    with FakeTensorMode():
        assert plan().warnings == ()


class Derived(AdamW):
    """What a derived class does is its own affair."""

    def step(self, closure=None):
        raise RuntimeError("not to be tried")


def test_of_a_class_that_is_derived_from_one_of_ours_no_steps_and_means_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "recipe.test_lost_updates", sys.modules[__name__])
    name = "recipe.test_lost_updates.Derived"
    found = recipe_of(name=name, lr=2**-11, weight_decay=0.0).plan(weights(0.5), RUN)
    assert found.warnings == ()


MEANS = [
    ({}, "exp_avg_sq in bfloat16, of which a step takes 0.001 at the most, which is lost"),
    ({}, "set state_dtype to float32, or rounding to exact"),
    ({"state_dtype": "bfloat16", "rounding": "exact"}, "100% of the weights; set state_dtype to f"),
    ({"betas": [0.9, 0.995]}, "takes 0.005 at the most, which is rounded far off"),
    ({"name": "Adamax"}, "keeps exp_inf in bfloat16"),
    ({"name": "AdEMAMix"}, "keeps exp_avg_sq and exp_avg_slow in bfloat16"),
    ({"name": "RMSprop", "alpha": 0.999}, "keeps square_avg in bfloat16"),
    ({"name": "SparseAdam"}, "keeps exp_avg_sq in bfloat16"),
    ({"name": "ScheduleFreeAdamW", "weight_decay": 0.1}, "keeps exp_avg_sq in bfloat16"),
]
GOOD_MEANS = [
    {"betas": [0.9, 0.99]},
    {"state_dtype": "float32"},
    {"rounding": "exact"},
    {"name": "RMSprop", "alpha": 0.99},
    {"name": "Lion"},
    {"name": "SGD", "momentum": 0.9},
    {"name": "Adagrad"},
    {"name": "Prodigy"},
    {"name": "ASGD", "lambd": 0.1},  # what it averages is weights
    {"name": "ScheduleFreeSGD", "weight_decay": 0.1},
    {"name": "Adafactor"},
]


@pytest.mark.parametrize(("settings", "message"), MEANS, ids=label)
def test_a_plan_tells_of_means_that_bfloat16_holds_up(settings, message):
    (said,) = told("state_dtype", weights(0.5), **settings)
    assert message in said


@pytest.mark.parametrize("settings", GOOD_MEANS, ids=label)
def test_it_says_nothing_of_means_that_fall(settings):
    assert told("state_dtype", weights(0.5), **settings) == []


def test_means_of_float32_weights_are_told_of_where_they_are_bfloat16():
    wide = weights(0.5, 0.5, dtype=torch.float32)
    assert told("state_dtype", wide) == []
    (said,) = told("state_dtype", wide, {"match": "0", "state_dtype": "bfloat16"})
    assert "for 50% of the weights; set state_dtype to float32" in said
    assert "rounding" not in said


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, AdamW])
def test_a_mean_in_bfloat16_does_stay_where_it_is(optimizer):
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    kept = optimizer([p])
    for gradient in [1.0] * 10 + [0.0] * 1000:
        p.grad = torch.full_like(p, gradient)
        kept.step()
    assert kept.state[p]["exp_avg_sq"].item() > 0.8 * (1 - 0.999**10)


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
