"""What two recipes have otherwise, as they say it and as they do it."""

import math

import pytest
from support.bert import tiny_bert
from torch import nn

from optimplug import Horizon, Recipe
from optimplug.show.difference import PlanDifference, changed_keys, keys_table, plans_table
from optimplug.show.difference.pictures import draw, page

BASE = {"name": "AdamW", "lr": 0.1}
BIAS = {"match": "*bias", "weight_decay": 0}
DECAY = {"layer_decay": 0.5}
HEAD = {"match": "classifier.*", "lr_scale": 2}
KEYS = {
    "the same": ({}, {}, []),
    "a value": ({"optimizer": {**BASE, "lr": 0.2}}, {}, [("optimizer.lr", 0.2, 0.1)]),
    "a new key": ({}, {"optimizer": {**BASE, "eps": 1e-6}}, [("optimizer.eps", None, 1e-6)]),
    "a short form": ({"schedule": "cosine"}, {"schedule": [{"preset": "cosine"}]}, []),
    "a glob as a list": ({"groups": [BIAS]}, {"groups": [{**BIAS, "match": ["*bias"]}]}, []),
    "durations": (
        {"schedule": {"preset": "cosine", "warmup": "6 %"}},
        {"schedule": {"preset": "cosine", "warmup": "6%"}},
        [],
    ),
    "a rule in between": (
        {"groups": [DECAY, BIAS]},
        {"groups": [DECAY, HEAD, BIAS]},
        [("groups[1]", None, HEAD)],
    ),
    "a rule less": ({"groups": [DECAY, BIAS]}, {"groups": [BIAS]}, [("groups[0]", DECAY, None)]),
    "rules in another order": (
        {"groups": [BIAS, HEAD]},
        {"groups": [HEAD, BIAS]},
        [("groups[0]", None, HEAD), ("groups[1]", HEAD, None)],
    ),
    "a rule with another value, and one more": (
        {"groups": [BIAS]},
        {"groups": [HEAD, {**BIAS, "weight_decay": 0.2}]},
        [("groups[0]", None, HEAD), ("groups[0].weight_decay", 0, 0.2)],
    ),
    "another phase": (
        {"schedule": "linear"},
        {"schedule": "cosine"},
        [("schedule[0]", {"preset": "linear"}, None), ("schedule[0]", None, {"preset": "cosine"})],
    ),
    "within a condition": (
        {"groups": [{"match": {"not": {"type": "norm"}}, "lr_scale": 2}]},
        {"groups": [{"match": {"not": {"type": "conv"}}, "lr_scale": 2}]},
        [
            ("groups[0]", {"match": {"not": {"type": ["norm"]}}, "lr_scale": 2}, None),
            ("groups[0]", None, {"match": {"not": {"type": ["conv"]}}, "lr_scale": 2}),
        ],
    ),
    "a policy in its long form": ({"resume": "adapt"}, {"resume": {"policy": "adapt"}}, []),
    "a decay in its long form": (
        {"groups": [DECAY]},
        {"groups": [{"layer_decay": {"rate": 0.5}}]},
        [],
    ),
    "how rates climb": (
        {"resume": {"policy": "adapt", "rewarm": "2%"}},
        {"resume": {"policy": "adapt", "rewarm": "3%"}},
        [("resume.rewarm", "2%", "3%")],
    ),
    "resume": ({"resume": "adapt"}, {}, [("resume", "adapt", None)]),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys(name):
    first, second, expected = KEYS[name]
    recipes = (Recipe({"optimizer": BASE, **given}) for given in (first, second))
    assert changed_keys(*recipes) == expected


HORIZON = Horizon(total_steps=100, steps_per_epoch=50)


def difference(first, second, model=None, horizon=HORIZON):
    model = tiny_bert() if model is None else model
    plans = (Recipe({"optimizer": BASE, **r}).plan(model, horizon) for r in (first, second))
    return PlanDifference(*plans)


def two():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


PLANS = {
    "the rate of all": (
        {},
        {"optimizer": {**BASE, "lr": 0.2}},
        [(4, [("lr start", 0.1, 0.2), ("lr peak", 0.1, 0.2), ("lr end", 0.1, 0.2)])],
    ),
    "the rate of some": (
        {},
        {"groups": [{"match": "1.*", "lr_scale": 2}]},
        [(2, [("lr start", 0.1, 0.2), ("lr peak", 0.1, 0.2), ("lr end", 0.1, 0.2)])],
    ),
    "a setting": ({}, {"groups": [BIAS]}, [(2, [("weight_decay", 0.01, 0)])]),
    "another shape between the same ends": (
        {"schedule": "linear"},
        {"schedule": "cosine"},
        [(4, [("lr at step 78", 0.022, 0.05 * (1 + math.cos(0.78 * math.pi)))])],
    ),
    "freezing for a time": (
        {},
        {"groups": [{"match": "0.*", "freeze": {"until": "10%"}}]},
        [(2, [("frozen until step", None, 10)])],
    ),
    "freezing": (
        {"groups": [{"match": "0.*", "freeze": True}]},
        {},
        [(2, [("trained", False, True)])],
    ),
    "another optimizer": (
        {
            "groups": [
                {"match": "0.*", "optimizer": {"name": "SGD", "lr": 0.1, "weight_decay": 0.01}}
            ]
        },
        {
            "groups": [
                {"match": "0.*", "optimizer": {"name": "Lion", "lr": 0.1, "weight_decay": 0.01}}
            ]
        },
        [
            (
                2,
                [
                    ("optimizer", "SGD", "Lion"),
                    ("momentum", 0, None),
                    ("dampening", 0, None),
                    ("nesterov", False, None),
                    ("betas", None, [0.9, 0.99]),
                ],
            )
        ],
    ),
    "a curve of something else": (
        {},
        {
            "schedule": [
                {
                    "name": "LinearLR",
                    "start_factor": 1,
                    "end_factor": 0,
                    "of": "weight_decay",
                    "for": 100,
                }
            ]
        },
        [
            (
                4,
                [
                    (
                        "schedule of weight_decay",
                        "constant",
                        "LinearLR(end_factor=0, start_factor=1, total_iters=100) for 100",
                    )
                ],
            )
        ],
    ),
    "a plateau, whose rates nobody knows yet": (
        {"schedule": [{"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 1}]},
        {"schedule": [{"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 2}]},
        None,
    ),
    "two ways to say one thing": (
        {"schedule": "linear", "groups": [{"match": "*bias", "no_decay": "*"}]},
        {"schedule": [{"name": "LinearLR", "start_factor": 1, "end_factor": 0}], "groups": [BIAS]},
        [],
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_plans(name):
    first, second, expected = PLANS[name]
    found = difference(first, second, two())
    if expected is None:
        (change,) = found.groups[0].changes
        assert change.what == "schedule of lr"
        assert ("patience=1" in change.before, "patience=2" in change.after) == (True, True)
        return
    together = {}
    for group in found.groups:
        assert group.parameters == sum(
            dict(two().named_parameters())[n].numel() for n in group.members
        )
        together.setdefault(repr(group.changes), [0, group.changes])[0] += len(group.members)
    assert len(together) == len(expected)
    for (count, changes), (expected_count, rows) in zip(together.values(), expected, strict=True):
        assert count == expected_count
        assert [change.what for change in changes] == [row[0] for row in rows]
        for change, row in zip(changes, rows, strict=True):
            if isinstance(row[1], float):
                assert change[1:] == pytest.approx(row[1:], rel=1e-3)
            else:
                assert change[1:] == row[1:]
    assert found.same is not expected or expected == []
    assert found.same == (expected == [])


def test_what_is_of_the_whole_run():
    found = difference({}, {"optimizer": {**BASE, "max_grad_norm": 1.0}}, two())
    assert (found.of_all, found.groups) == ((("max_grad_norm", None, 1.0),), ())
    assert not found.same


def test_every_parameter_of_groups_that_are_cut_otherwise_is_counted_once():
    found = difference({"groups": [DECAY]}, {"groups": [BIAS, HEAD]})
    names = [name for group in found.groups for name in group.members]
    assert len(set(names)) == len(names)
    assert set(names) <= {name for name, _ in tiny_bert().named_parameters()}
    texts = [str(plans_table(found, ("a", "b"))), found.summary]
    assert "tensors have other rates" in texts[1]
    assert " / " in texts[0]


def test_tables_say_it():
    first, second = (Recipe({"optimizer": {**BASE, "lr": lr}}) for lr in (0.1, 0.2))
    rows = str(keys_table(changed_keys(first, second), ("a.yaml", "b.yaml"))).splitlines()
    assert [rows[0].split(), rows[2].split()] == [
        ["key", "a.yaml", "b.yaml"],
        ["optimizer.lr", "0.1", "0.2"],
    ]


def test_the_picture_and_the_page(tmp_path):
    one, other = {"schedule": "linear", "groups": [DECAY]}, {"schedule": "cosine"}
    found = difference(one, other)
    draw(found, ("a", "b"), tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    text = page(found, [], ("<a>", "b"))
    assert "&lt;a&gt;" in text
    assert "<a>" not in text
    assert text.count("<svg") == 1
    assert "script-src 'none'" in text
    assert page(found, [], ("<a>", "b")) == text


def test_a_picture_needs_the_length_of_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"Horizon.total_steps"):
        draw(difference({}, {}, horizon=Horizon()), ("a", "b"), tmp_path / "d.png")
