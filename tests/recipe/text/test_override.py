import pytest

from optimplug import RecipeError
from optimplug.recipe.text.override import override

CONTENT = {
    "optimizer": {"name": "AdamW"},
    "groups": [{"layer_decay": 0.8}, {"match": {"type": "norm"}, "weight_decay": 0}],
    "schedule": "linear",
}


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("optimizer.lr", "1e-4", {"optimizer": {"name": "AdamW", "lr": 1e-4}}),
        ("optimizer.betas", "[0.9, 0.98]", {"optimizer": {"name": "AdamW", "betas": [0.9, 0.98]}}),
        ("optimizer.fused", "false", {"optimizer": {"name": "AdamW", "fused": False}}),
        (
            "groups[1].match.type",
            "linear",
            {
                "groups": [
                    {"layer_decay": 0.8},
                    {"match": {"type": "linear"}, "weight_decay": 0},
                ]
            },
        ),
        (
            "groups.0",
            "{match: '*.bias', lr: 1}",
            {"groups": [{"match": "*.bias", "lr": 1}, CONTENT["groups"][1]]},
        ),
        (
            "schedule",
            "{preset: cosine, warmup: 6%}",
            {"schedule": {"preset": "cosine", "warmup": "6%"}},
        ),
        ("optimizer", "{name: SGD}", {"optimizer": {"name": "SGD"}}),
    ],
)
def test_a_value_is_put_in_and_nothing_else_changes(path, text, expected):
    before = repr(CONTENT)
    assert override(CONTENT, {path: text}) == {**CONTENT, **expected}
    assert repr(CONTENT) == before


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("groups[2].lr", "1", r"groups\[2\]\.lr: must name one of 2, from 0 \(got '2'\)"),
        ("groups.x", "1", r"groups\.x: must name one of 2, from 0 \(got 'x'\)"),
        ("schedule.warmup", "6%", r"schedule\.warmup: 'warmup' cannot be set in 'linear'"),
        (
            "optimizer.0",
            "1",
            r"optimizer\.0: '0' must be the number of an item, but there is no list",
        ),
        ("optimizer.betas.0", "1", r"optimizer\.betas\.0: '0' must be the number of an item"),
        ("x-peak", "1e-4", r"x-peak: would change nothing: .* set the keys themselves"),
        ("extends", "base.yaml", r"extends: is read before single values are set"),
        ("optimizer.lr", "[1", r"optimizer\.lr: '\[1' is not valid YAML"),
    ],
)
def test_what_cannot_be_put_in_is_told(path, text, message):
    with pytest.raises(RecipeError, match=message):
        override(CONTENT, {path: text})
