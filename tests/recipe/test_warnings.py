import pytest
from support.recipes import recipe_of
from torch import nn

from optimplug import Horizon


def model():
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))


def half_frozen():
    made = model()
    made[0].requires_grad_(False)
    return made


ALL = {"weight_decay": 0.3}
WEIGHTS = {"match": "*.weight", "weight_decay": 0.2}
FREEZE = {"match": "0.*", "freeze": True}
RULES = {
    "nothing to say": ([WEIGHTS, {"match": "*.bias", "lr_scale": 2}], model, []),
    "a rule wholly overridden": (
        [WEIGHTS, ALL],
        model,
        ["groups[0]: is overridden for all its parameters by groups[1]; remove it"],
    ),
    "by two rules together": (
        [ALL, WEIGHTS, {"match": "*.bias", "weight_decay": 0.1}],
        model,
        ["groups[0]: is overridden for all its parameters by groups[1], groups[2]; remove it"],
    ),
    "one key of a rule": (
        [{**WEIGHTS, "lr_scale": 2}, ALL],
        model,
        ["groups[0].weight_decay: is overridden for all its parameters by groups[1]; remove it"],
    ),
    "only in part": ([ALL, WEIGHTS], model, []),
    "for frozen parameters": (
        [FREEZE, {"match": "0.bias", "lr_scale": 2}],
        model,
        ["groups[1]: has no effect: all its parameters are frozen"],
    ),
    "for parameters that the model has frozen": (
        [{"match": "0.bias", "lr_scale": 2}],
        half_frozen,
        ["groups[0]: has no effect: all its parameters are frozen"],
    ),
    "freezing what is frozen is no mistake": ([FREEZE], half_frozen, []),
    "a model that stays frozen": (
        [{"match": "0.*", "freeze": False}],
        half_frozen,
        [
            "groups[0].freeze: 2 tensors stay frozen: the model says requires_grad=False; "
            "set it to True there"
        ],
    ),
    "a rate of 0": (
        [{"match": "0.*", "lr_scale": 0}],
        model,
        ["groups: lr of group '0' is 0, so it will not move; freeze it instead"],
    ),
}
FALL = {"name": "CosineAnnealingLR"}
PHASES = {
    "nothing to say": ([{"name": "LinearLR", "start_factor": 0.1, "for": "10%"}, FALL], []),
    "a phase of no steps": (
        [{"name": "LinearLR", "start_factor": 0.1, "for": 0}, FALL],
        ["schedule[0]: LinearLR takes 0 steps, so it does nothing"],
    ),
    "a rest of no steps": (
        [{"name": "LinearLR", "start_factor": 0.1, "for": 100}, FALL],
        ["schedule[1]: CosineAnnealingLR takes 0 steps, so it does nothing"],
    ),
    "a floor as high as the start": (
        [{**FALL, "floor": 1}],
        ["schedule[0].floor: 1 is not below where the phase starts, 1 x lr"],
    ),
    "a run that outlives its rate": (
        [{**FALL, "for": 60}],
        ["schedule: lr is 0 for the last 40 of 100 steps, after the phases"],
    ),
    "a run that outlives its phases, at a rate": ([{**FALL, "floor": 0.1, "for": 60}], []),
}


def test_phases_of_rules_are_looked_at_too_by_the_path_that_they_have():
    rules = [{"match": "0.*", "schedule": {"name": "CosineAnnealingLR", "for": 0}}]
    plan = recipe_of(*rules, schedule=[{**FALL, "of": "weight_decay", "floor": 1}]).plan(
        model(), Horizon(total_steps=100)
    )
    assert [str(warning) for warning in plan.warnings] == [
        "schedule[0].floor: 1 is not below where the phase starts, 1 x weight_decay",
        "groups[0].schedule: CosineAnnealingLR takes 0 steps, so it does nothing",
    ]


@pytest.mark.parametrize(("rules", "build", "expected"), RULES.values(), ids=RULES)
def test_rules(rules, build, expected):
    plan = recipe_of(*rules).plan(build(), Horizon(total_steps=100))
    assert [str(warning) for warning in plan.warnings] == expected
    for line in expected:
        assert f"warning: {line}" in str(plan)


@pytest.mark.parametrize(("phases", "expected"), PHASES.values(), ids=PHASES)
def test_phases(phases, expected):
    plan = recipe_of(schedule=phases).plan(model(), Horizon(total_steps=100))
    assert [str(warning) for warning in plan.warnings] == expected
    assert [f"{w['path']}: {w['message']}" for w in plan.to_dict()["warnings"]] == expected
