"""Every mistake in a recipe, and the line that must come back for it."""

import pickle
import sys

import pytest
from support.bert import tiny_bert
from support.recipes import ADAMW, FULL, RUN, recipe_of
from torch import nn

from optimplug import Horizon, Recipe, RecipeError

BAD_FORM = [  # what a recipe says instead of what is in FULL, and every line that must come back
    ({"optimzer": {}}, ["optimzer: unknown key; did you mean 'optimizer'?"]),
    ({"optimizer": None}, ["optimizer: must be a mapping (got None)"]),
    ({"schedule": [{"nam": "LinearLR"}]}, ["schedule[0].nam: unknown key; did you mean 'name'?"]),
    ({"optimizer": {"lr": 1.0}}, ["optimizer.name: is required, but missing"]),
    (
        {"optimizer": {"name": "AdmW"}},
        ["optimizer.name: no optimizer 'AdmW'; did you mean 'AdamW'?"],
    ),
    *(
        (
            {"optimizer": {"name": name}},
            [
                f"optimizer.name: no optimizer '{name}'; did you mean '{meant}' with state_dtype: 8bit?"
            ],
        )
        for name, meant in [
            ("AdamW8bit", "AdamW"),
            ("adamw_bnb_8bit", "AdamW"),
            ("PagedAdamW8bit", "AdamW"),
            ("lion_8bit", "Lion"),
        ]
    ),
    ({"optimizer": {**ADAMW, "lrr": 1}}, ["optimizer.lrr: unknown key; did you mean 'lr'?"]),
    (
        {"optimizer": {**ADAMW, "weigth_decay": 0, "beta": [0.9, 0.9]}},
        [
            "optimizer.weigth_decay: unknown key; did you mean 'weight_decay'?",
            "optimizer.beta: unknown key; did you mean 'betas'?",
        ],
    ),
    (
        {"optimizer": {**ADAMW, "lr": "fast"}},
        ["optimizer.lr: must be a finite number (got 'fast')"],
    ),
    ({"optimizer": {**ADAMW, "lr": True}}, ["optimizer.lr: must be a finite number (got True)"]),
    ({"optimizer": {**ADAMW, "amsgrad": 1}}, ["optimizer.amsgrad: must be true or false (got 1)"]),
    (
        {"optimizer": {**ADAMW, "betas": 0.9}},
        ["optimizer.betas: must be a list of 2 finite numbers (got 0.9)"],
    ),
    (
        {"optimizer": {"name": "TransformersAdafactor", "relative_step": True}},
        [
            "optimizer.lr: is required: TransformersAdafactor has no default for it, and takes one "
            "only beside relative_step: false"
        ],
    ),
    (
        {"optimizer": {"name": "TransformersAdafactor", "relative_step": False}},
        ["optimizer.lr: is required: TransformersAdafactor has no default for it"],
    ),
    (
        {"optimizer": {"name": "TransformersAdafactor", "lr": 1e-3}},
        [
            "optimizer: Cannot combine manual `lr` and `relative_step=True` options: the rate then "
            "comes from the number of the step, and neither lr nor a schedule can move it; give "
            "relative_step=False beside an lr, or no lr"
        ],
    ),
    # What is wrong with no argument at all, as a default that goes with no lr, is not repeated.
    (
        {
            "optimizer": {
                "name": "TransformersAdafactor",
                "lr": 1e-3,
                "relative_step": False,
                "weight_decay": -1,
                "scale_parameter": False,
            }
        },
        ["optimizer.weight_decay: Invalid weight_decay value: -1; must be >= 0"],
    ),
    (
        {"groups": [{"layer_decay": 80}]},
        ["groups[0].layer_decay: input should be less than or equal to 1 (got 80)"],
    ),
    (
        {"groups": [{"layer_decay": {"rate": 1.001}}]},
        ["groups[0].layer_decay.rate: input should be less than or equal to 1 (got 1.001)"],
    ),
    (
        {"groups": [{"layer_decay": {"rate": 0.9, "min": 5}}]},
        ["groups[0].layer_decay.min: input should be less than or equal to 1 (got 5)"],
    ),
    (
        {"schedule": [{"name": "LinearLR", "for": "60%"}, {"preset": "cosine", "for": "60%"}]},
        ["schedule: the phases take 120% of the run; at most it is 100%"],
    ),
    (
        {
            "groups": [
                {
                    "schedule": [
                        {"name": "LinearLR", "for": "60%"},
                        {"name": "LinearLR", "for": "100%", "of": "weight_decay"},
                        {"name": "LinearLR", "for": "40.5%"},
                    ]
                }
            ]
        },
        ["groups[0].schedule: the phases take 100.5% of the run; at most it is 100%"],
    ),
    ({"optimizer": {**ADAMW, "lr": -1}}, ["optimizer.lr: Invalid learning rate: -1; must be >= 0"]),
    (
        {"optimizer": {**ADAMW, "max_grad_norm": 0}},
        ["optimizer.max_grad_norm: Invalid max_grad_norm: 0; must be > 0, or None for no clipping"],
    ),
    (
        {"optimizer": {"name": "os.system"}},
        ["optimizer.name: 'os.system' is not a torch.optim.Optimizer class"],
    ),
    (
        {"optimizer": {"name": "torch.optim.lr_scheduler.LinearLR"}},
        [
            "optimizer.name: 'torch.optim.lr_scheduler.LinearLR' is not a torch.optim.Optimizer class"
        ],
    ),
    (
        {"optimizer": {**ADAMW, "lr": -1, "eps": -1}, "groups": [{"weight_decay": -1, "lr": -1}]},
        [
            "optimizer.lr: Invalid",
            "optimizer.eps: Invalid",
            "groups[0].weight_decay: Invalid",
            "groups[0].lr: Invalid",
        ],
    ),
    (
        {"optimizer": {"name": "AdmW"}, "schedule": [{"name": "LinearRL"}]},
        [
            "optimizer.name: no optimizer 'AdmW'; did you mean 'AdamW'?",
            "schedule[0].name: no scheduler 'LinearRL'; did you mean 'LinearLR'?",
        ],
    ),
    (
        {"optimizer": {"name": "transformers.Adafactor"}},
        [
            "optimizer.lr: is required: Adafactor has no default for it, and takes one only beside "
            "relative_step: false"
        ],
    ),
    (
        {"optimizer": {"name": "torch.optim.Adam", "betas": [0.9]}},
        ["optimizer.betas: must be a list of 2 finite numbers (got (0.9,))"],
    ),
    ({"optimizer": {"name": "..a.SGD"}}, ["optimizer.name: cannot import '..a.SGD': "]),
    (
        {"optimizer": {**ADAMW, "lr": float("inf")}},
        ["optimizer.lr: must be a finite number (got inf)"],
    ),
    ({"optimizer": {**ADAMW, "lr": 10**400}}, ["optimizer.lr: must be a finite number"]),
    (
        {"optimizer": {**ADAMW, "max_grad_norm": "1.0"}},
        ["optimizer.max_grad_norm: must be a finite number (got '1.0')"],
    ),
    (
        {"optimizer": {**ADAMW, "foreach": "no way"}},
        ["optimizer.foreach: must be true or false (got 'no way')"],
    ),
    (
        {"groups": [{"lr_scale": float("inf")}]},
        ["groups[0].lr_scale: input should be a finite number (got inf)"],
    ),
    ({"groups": [{}]}, ["groups[0]: must set something"]),
    ({"groups": [{"match": "*"}]}, ["groups[0]: must set something"]),
    ({"groups": [{"match": None, "lr": 1.0}]}, ["groups[0]: match must not be empty"]),
    (
        {"groups": [{"match": {"type": None}, "lr": 1.0}]},
        ["groups[0].match: type must not be empty"],
    ),
    ({"groups": [{"match": {"not": None}, "lr": 1.0}]}, ["groups[0].match: not must not be empty"]),
    (
        {"groups": [{"match": {"any_": ["*"]}, "lr": 1.0}]},
        ["groups[0].match.any_: unknown key; did you mean 'any'?"],
    ),
    ({"groups": [{"a\nb": 1}]}, ["groups[0].a\\nb: unknown key"]),
    ({"groups": [{"mtach": "*"}]}, ["groups[0].mtach: unknown key; did you mean 'match'?"]),
    (
        {"groups": [{"weigth_decay": 0}]},
        ["groups[0].weigth_decay: unknown key; did you mean 'weight_decay'?"],
    ),
    (
        {"groups": [{"match": {"nmae": "*"}}]},
        ["groups[0].match.nmae: unknown key; did you mean 'name'?"],
    ),
    (
        {"groups": [{"match": {"any": [{"typ": "norm"}]}}]},
        ["groups[0].match.any[0].typ: unknown key; did you mean 'type'?"],
    ),
    (
        {"groups": [{"match": {"regex": "("}}]},
        ["groups[0].match.regex: is not a regular expression"],
    ),
    ({"groups": [{"match": {}}]}, ["groups[0].match: must give at least one condition"]),
    ({"groups": [{"match": 3}]}, ["groups[0].match: must be a mapping (got 3)"]),
    (
        {"groups": [{"layer_decay": 0}]},
        ["groups[0].layer_decay: input should be greater than 0 (got 0)"],
    ),
    (
        {"groups": [{"lr_scale": "2"}]},
        ["groups[0].lr_scale: input should be a valid number (got '2')"],
    ),
    (
        {"groups": [{"weight_decay": -1}]},
        ["groups[0].weight_decay: Invalid weight_decay value: -1; must be >= 0"],
    ),
    (
        {"groups": [{"max_grad_norm": 1.0}]},
        ["groups[0].max_grad_norm: is for the whole optimizer; move it to 'optimizer'"],
    ),
    (
        {"schedule": [{"name": "CosineAnealingLR"}]},
        ["schedule[0].name: no scheduler 'CosineAnealingLR'; did you mean 'CosineAnnealingLR'?"],
    ),
    (
        {"schedule": [{"name": "LinearLR", "for": "120%"}]},
        ["schedule[0].for: '120%' is longer than the run; the most is '100%'"],
    ),
    (
        {"schedule": [{"name": "LinearLR", "start_facter": 0.1}]},
        ["schedule[0].start_facter: unknown key; did you mean 'start_factor'?"],
    ),
    (
        {"schedule": [{"name": "LinearLR", "start_factor": 2}]},
        ["schedule[0].start_factor: start_factor must be > 0 and <= 1 (got 2)"],
    ),
    (
        {"schedule": [{"name": "LinearLR", "start_factor": "x"}]},
        ["schedule[0].start_factor: must be a number (got 'x')"],
    ),
    (
        {"schedule": [{"name": "CosineAnnealingLR", "eta_min": 1e-5}]},
        ["schedule[0].eta_min: is absolute; use 'floor', a ratio of each group's own lr"],
    ),
    (
        {"schedule": [{"name": "LinearLR", "floor": 0.1}]},
        ["schedule[0].floor: LinearLR has no minimum; use 'end_factor'"],
    ),
    (
        {"schedule": [{"name": "LinearLR"}, {"name": "CosineAnnealingLR", "T_max": "x"}]},
        [
            "schedule[0].for: only the last phase can take the rest; give a length",
            "schedule[1].T_max: must be a number of steps",
        ],
    ),
    (
        {"schedule": [{"name": "CosineAnnealingLR", "T_max": 0}]},
        ["schedule[0].T_max: T_max must be an int >= 1 (got 0)"],
    ),
    (
        {"schedule": [{"name": "LinearLR", "total_iters": "rest"}]},
        ["schedule[0].total_iters: must be a length of its own"],
    ),
    (
        {"schedule": [{"name": "LinearLR", "start_factor": 0, "end_factor": 2}]},
        [
            "schedule[0].start_factor: start_factor must be",
            "schedule[0].end_factor: end_factor must be",
        ],
    ),
    ({"schedule": [{"name": "StepLR"}]}, ["schedule[0].step_size: is required, but missing"]),
    ({"schedule": [{"name": "CyclicLR"}]}, ["schedule[0].floor: is required, but missing"]),
    (
        {"schedule": [{"name": "StepLR", "step_size": "1 epcoh", "gamma": -1}]},
        ["schedule[0].step_size: must be a number of steps"],
    ),
    (
        {"schedule": [{"name": "MultiStepLR", "milestones": [30, 20]}]},
        ["schedule[0].milestones: milestones must ascend (got [30, 20])"],
    ),
    (
        {"schedule": [{"name": "MultiStepLR", "milestones": 30}]},
        ["schedule[0].milestones: must be a list of durations (got 30)"],
    ),
    (
        {"schedule": [{"name": "ExponentialLR", "gamma": -1}]},
        ["schedule[0].gamma: gamma must be a finite number >= 0 (got -1)"],
    ),
    (
        {"schedule": [{"name": "OneCycleLR", "max_lr": 0.1, "cycle_momentum": True}]},
        [
            "schedule[0].max_lr: is absolute; the peak of a phase is each group's own lr",
            "schedule[0].cycle_momentum: is no part of a phase",
        ],
    ),
    (
        {"schedule": [{"name": "OneCycleLR", "three_phase": 1, "anneal_strategy": 2}]},
        [
            "schedule[0].three_phase: must be true or false (got 1)",
            "schedule[0].anneal_strategy: must be a word (got 2)",
        ],
    ),
    (
        {"schedule": [{"name": "CyclicLR", "floor": 0.1, "mode": "square"}]},
        ["schedule[0].mode: mode must be one of triangular, triangular2, exp_range (got 'square')"],
    ),
    ({"schedule": [{"name": "LambdaLR"}]}, ["schedule[0].name: no scheduler 'LambdaLR'"]),
    ({"schedule": [{"name": "LinearLR", "verbose": 1}]}, ["schedule[0].verbose: unknown key"]),
    (
        {"schedule": [{"name": "linear"}]},
        ["schedule[0].name: no scheduler 'linear'; it is a preset: write 'preset: linear'"],
    ),
    (
        {"schedule": [{"name": "Cosine"}]},
        ["schedule[0].name: no scheduler 'Cosine'; it is a preset: write 'preset: cosine'"],
    ),
    (
        {"schedule": [{"preset": "cosine", "warmup_ratio": 0.1}]},
        ["schedule[0].warmup_ratio: unknown key; did you mean 'warmup'?"],
    ),
    (
        {"schedule": [{"preset": "cosine", "zzz": 0.1}]},
        ["schedule[0].zzz: unknown key; valid are: num_cycles, for, from, every, of, warmup"],
    ),
    (
        {"optimizer": {"name": "Optimizer"}},
        ["optimizer.name: no optimizer 'Optimizer'"],
    ),
    (
        {"optimizer": {**ADAMW, "learning_rate": 1}},
        ["optimizer.learning_rate: unknown key; did you mean 'lr'?"],
    ),
    ({"groups": {"match": "*"}}, ["groups: must be a list, with a dash before each item"]),
]


