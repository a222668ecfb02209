import json

import pytest
from support import pages
from support.recipes import FULL

from optimplug import Recipe, RecipeError
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.recipe import json_schema as module
from optimplug.recipe.text.written import path_of

SCHEMA = Recipe.json_schema()
ADAMW = {"name": "AdamW", "lr": 1e-3}


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


def rule(**said):
    return {"optimizer": ADAMW, "groups": [said]}


def phase(**said):
    return {"optimizer": ADAMW, "schedule": [said]}


GOOD = {
    "all of it": FULL,
    "the least": {"optimizer": {"name": "AdamW"}},
    "keys of one's own": {"x-peak": {"lr": 1e-3}, "optimizer": {"name": "AdamW"}},
    "a list": {"optimizer": {**ADAMW, "betas": [0.9, 0.95]}},
    "null where it is the default": {"optimizer": {**ADAMW, "foreach": None}},
    "an optimizer from elsewhere": {
        "optimizer": {"name": "torch.optim.NAdam", "lr": 1e-3, "momentum_decay": 0.01},
        "groups": [{"match": "*", "momentum_decay": 0.1}],
    },
    "names": rule(match=["*.a", "*.b"], weight_decay=0),
    "conditions": rule(match={"type": "norm", "ndim": 1, "regex": "x$"}, weight_decay=0),
    "types": rule(match={"type": ["norm", "MyLayer"]}, weight_decay=0),
    "nested": rule(match={"any": ["*.a", {"not": {"all": [{"type": "conv"}]}}]}, lr_scale=2),
    "no match": rule(layer_decay=0.9),
    "a smallest factor": rule(layer_decay={"rate": 0.9, "min": 0.1}),
    "no decay": rule(no_decay=["norm", "*.scale"]),
    "no decay of one": rule(no_decay="bias"),
    **{
        f"depth {depth}": rule(match={"depth": depth}, lr_scale=2)
        for depth in (0, -1, "0-3", ">=-2", [1, "<= 4"])
    },
    "freeze": rule(match="*", freeze=True),
    **{
        f"for {length}": phase(**{"name": "CosineAnnealingLR", "for": length})
        for length in (5, "500", "500 steps", "1 step", "2 epochs", "0.5 epochs", "6%", "rest")
    },
    **{
        f"from {start}": {
            "optimizer": ADAMW,
            "schedule": [
                {"name": "LinearLR", "for": 5},
                {"preset": "cosine", "for": 5, "from": start},
                {
                    "together": [{"name": "StepLR", "step_size": 1}, {"preset": "linear"}],
                    "from": start,
                },
            ],
        }
        for start in ("previous", "peak")
    },
    "a layer decay of nothing": rule(layer_decay=1),
    "arguments": phase(name="LinearLR", start_factor=0.1, end_factor=0.5, total_iters=5),
}
LIST = {"name": "LinearLR", "for": 10}
GOOD |= {
    f"schedule {i}": {"optimizer": ADAMW, "schedule": schedule}
    for i, schedule in enumerate(
        [
            "cosine",
            {"preset": "cosine", "warmup": "6%", "num_cycles": 1},
            {"preset": "warmup_stable_decay", "num_decay_steps": "10%", "decay_type": "linear"},
            {"preset": "reduce_lr_on_plateau", "monitor": "loss", "floor": 0.1},
            LIST,
            [LIST, {"together": [{"name": "ExponentialLR", "gamma": 0.9}, {"preset": "cosine"}]}],
            {"name": "StepLR", "step_size": "2 epochs", "every": "epoch"},
            {"name": "MultiStepLR", "milestones": [10, "50%"]},
            {"name": "CosineAnnealingWarmRestarts", "T_0": "10%", "T_mult": 2, "floor": 0.1},
            {"name": "CyclicLR", "floor": 0.1, "mode": "exp_range", "gamma": 0.9},
            {"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 2},
            [{"preset": "linear"}, {"preset": "cosine", "of": "weight_decay"}],
        ]
    )
}
GOOD |= {
    "freeze until": rule(match="*", freeze={"until": "1 epoch"}),
    "a schedule of its own": rule(match="*", schedule="constant"),
}
GOOD |= {
    "a rule's optimizer by its name": rule(match="*", optimizer="Lion"),
    "a rule's optimizer": rule(match="*", optimizer={"name": "SGD", "momentum": 0.9}, lr=0.1),
    "a rule's keys of another optimizer": {
        "optimizer": ADAMW,
        "groups": [{"match": "*a", "optimizer": "Lion"}, {"match": "*b", "eps": 1e-6}],
    },
    "a fallback": {"optimizer": {"name": "Muon", "lr": 0.02, "fallback": ADAMW}},
    "a fallback by its name": {"optimizer": {"name": "Muon", "lr": 0.02, "fallback": "AdamW"}},
}
GOOD |= {
    f"{key} {value}": {"optimizer": {**ADAMW, key: value}, "groups": [{"match": "*", key: value}]}
    for key, values in (("rounding", Rounding.__args__), ("state_dtype", StateDtype.__args__))
    for value in values
}
BAD = {
    "an unknown rounding": ({"optimizer": {**ADAMW, "rounding": "up"}}, "optimizer.rounding"),
    "a rule's unknown rounding": (rule(match="*", rounding="up"), "groups[0].rounding"),
    "an unknown state_dtype": (
        {"optimizer": {**ADAMW, "state_dtype": "float16"}},
        "optimizer.state_dtype",
    ),
    "a rule's unknown state_dtype": (rule(match="*", state_dtype="4bit"), "groups[0].state_dtype"),
    "a fallback's unknown state_dtype": (
        {"optimizer": {"name": "Muon", "fallback": {"name": "AdamW", "state_dtype": 8}}},
        "optimizer.fallback.state_dtype",
    ),
    "a rule's unknown optimizer": (rule(optimizer="Lino"), "groups[0].optimizer"),
    "a rule's optimizer with another's key": (
        rule(optimizer={"name": "Lion", "eps": 1}),
        "groups[0].optimizer",
    ),
    "a rule's optimizer that clips": (
        rule(optimizer={"name": "Lion", "max_grad_norm": 1}),
        "groups[0].optimizer",
    ),
    "a fallback with another's key": (
        {
            "optimizer": {
                "name": "Muon",
                "fallback": {"name": "AdamW", "momentum": 0.9},
            }
        },
        "optimizer.fallback",
    ),
    "empty": ({}, ""),
    "not a mapping": ([], ""),
    "no optimizer": ({"groups": []}, ""),
    "no name": ({"optimizer": {"lr": 1}}, "optimizer"),
    "an unknown optimizer": ({"optimizer": {"name": "AdmW", "lr": 1}}, "optimizer.name"),
    "an unknown key": ({"optimizer": ADAMW, "gruops": []}, ""),
    "an unknown hyperparameter": ({"optimizer": {**ADAMW, "lrr": 1}}, "optimizer"),
    "of another optimizer": ({"optimizer": {**ADAMW, "momentum": 0.9}}, "optimizer"),
    "text for a number": ({"optimizer": {"name": "AdamW", "lr": "fast"}}, "optimizer.lr"),
    "true for a number": ({"optimizer": {"name": "AdamW", "lr": True}}, "optimizer.lr"),
    "a number for true": ({"optimizer": {**ADAMW, "amsgrad": 1}}, "optimizer.amsgrad"),
    "too short a list": ({"optimizer": {**ADAMW, "betas": [0.9]}}, "optimizer.betas"),
    "groups that are no list": ({"optimizer": ADAMW, "groups": {}}, "groups"),
    "an empty rule": (rule(), "groups[0]"),
    "a rule's unknown key": (rule(match="*", weigth_decay=0), "groups[0]"),
    "a rule of another optimizer": (rule(match="*", nesterov=True), "groups[0]"),
    "a rule for the whole optimizer": (rule(match="*", max_grad_norm=1), "groups[0]"),
    "a scale below 0": (rule(lr_scale=-1), "groups[0].lr_scale"),
    "a decay of 0": (rule(layer_decay=0), "groups[0].layer_decay"),
    "a smallest factor alone": (rule(layer_decay={"min": 0.1}), "groups[0].layer_decay"),
    "a depth of two": (rule(match={"depth": "1,2"}, lr_scale=2), "groups[0].match"),
    "no decay of nothing": (rule(no_decay=[]), "groups[0].no_decay"),
    "freeze: maybe": (rule(freeze="maybe"), "groups[0].freeze"),
    "an empty match": (rule(match={}, lr_scale=1), "groups[0].match"),
    "no names": (rule(match=[], lr_scale=1), "groups[0].match"),
    "an unknown condition": (rule(match={"nmae": "*"}, lr_scale=1), "groups[0].match"),
    "a number of dimensions below 0": (rule(match={"ndim": -1}, lr_scale=1), "groups[0].match"),
    "deep inside": (rule(match={"not": {"any": [{"ndim": "1"}]}}, lr_scale=1), "groups[0].match"),
    "freeze until never": (rule(freeze={"until": "never"}), "groups[0].freeze"),
    "an unknown preset": ({"optimizer": ADAMW, "schedule": "cosin"}, "schedule"),
    "an argument of another preset": (
        {"optimizer": ADAMW, "schedule": [{"preset": "linear", "num_cycles": 2}]},
        "schedule[0]",
    ),
    "a warmup of a scheduler": (phase(name="LinearLR", warmup=5), "schedule[0]"),
    "a name and a preset": (phase(name="LinearLR", preset="linear"), "schedule[0]"),
    "a plateau without a metric": (phase(name="ReduceLROnPlateau"), "schedule[0]"),
    "an absolute minimum": (phase(name="CosineAnnealingLR", eta_min=0.1), "schedule[0]"),
    "a required argument": (phase(name="ExponentialLR"), "schedule[0]"),
    "one thing together": (phase(together=[LIST]), "schedule[0].together"),
    "together with a name": (phase(together=[LIST, LIST], floor=0), "schedule[0]"),
    "an unknown unit": (phase(preset="linear", every="month"), "schedule[0].every"),
    "a phase without a name": (phase(**{"for": 5}), "schedule[0]"),
    "an unknown scheduler": (phase(name="CosineLR"), "schedule[0].name"),
    "an unknown argument": (phase(name="CosineAnnealingLR", T_mx=5), "schedule[0]"),
    "of another scheduler": (phase(name="CosineAnnealingLR", start_factor=0.5), "schedule[0]"),
    "a duration of nothing": (phase(**{"name": "LinearLR", "for": "6 percent"}), "schedule[0].for"),
    "a duration below 0": (phase(**{"name": "LinearLR", "for": -5}), "schedule[0].for"),
    "a floor above 1": (phase(name="CosineAnnealingLR", floor=2), "schedule[0].floor"),
}


def every_error(errors):
    """Errors, and what lies beneath those of forms that exclude each other."""
    for error in errors:
        yield error
        yield from every_error(error.context)


@pytest.mark.parametrize("recipe", GOOD.values(), ids=GOOD)
def test_a_good_recipe_is_valid(validator, recipe):
    Recipe.load(recipe)
    assert [error.message for error in validator.iter_errors(recipe)] == []


@pytest.mark.parametrize(("recipe", "path"), BAD.values(), ids=BAD)
def test_a_bad_recipe_is_not_and_the_schema_tells_where(validator, recipe, path):
    if isinstance(recipe, dict):  # for a list, to load it is a mistake of the caller's
        with pytest.raises(RecipeError):
            Recipe.load(recipe)
    errors = every_error(validator.iter_errors(recipe))
    places = [path_of(error.absolute_path) for error in errors]
    assert path in places


def test_the_recipes_of_all_pages_are_valid(validator, tmp_path):
    texts = [(page, block.text) for page in pages.pages() for block in pages.blocks(page, "yaml")]
    for page, text in texts:
        content = {"optimizer": ADAMW, **pages.read_block(page, text, tmp_path)}  # some show a part
        if "trainer" in content:
            continue  # Lightning's
        assert [error.message for error in validator.iter_errors(content)] == [], text


def test_an_editor_finds_names_and_descriptions():
    parts = SCHEMA["$defs"]
    assert {"SGD", "Adam", "AdamW"} <= {
        *parts["OptimizerSpec"]["properties"]["name"]["anyOf"][0]["enum"]
    }
    assert {"LinearLR", "CosineAnnealingLR"} <= {*parts["PhaseSpec"]["properties"]["name"]["enum"]}
    for part in ("OptimizerSpec", "RuleSpec", "PhaseSpec"):
        said = parts[part]["properties"]
        assert sum("description" in form for form in said.values()) > 0.6 * len(said)
    assert {"cosine", "linear"} <= {*parts["PhaseSpec"]["properties"]["preset"]["enum"]}
    types = parts["Match"]["anyOf"][-1]["properties"]["type"]["anyOf"]
    assert {"enum": ["norm", "embedding", "linear", "conv"]} in types


def test_the_schema_is_plain_and_the_same_every_time():
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA == module.json_schema()
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("own", [{}, {"optimizer": {"lr": 1e-4}}, {"groups": [{"layer_decay": 1}]}])
def test_what_a_recipe_extends_may_say_what_is_required(validator, own):
    assert validator.is_valid({"extends": "base.yaml", **own})


@pytest.mark.parametrize("bad", [{"extends": 3}, {"groups": []}, {"optimizer": {"lr": 1e-4}}])
def test_nothing_else_may(validator, bad):
    assert not validator.is_valid(bad)
