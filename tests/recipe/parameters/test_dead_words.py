"""A word that is for no parameter is an error wherever it stands; a family may be empty."""

import pytest
from support.recipes import RUN, recipe_of
from torch import nn

from optimplug import Recipe, RecipeError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.attention(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.inp(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


DEAD = {  # a match, and the line that must come back for it
    "all of a list": (
        ["haed.*", "inp.*"],
        "groups[0].match[0]: 'haed.*' matches no parameter; did you mean 'head.*'?",
    ),
    "the last of a list": (
        ["inp.*", "*.biass"],
        "groups[0].match[1]: '*.biass' matches no parameter; did you mean '*.bias'?",
    ),
    "a list of names": (
        {"name": ["inp.*", "haed.*"]},
        "groups[0].match.name[1]: 'haed.*' matches no parameter; did you mean 'head.*'?",
    ),
    "a list of types": (
        {"type": ["Linear", "LayrNorm"]},
        "groups[0].match.type[1]: type: 'LayrNorm' matches no parameter; did you mean 'LayerNorm'?",
    ),
    "a family that is no norm, bias or embedding": (
        {"type": ["linear", "conv"]},
        "groups[0].match.type[1]: type: 'conv' matches no parameter",
    ),
    "a list of depths": (
        {"depth": [1, "7-9"]},
        "groups[0].match.depth[1]: depth: '7-9' matches no parameter",
    ),
    "one condition among others": (
        {"name": "head.*", "regex": "bais$"},
        "groups[0].match.regex: regex: bais$ matches no parameter",
    ),
    "one name beside another condition": (
        {"name": "haed.*", "ndim": 1},
        "groups[0].match.name: 'haed.*' matches no parameter; did you mean 'head.*'?",
    ),
    "under not": (
        {"not": {"name": "haed.*"}},
        "groups[0].match.not: 'haed.*' matches no parameter; did you mean 'head.*'?",
    ),
    "under any": (
        {"any": ["head.*", {"ndim": 5}]},
        "groups[0].match.any[1]: ndim: 5 matches no parameter",
    ),
    "under all": (
        {"all": ["head.*", {"type": "Zzz"}]},
        "groups[0].match.all[1]: type: 'Zzz' matches no parameter",
    ),
    "far below": (
        {"any": ["head.*", {"all": ["inp.*", {"not": ["head.*", "hed.*"]}]}]},
        "groups[0].match.any[1].all[1].not[1]: 'hed.*' matches no parameter; "
        "did you mean 'head.*'?",
    ),
    "live words that are nothing together": (
        {"name": "inp.*", "type": "Linear"},
        "groups[0].match: name: 'inp.*', type: 'Linear' matches no parameter",
    ),
    "live words that exclude nothing together": (
        {"name": "head.*", "not": {"name": "inp.*", "ndim": 1}},
        "groups[0].match.not: name: 'inp.*', ndim: 1 matches no parameter",
    ),
    "a family in the wrong place": (
        {"name": "head.*", "type": "norm"},
        "groups[0].match: name: 'head.*', type: 'norm' matches no parameter",
    ),
}


@pytest.mark.parametrize(("match", "line"), DEAD.values(), ids=DEAD)
def test_a_dead_word_is_one_line_that_says_where_it_stands(match, line):
    recipe = recipe_of({"match": match, "lr_scale": 2})
    for attempt in (recipe.plan, recipe.build):
        with pytest.raises(RecipeError) as error:
            attempt(Net(), RUN)
        (problem,) = error.value.problems
        assert str(problem) == line


def test_several_dead_words_are_reported_together():
    rules = [{"match": ["a", "b", "head.*"], "lr": 1.0}, {"match": {"not": "c"}, "lr": 1.0}]
    with pytest.raises(RecipeError) as error:
        recipe_of(*rules).plan(Net(), RUN)
    assert [problem.path for problem in error.value.problems] == [
        "groups[0].match[0]",
        "groups[0].match[1]",
        "groups[1].match.not",
    ]


def test_live_words_everywhere_are_no_trouble():
    match = {
        "any": ["head.*", {"all": [{"type": ["linear", "LayerNorm"]}, {"not": "head.*"}]}],
        "depth": [1, ">=2"],
        "ndim": 1,
    }
    plan = recipe_of({"match": match, "lr_scale": 2}).plan(Net(), RUN)
    assert plan.absent == ()


class Bare(nn.Module):
    """No norm, no bias, no embedding."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return self.head(self.body(x))


NORM = "groups[0].match: the model has no norm"
EMPTY = {  # a rule, and the lines of the plan
    "no_decay": (
        {"no_decay": ["norm", "bias", "embedding"]},
        [f"groups[0].no_decay: the model has no {f}" for f in ("norm", "bias", "embedding")],
    ),
    "no_decay, one of them a glob": (
        {"no_decay": ["bias", "head.*"]},
        ["groups[0].no_decay: the model has no bias"],
    ),
    "no_decay within a match": (
        {"match": "head.*", "no_decay": "bias"},
        ["groups[0].no_decay: what matches 'head.*' has no bias"],
    ),
    "a type alone": ({"match": {"type": "norm"}, "lr_scale": 2}, [NORM]),
    "two types alone": (
        {"match": {"type": ["norm", "embedding"]}, "lr_scale": 2},
        [
            "groups[0].match.type[0]: the model has no norm",
            "groups[0].match.type[1]: the model has no embedding",
        ],
    ),
    "a type among others": (
        {"match": {"type": ["norm", "linear"]}, "lr_scale": 2},
        ["groups[0].match.type[0]: the model has no norm"],
    ),
    "a type with another condition": (
        {"match": {"type": "norm", "ndim": 2}, "lr_scale": 2},
        ["groups[0].match.type: the model has no norm"],
    ),
    "under not": (
        {"match": {"not": {"type": "norm"}}, "lr_scale": 2},
        ["groups[0].match.not: the model has no norm"],
    ),
    "under all": (
        {"match": {"all": ["head.*", {"type": "norm"}]}, "lr_scale": 2},
        ["groups[0].match.all[1]: the model has no norm"],
    ),
    "under any": (
        {"match": {"any": ["head.*", {"type": "norm"}]}, "lr_scale": 2},
        ["groups[0].match.any[1]: the model has no norm"],
    ),
}


@pytest.mark.parametrize(("rule", "lines"), EMPTY.values(), ids=EMPTY)
def test_an_empty_family_is_a_line_of_the_plan(rule, lines):
    plan = recipe_of(rule).plan(Bare(), RUN)
    assert [str(each) for each in plan.absent] == lines
    assert [f"{each['path']}: {each['message']}" for each in plan.to_dict()["absent"]] == lines
    for shown in (str(plan), plan.html()):
        assert all(
            line.replace("'", "") in shown.replace("'", "").replace("&#x27;", "") for line in lines
        )
    recipe_of(rule).build(Bare(), RUN)


def test_live_types_beside_an_empty_family_that_are_nothing_together_are_an_error():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Conv1d(2, 2, 1, bias=False))
    rule = {"match": {"name": "0.*", "type": ["norm", "Conv1d"]}, "lr_scale": 2}
    with pytest.raises(RecipeError) as error:
        recipe_of(rule).plan(model, RUN)
    assert str(error.value) == (
        "groups[0].match: name: '0.*', type: 'norm', 'Conv1d' matches no parameter"
    )


@pytest.mark.parametrize("family", ["linear", "conv", "bias"])
def test_other_families_must_be_there(family):
    with pytest.raises(RecipeError, match=f"type: '{family}' matches no parameter"):
        recipe_of({"match": {"type": family}, "lr_scale": 2}).plan(nn.PReLU(), RUN)


def test_a_dead_word_beside_an_empty_family_is_an_error_still():
    with pytest.raises(RecipeError, match=r"groups\[0\]\.match\.type\[1\]: type: 'Linaer'"):
        recipe_of({"match": {"type": ["norm", "Linaer"]}, "lr": 1.0}).plan(Bare(), RUN)


README_RULES = [{"layer_decay": 0.8}, {"no_decay": ["norm", "bias"]}]


@pytest.mark.parametrize("name", ["Llama", "Gemma", "Phi", "Mistral", "Qwen2", "Bert"])
def test_the_rules_of_the_readme_fit_models_of_transformers_without_biases_or_norms(name):
    import transformers

    kinds = {"Bert": "ForSequenceClassification"}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, pad_token_id=0,
    )  # fmt: skip
    model = getattr(transformers, f"{name}{kinds.get(name, 'ForCausalLM')}")(config)
    plan = Recipe.load(
        {"optimizer": {"name": "AdamW", "lr": 1.0, "weight_decay": 0.1}, "groups": README_RULES}
    ).plan(model, RUN)
    has_bias = any(name.endswith("bias") for name, _ in model.named_parameters())
    assert [str(line) for line in plan.absent] == (
        [] if has_bias else ["groups[1].no_decay: the model has no bias"]
    )
    decayed = {n for g in plan.groups if plan.setting(g, "weight_decay") for n in g.parameters}
    assert decayed == {name for name, p in model.named_parameters() if p.ndim > 1}


def test_brackets_in_a_name_are_suggested_as_globs_have_them():
    model = nn.ModuleDict({"c[0]": nn.Linear(2, 2)})
    rule = {"match": "c[0].*", "lr": 1.0}
    with pytest.raises(RecipeError, match=r"did you mean 'c\[\[\]0\]\.\*'\?"):
        recipe_of(rule).plan(model, RUN)
