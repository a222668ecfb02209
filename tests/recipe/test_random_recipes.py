"""Recipes drawn at random, right and wrong: a plan, or an error that says where."""

import math
import re

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from optimplug import Horizon, Recipe, RecipeError

MODEL = torch.nn.Sequential(
    torch.nn.Embedding(5, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["name", "until", "x"]), st.integers(), max_size=2),
)


def mostly(good):
    """What is right nine times out of ten."""
    return st.integers(0, 9).flatmap(lambda n: JUNK if n == 0 else good)


def mapping(required, optional):
    known = st.fixed_dictionaries(
        {key: mostly(value) for key, value in required.items()},
        optional={key: mostly(value) for key, value in optional.items()},
    )
    extra = st.dictionaries(st.sampled_from(["nmae", "lrr", "x", "schedul"]), JUNK, max_size=1)
    return st.tuples(known, st.integers(0, 9), extra).map(
        lambda drawn: {**drawn[0], **(drawn[2] if drawn[1] == 0 else {})}
    )


RATE = st.floats(0, 1)
DURATION = st.one_of(
    st.integers(0, 12), st.sampled_from(["10%", "25 %", "1 epoch", "3 steps", "rest", "0%"])
)
MATCH = st.recursive(
    st.one_of(
        st.sampled_from(["*", "*.bias", "0.*", "1.*", "2.weight", "nothing"]),
        st.fixed_dictionaries({"type": st.sampled_from(["norm", "linear", "embedding", "Linear"])}),
        st.fixed_dictionaries({"ndim": st.integers(0, 2)}),
        st.fixed_dictionaries({"depth": st.sampled_from([0, -1, ">=2", "0-9", [1, "x"]])}),
        st.fixed_dictionaries({"regex": st.sampled_from(["bias$", "^1", "("])}),
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"any": st.lists(inner, min_size=1, max_size=2)}),
    ),
    max_leaves=3,
)
START = st.sampled_from(["previous", "peak"])
PHASE = st.one_of(
    mapping(
        {"name": st.sampled_from(["LinearLR", "CosineAnnealingLR", "ExponentialLR", "OneCycleLR"])},
        {"for": DURATION, "gamma": RATE, "floor": RATE, "start_factor": RATE, "from": START},
    ),
    mapping(
        {"name": st.just("ReduceLROnPlateau"), "monitor": st.just("loss")},
        {"for": DURATION, "patience": st.integers(0, 3), "from": START},
    ),
    mapping(
        {"preset": st.sampled_from(["linear", "cosine"])},
        {"warmup": DURATION, "for": DURATION, "from": START},
    ),
    mapping(
        {"name": st.just("StepLR"), "step_size": DURATION},
        {"every": st.sampled_from(["epoch", "step", "validation"]), "of": st.just("weight_decay")},
    ),
)
RULE = mapping(
    {},
    {
        "match": MATCH,
        "lr": RATE,
        "lr_scale": RATE,
        "weight_decay": RATE,
        "layer_decay": st.one_of(
            st.floats(0.1, 1), mapping({"rate": st.floats(0.1, 1)}, {"min": RATE})
        ),
        "no_decay": st.lists(
            st.sampled_from(["norm", "bias", "embedding", "2.*", "x"]), min_size=1
        ),
        "freeze": st.one_of(st.booleans(), st.fixed_dictionaries({"until": DURATION})),
        "schedule": st.one_of(st.just("linear"), st.lists(PHASE, max_size=2)),
    },
)
RECIPE = mapping(
    {
        "optimizer": mapping(
            {"name": st.sampled_from(["AdamW", "SGD", "Adam"]), "lr": RATE},
            {"weight_decay": RATE, "max_grad_norm": st.floats(0.1, 2)},
        )
    },
    {
        "groups": st.lists(RULE, max_size=3),
        "schedule": st.one_of(st.lists(PHASE, max_size=2), PHASE, st.just("cosine")),
    },
)


def exists(content, path):
    """Whether a path leads to something in the recipe, or to where a key is missing."""
    parts = re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)
    for n, (key, index) in enumerate(parts):
        try:
            content = content[key] if key else content[int(index)]
        except (KeyError, IndexError, TypeError):
            return n == len(parts) - 1 and isinstance(content, dict)
    return True