@pytest.mark.parametrize(("change", "lines"), BAD_FORM, ids=[case[1][0] for case in BAD_FORM])
def test_a_bad_recipe_is_told_in_lines_that_name_the_key(change, lines):
    content = {**FULL, **change}
    if "optimzer" in change:
        del content["optimizer"]
    with pytest.raises(RecipeError) as error:
        Recipe.load(content)
    found = str(error.value).splitlines()
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True)), found


BAD_FIT = [
    (
        {"groups": [{"lr": 1e300, "lr_scale": 1e300}]},
        "groups: lr of bert.embeddings.word_embeddings.weight comes to inf; it must be finite",
    ),
    (
        {
            "optimizer": {"name": "torch.optim.LBFGS"},
            "groups": [{"match": "*.bias", "lr_scale": 0.1}],
        },
        "optimizer: LBFGS doesn't support per-parameter options (parameter groups)",
    ),
    (
        {"schedule": [{"name": "CosineAnnealingLR", "T_max": "0%"}]},
        "schedule[0]: T_max must be an int >= 1 (got 0)",
    ),
    (
        {"groups": [{"match": "clasifier.*", "lr": 1.0}]},
        "groups[0].match: 'clasifier.*' matches no parameter; did you mean 'classifier.*'?",
    ),
    (
        {"groups": [{"match": "*.biass", "lr": 1.0}]},
        "groups[0].match: '*.biass' matches no parameter; did you mean '*.bias'?",
    ),
    (
        {"groups": [{"match": {"type": "LayrNorm"}, "lr": 1.0}]},
        "groups[0].match: type: 'LayrNorm' matches no parameter; did you mean 'LayerNorm'?",
    ),
    (
        {"groups": [{"match": {"ndim": 7}, "lr": 1.0}]},
        "groups[0].match: ndim: 7 matches no parameter",
    ),
    ({"groups": [{"freeze": True}]}, "groups: no parameter is left to train: all are frozen"),
    (
        {"schedule": [{"name": "LinearLR", "for": "101 steps"}]},
        "schedule[0].for: '101 steps' is 101 steps, longer than the run of 100",
    ),
    (
        {"schedule": [{"name": "LinearLR", "for": "60%"}, {"name": "LinearLR", "for": "5 epochs"}]},
        "schedule: the phases take 110 steps, but the run has only 100",
    ),
]


