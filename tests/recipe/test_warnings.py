import pytest
from support.recipes import ADAMW, recipe_of
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
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "loss"}
HOW = "say 'from: previous' to go on from there, or 'from: peak' if this is meant"
WAVE = "so that it falls, rises again, and so on; leave it out to fall once"
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
    "a floor of a cycle, which starts there": (
        [{"name": "CyclicLR", "floor": 0.1, "step_size_up": 10}],
        [],
    ),
    "a jump up": (
        [{**FALL, "floor": 0.1, "for": 50}, PLATEAU],
        [f"schedule[1]: lr jumps from 0.1 x its own to 1 x; {HOW}"],
    ),
    "a jump down": (
        [{"name": "ConstantLR", "factor": 1, "for": 50}, {"name": "LinearLR", "start_factor": 0.5}],
        [f"schedule[1]: lr jumps from 1 x its own to 0.5 x; {HOW}"],
    ),
    "a jump from a rate that is held": (
        [{"name": "ConstantLR", "factor": 0.2, "for": 50}, FALL],
        [f"schedule[1]: lr jumps from 0.2 x its own to 1 x; {HOW}"],
    ),
    "a jump to 0": (
        [{"name": "ConstantLR", "factor": 1, "for": 50}, {"preset": "cosine", "warmup": 10}],
        [f"schedule[1]: lr jumps from 1 x its own to 0 x; {HOW}"],
    ),
    "a jump past a phase of no steps": (
        [{**FALL, "floor": 0.1, "for": 50}, {"name": "LinearLR", "for": 0}, PLATEAU],
        [
            "schedule[1]: LinearLR takes 0 steps, so it does nothing",
            f"schedule[2]: lr jumps from 0.1 x its own to 1 x; {HOW}",
        ],
    ),
    "a jump of another hyperparameter": (
        [
            {
                "name": "LinearLR",
                "start_factor": 1,
                "end_factor": 0.5,
                "for": 50,
                "of": "weight_decay",
            },
            {"name": "ConstantLR", "factor": 1, "of": "weight_decay"},
        ],
        [f"schedule[1]: weight_decay jumps from 0.5 x its own to 1 x; {HOW}"],
    ),
    "a jump that is said": (
        [{**FALL, "floor": 0.1, "for": 50}, {**PLATEAU, "from": "peak"}],
        [],
    ),
    "no jump": ([{**FALL, "floor": 0.1, "for": 50}, {**PLATEAU, "from": "previous"}], []),
    "almost none": (
        [{**FALL, "floor": 0.991, "for": 50}, {"name": "StepLR", "step_size": 10}],
        [],
    ),
    "what a plateau has come to is not known": (
        [{**PLATEAU, "for": 50}, FALL],
        [f"schedule[1]: starts at its own lr, whatever ReduceLROnPlateau has made of it; {HOW}"],
    ),
    "nor what goes on from there": (
        [{**PLATEAU, "for": 50}, {**FALL, "floor": 0.1, "for": 10, "from": "previous"}, PLATEAU],
        [f"schedule[2]: starts at its own lr, whatever CosineAnnealingLR has made of it; {HOW}"],
    ),
    "nor what validations have made of it": (
        [{"name": "ExponentialLR", "gamma": 0.9, "every": "validation", "for": 50}, FALL],
        [f"schedule[1]: starts at its own lr, whatever ExponentialLR has made of it; {HOW}"],
    ),
    "a wave": (
        [{**FALL, "T_max": 10}],
        [f"schedule[0].T_max: is 10 of the phase's 100 steps, {WAVE}"],
    ),
    "a wave in epochs": (
        [{**FALL, "T_max": 1, "every": "epoch"}],
        [f"schedule[0].T_max: is 1 of the phase's 4 epochs, {WAVE}"],
    ),
    "a wave in percent": (
        [{"name": "ConstantLR", "factor": 1, "for": "90%"}, {**FALL, "T_max": "5%"}],
        [f"schedule[1].T_max: is 5 of the phase's 10 steps, {WAVE}"],
    ),
    "a wave among others": (
        [{"together": [{**FALL, "T_max": 10}, {"name": "StepLR", "step_size": 50}]}],
        [f"schedule[0].together[0].T_max: is 10 of the phase's 100 steps, {WAVE}"],
    ),
    "a wave that is meant": ([{"name": "CosineAnnealingWarmRestarts", "T_0": 10}], []),
    "a wave by validations, of which nobody knows": (
        [{**FALL, "T_max": 10, "every": "validation"}],
        [],
    ),
    "as long as the phase": ([{**FALL, "T_max": 100}], []),
    "a step of rounding": ([{**FALL, "T_max": 99}], []),
    **{
        f"a plateau on {monitor}": (
            [{**PLATEAU, "monitor": monitor}],
            [
                f"schedule[0].monitor: {monitor!r} is better the higher it is, it seems, but mode "
                "is 'min'; say 'mode: max', or 'mode: min'"
            ],
        )
        for monitor in ("eval_accuracy", "val_acc", "macro_F1", "eval_roc_auc", "eval_sacrebleu")
    },
    "a plateau on accuracy, with its mode": (
        [{**PLATEAU, "monitor": "eval_accuracy", "mode": "max"}],
        [],
    ),
    "even with the other": ([{**PLATEAU, "monitor": "eval_accuracy", "mode": "min"}], []),
    "a plateau on accuracy among others": (
        [{"together": [FALL, {**PLATEAU, "monitor": "val_acc"}]}],
        [
            "schedule[0].together[1].monitor: 'val_acc' is better the higher it is, it seems, but "
            "mode is 'min'; say 'mode: max', or 'mode: min'"
        ],
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
    plan = recipe_of(schedule=phases).plan(model(), Horizon(total_steps=100, steps_per_epoch=25))
    assert [str(warning) for warning in plan.warnings] == expected
    assert [f"{w['path']}: {w['message']}" for w in plan.to_dict()["warnings"]] == expected


SMALL = "optimizer.state_dtype: is float32 for all, as no parameter has 4,096 elements, which 8bit needs"
STORAGE = {
    "codes that there are": ({"state_dtype": "8bit", "compact_state": True}, 64, []),
    "parameters too small for them": ({"state_dtype": "8bit"}, 63, [SMALL]),
    "no codes to save": (
        {"compact_state": True},
        64,
        ["optimizer.compact_state: has no effect without state_dtype: 8bit"],
    ),
    "nothing to draw": (
        {"rounding": "exact", "rounding_seed": 1},
        64,
        ["optimizer.rounding_seed: has no effect without rounding: stochastic"],
    ),
    "drawn": ({"rounding": "stochastic", "rounding_seed": 1}, 64, []),
}


@pytest.mark.parametrize(("settings", "side", "expected"), STORAGE.values(), ids=STORAGE)
def test_storage(settings, side, expected):
    plan = recipe_of(**settings).plan(nn.Linear(side, side), Horizon(total_steps=10))
    assert [str(warning) for warning in plan.warnings] == expected


OF_ALL = {"match": "*", "optimizer": "Lion"}
MOVES_NOTHING = "it has no parameters to train"
OF_SEVERAL = {
    "the recipe's own moves nothing": (
        {},
        [OF_ALL],
        [f"optimizer: has no effect: {MOVES_NOTHING}"],
    ),
    "but says what is for all": (
        {"max_grad_norm": 1.0, "foreach": False},
        [OF_ALL],
        [f"optimizer: has no effect beside foreach and max_grad_norm: {MOVES_NOTHING}"],
    ),
    "no parameter has a setting of the recipe's own": (
        {"weight_decay": 0.1, "max_grad_norm": 1.0},
        [{"match": "0.*", "optimizer": "Lion"}, {"weight_decay": 0.2}],
        [
            "optimizer.weight_decay: is overridden for all its parameters by groups[1]; "
            "remove one of them"
        ],
    ),
    "some have": (
        {"weight_decay": 0.1},
        [{"match": "0.*", "optimizer": "Lion"}, {"match": "1.*", "weight_decay": 0.2}],
        [],
    ),
    "one alone may be overridden": ({"weight_decay": 0.1}, [{"weight_decay": 0.2}], []),
}


@pytest.mark.parametrize(("settings", "rules", "expected"), OF_SEVERAL.values(), ids=OF_SEVERAL)
def test_settings_of_the_recipes_own_optimizer(settings, rules, expected):
    plan = recipe_of(*rules, **settings).plan(model(), Horizon(total_steps=100))
    assert [str(warning) for warning in plan.warnings] == expected


FREE = {"name": "ScheduleFreeAdamW", "lr": 1e-3, "warmup_steps": 10}
VAIN = (
    "schedule: ScheduleFreeAdamW is schedule-free: its average does what a falling rate is for; "
    "leave the schedule out, or say 'schedule: []' in a rule for its parameters; 'warmup_steps' of "
    "the optimizer is its warm-up"
)
FALLS = {**FALL, "floor": 0.1}
DECAYS = {**FALLS, "of": "weight_decay"}
FREE_RULES = {
    "none": (FREE, [{"match": "0.*", "freeze": {"until": 5}}, {"layer_decay": 0.5}], [], []),
    "the recipe's": (FREE, [], [FALLS], [VAIN]),
    "of another hyperparameter": (FREE, [], [DECAYS], []),
    "a rule's": (FREE, [{"match": "0.*", "schedule": FALLS}], [], [f"groups[0].{VAIN}"]),
    "a rule's of another": (FREE, [{"schedule": DECAYS}], [FALLS], [VAIN]),
    "for others": (FREE, [{"schedule": []}], [FALLS], []),
    "of one of several": (ADAMW, [{"match": "0.*", "optimizer": FREE}], [FALLS], [VAIN]),
    "for the other of several": (
        ADAMW,
        [{"match": "0.*", "optimizer": FREE, "schedule": []}],
        [FALLS],
        [],
    ),
}


@pytest.mark.parametrize(
    ("optimizer", "rules", "schedule", "expected"), FREE_RULES.values(), ids=FREE_RULES
)
def test_schedules_of_schedule_free_optimizers(optimizer, rules, schedule, expected):
    recipe = recipe_of(*rules, schedule=schedule, **optimizer)
    found = [str(w) for w in recipe.plan(model(), Horizon(total_steps=100)).warnings]
    assert found == expected


def test_those_of_other_packages_are_schedule_free_too():
    recipe = recipe_of(schedule=[FALLS], name="schedulefree.SGDScheduleFree")
    (found,) = recipe.plan(model(), Horizon(total_steps=100)).warnings
    assert str(found) == VAIN.replace("ScheduleFreeAdamW", "SGDScheduleFree")