def outcome(content):
    try:
        return Recipe.load(content).plan(MODEL, Horizon(total_steps=12, steps_per_epoch=4))
    except RecipeError as error:
        return error


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(RECIPE)
def test_a_plan_or_an_error_with_a_path(content):
    check(content)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(RECIPE)
def test_so_it_is_with_many(content):
    check(content)


def check(content):
    found = outcome(content)
    if isinstance(found, RecipeError):
        assert found.problems
        assert all(exists(content, problem.path) for problem in found.problems), found
        return
    covered = [name for group in found.groups for name in group.parameters]
    everything = sorted(name for name, _ in MODEL.named_parameters())
    assert sorted([*covered, *found.grouping.frozen]) == everything
    assert all(math.isfinite(found.lr(group, t)) for group in found.groups for t in range(13))
    assert str(found)


WORDS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(
        [
            "optimizer",
            "groups",
            "schedule",
            "name",
            "AdamW",
            "lr",
            "betas",
            "match",
            "not",
            "any",
            "type",
            "depth",
            "freeze",
            "until",
            "from",
            "previous",
            "together",
            "preset",
            "for",
            "LinearLR",
            "linear",
            "layer_decay",
            "<value>",
            "<mapping>",
            "schedule[",
            "groups[0]",
            "optimizer.",
            "[",
            "]",
            "a.b",
            "x[']",
            "..x",
            "torch.x",
            "6%",
            "rest",
        ]
    ),
)
ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), WORDS,
        st.sampled_from([10**15, 10**16, 10**300, -(10**400), 2**9000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(WORDS, WORDS, st.integers(), st.none()), inner, max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.dictionaries(WORDS, ANYTHING, max_size=4),
        st.fixed_dictionaries(
            {"optimizer": st.one_of(st.just({"name": "AdamW"}), ANYTHING)},
            optional={
                "groups": st.lists(st.dictionaries(WORDS, ANYTHING, max_size=3), max_size=2),
                "schedule": ANYTHING,
                "schedule[": ANYTHING,
                "": ANYTHING,
            },
        ),
    )
)
def test_anything_at_all_is_a_plan_or_lines(content):
    found = outcome(content)
    if isinstance(found, RecipeError):
        assert all(len(str(problem).splitlines()) == 1 for problem in found.problems)
    else:
        assert str(found)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"schedule[": 1}, "['schedule[']: unknown key; did you mean 'schedule'?"),
        ({"groups[": []}, "['groups[']: unknown key; did you mean 'groups'?"),
        ({"optimizer.": 1}, "['optimizer.']: unknown key; did you mean 'optimizer'?"),
        ({"schedule[0]": 1}, "['schedule[0]']: unknown key; did you mean 'schedule'?"),
        ({"": 1}, "['']: unknown key; valid are: "),
        ({"<value>": 1}, "<value>: unknown key; valid are: "),
        ({"a\nb\x1e\u2028c": 1}, "a\\nb\\x1e\\u2028c: unknown key; valid are: "),
        ({"groups": [{"[": 1, "lr": 1.0}]}, "groups[0]['[']: unknown key; valid are: "),
        ({"groups": [{"layer_decay": {"<value>": 1}}]}, "groups[0].layer_decay.<value>: unknown"),
        ({"schedule": [{"name": "LinearLR", "a.b": 1}]}, "schedule[0]['a.b']: unknown key; valid"),
        ({"schedule": {"name": "LinearLR", "a'b": 1}}, 'schedule["a\'b"]: unknown key; valid'),
    ],
)
def test_odd_keys_are_named_as_they_are(content, line):
    found = outcome({"optimizer": {"name": "AdamW"}, **content})
    assert any(str(problem).startswith(line) for problem in found.problems), found


def test_right_and_wrong_ones_are_among_them():
    drawn = {True: 0, False: 0}

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @seed(0)
    @given(RECIPE)
    def count(content):
        drawn[isinstance(outcome(content), RecipeError)] += 1

    count()
    assert min(drawn.values()) > 10