@pytest.mark.parametrize(("change", "line"), BAD_FIT, ids=[case[1] for case in BAD_FIT])
def test_a_recipe_that_does_not_fit_is_told_and_changes_nothing(change, line):
    model = tiny_bert()
    recipe = Recipe.load({**FULL, **change})
    for attempt in (recipe.build, recipe.plan):
        with pytest.raises(RecipeError) as error:
            attempt(model, RUN)
        assert str(error.value) == line
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("phase", "horizon", "message"),
    [
        ({"for": "6%"}, Horizon(steps_per_epoch=10), r"schedule\[0\]\.for: .*Horizon\.total_steps"),
        ({}, Horizon(), r"schedule\[0\]\.for: .*Horizon\.total_steps"),
        ({"for": "2 epochs"}, Horizon(100), r"schedule\[0\]\.for: .*Horizon\.steps_per_epoch"),
    ],
)
def test_an_unknown_horizon_is_named_where_it_is_needed(phase, horizon, message):
    recipe = recipe_of(schedule=[{"name": "LinearLR", **phase}])
    with pytest.raises(RecipeError, match=message):
        recipe.build(nn.Linear(2, 2), horizon)


def test_an_unknown_horizon_is_no_trouble_where_nothing_needs_it():
    recipe = recipe_of(schedule=[{"name": "LinearLR", "start_factor": 0.5, "for": 10}])
    _, scheduler = recipe.build(nn.Linear(2, 2), Horizon())
    assert scheduler.get_last_lr() == [5e-4]


