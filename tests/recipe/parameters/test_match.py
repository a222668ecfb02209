import pytest
import torch
from support.bert import tiny_bert
from support.recipes import RUN, recipe_of
from torch import nn

from optimplug import RecipeError
from optimplug.recipe.parameters import match
from optimplug.recipe.parameters.depth.depth import depths
from optimplug.recipe.text.depth_range import DepthRange


def matched(model, match):
    groups = recipe_of({"match": match, "lr": 5.0}).plan(model, RUN).groups
    return {name for group in groups if group.lr == 5.0 for name in group.parameters}


DEPTHS = [  # of a model with embeddings at 0, layers at 1, 2 and 3, and its head at 4
    (0, {0}),
    (2, {2}),
    (-1, {4}),
    (-2, {3}),
    (-5, {0}),
    ([0, -1], {0, 4}),
    ("0-2", {0, 1, 2}),
    ("3 - 9", {3, 4}),
    (">=2", {2, 3, 4}),
    ("<=1", {0, 1}),
    (">=-2", {3, 4}),
    ("<=-4", {0, 1}),
    (["<=0", 2, ">= -1"], {0, 2, 4}),
]


@pytest.mark.parametrize(("depth", "expected"), DEPTHS, ids=[str(d[0]) for d in DEPTHS])
def test_depth(depth, expected):
    model = tiny_bert(layers=3)
    known = depths(model)
    assert matched(model, {"depth": depth}) == {n for n in known if known[n] in expected}


@pytest.mark.parametrize(
    "given", [{"depth": -1, "type": "linear"}, {"all": [{"depth": -1}, {"not": {"depth": "<=2"}}]}]
)
def test_depth_among_other_conditions(given):
    model = tiny_bert(layers=2)
    assert matched(model, given) == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"
    }  # fmt: skip


@pytest.mark.parametrize("value", ["x", "1-", "3-1", ">2", True, 1.5, None, "-3--1"])
def test_a_bad_depth_is_refused(value):
    with pytest.raises(ValueError, match=r"must be a depth|must go from low to high"):
        DepthRange.parse(value)


def test_a_depth_that_the_model_does_not_have_is_told():
    with pytest.raises(RecipeError) as error:
        matched(tiny_bert(layers=2), {"depth": 9})
    assert str(error.value) == "groups[0].match: depth: 9 matches no parameter"


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ({"match": {"any": [{"depth": 1}, "*"]}, "lr": 1.0}, "groups[0].match"),
        ({"layer_decay": 0.5}, "groups[0].layer_decay"),
    ],
)
def test_without_layers_a_depth_says_how_to_go_on(rule, path):
    with pytest.raises(RecipeError) as error:
        recipe_of(rule).plan(nn.Linear(2, 2), RUN)
    (problem,) = error.value.problems
    assert problem.path == path
    assert "no list of layers" in problem.message
    assert "write one rule per part" in problem.message


def test_a_tied_parameter_lies_where_its_first_name_does():
    model = nn.Module()
    model.embedding = nn.Embedding(4, 4)
    model.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model.head = nn.Linear(4, 4)
    model.head.weight = model.embedding.weight
    assert matched(model, {"depth": 0}) == {"embedding.weight"}
    assert matched(model, {"depth": -1}) == {"head.bias"}


def test_a_glob_is_translated_once_however_many_parameters_there_are(monkeypatch):
    seen, translate = [], match.translate
    monkeypatch.setattr(match, "translate", lambda glob: (seen.append(glob), translate(glob))[1])
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(50)])
    rules = [{"match": [f"{i}.weight", f"{i}.bias"], "lr": float(i + 1)} for i in range(50)]
    recipe_of(*rules).plan(model, RUN)
    assert len(seen) == 300  # each word by itself, all of a rule together, and to vote


def test_a_suggestion_is_not_what_was_given():
    recipe = recipe_of({"match": "*.bias", "lr": 1.0})
    with pytest.raises(RecipeError, match=r"'\*\.bias' matches no parameter; did you mean '\*bias"):
        recipe.param_groups(torch.nn.Linear(2, 2))