def test_the_file_is_named_in_every_line(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("optimizer: {name: AdamW}\ngroups: [{match: nothing, lr: 1}]\n")
    with pytest.raises(RecipeError) as error:
        Recipe.load(file).build(nn.Linear(2, 2), RUN)
    assert str(error.value).startswith(f"{file}: groups[0].match: 'nothing' matches no parameter")


@pytest.mark.parametrize("body", ["raise KeyError('x')", "import sys; sys.exit(3)", "def broken("])
def test_a_module_that_fails_as_it_is_imported_is_a_line(tmp_path, monkeypatch, body):
    (tmp_path / "failing.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    with pytest.raises(RecipeError, match=r"optimizer\.name: cannot import 'failing\.Mine': \w+"):
        Recipe.load({"optimizer": {"name": "failing.Mine"}})


def test_an_error_survives_pickling():
    with pytest.raises(RecipeError) as error:
        Recipe.load({"optimizer": {**ADAMW, "lrr": 1}})
    again = pickle.loads(pickle.dumps(error.value))  # noqa: S301
    assert (str(again), again.problems) == (str(error.value), error.value.problems)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "ReLU has no parameters to train"),
        (
            nn.Sequential(nn.LazyLinear(2)),
            "0.weight has no shape yet; run the model on one batch first",
        ),
    ],
)
def test_a_model_with_nothing_to_group_is_told(model, message):
    with pytest.raises(RecipeError) as error:
        recipe_of({"lr": 0.5}).build(model, RUN)
    assert str(error.value) == message


def test_rules_and_phases_are_reported_together():
    recipe = recipe_of({"match": "nothing", "lr": 1.0}, schedule=[{"name": "LinearLR", "for": 101}])
    with pytest.raises(RecipeError) as error:
        recipe.plan(nn.Linear(2, 2), RUN)
    assert [problem.path for problem in error.value.problems] == [
        "groups[0].match",
        "schedule[0].for",
    ]


def test_errors_of_form_hide_none_of_meaning():
    bad = {
        "optimizer": {"name": "AdamW", "lrr": 1},
        "groups": [{"match": {"tpye": "norm"}, "lr": 1.0}, {"lr_scal": 2}, {"lr_scale": -1}],
        "schedule": [{"name": "LinearLR", "for": "120%"}, {"name": "CosinLR"}],
        "grops": 1,
    }
    with pytest.raises(RecipeError) as caught:
        Recipe.load(bad)
    assert {problem.path for problem in caught.value.problems} == {
        "optimizer.lrr",
        "groups[0].match.tpye",
        "groups[1].lr_scal",
        "groups[2].lr_scale",
        "schedule[0].for",
        "schedule[1].name",
        "grops",
    }
