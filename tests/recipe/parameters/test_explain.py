import json

import pytest
from support.bert import tiny_bert
from support.recipes import RUN, recipe_of
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from optimplug.errors import ArgumentError

LAYER0 = "bert.encoder.layer.0.output.dense.bias"
RULES = [
    {"layer_decay": 0.5},
    {"match": "*.bias", "weight_decay": 0, "lr_scale": 3},
    {"match": "*.output.dense.*", "lr_scale": 2, "betas": [0.8, 0.9]},
    {"match": "*position_embeddings*", "freeze": True},
]


def tiny_gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2))


def explained(name, *rules, model=None):
    return recipe_of(*rules or RULES).plan(model or tiny_bert(), RUN).explain(name)


def test_every_rule_that_speaks_is_told_in_order_with_what_it_did():
    found = explained(LAYER0)
    assert [(s.rule, s.key, s.value, s.overridden_by) for s in found.statements] == [
        (0, "layer_decay", 0.5, None),
        (1, "lr_scale", 3, 2),
        (1, "weight_decay", 0, None),
        (2, "lr_scale", 2, None),
        (2, "betas", (0.8, 0.9), None),
    ]
    assert str(found).splitlines() == [
        f"{LAYER0} (float32, 16)",
        "  groups[0]: layer_decay = 0.5",
        "  groups[1] ('*.bias'): lr_scale = 3.0, overridden by groups[2]",
        "  groups[1] ('*.bias'): weight_decay = 0",
        "  groups[2] ('*.output.dense.*'): lr_scale = 2.0",
        "  groups[2] ('*.output.dense.*'): betas = (0.8, 0.9)",
        f"  group: {found.group}",
        "  lr: 0.0005 = 0.001 (optimizer) x 2.0 (lr_scale of groups[2])"
        " x 0.5^2 (groups[0], 2 below the top)",
        "  others: " + ", ".join(f"{k}={v}" for k, v in found.settings.items() if k != "lr"),
    ]


def test_the_settings_and_the_group_are_those_of_the_optimizer():
    model = tiny_bert()
    plan = recipe_of(*RULES).plan(model, RUN)
    optimizer, _ = recipe_of(*RULES).build(model, RUN)
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            found = plan.explain(name)
            assert found.group == group["name"]
            of_group = {k: v for k, v in found.settings.items() if k in group and k != "lr"}
            assert of_group == {k: group[k] for k in of_group}
            assert found.settings["lr"] == group["initial_lr"]


def test_a_rate_of_a_rules_own_is_told_with_its_rule():
    found = explained("0.weight", {"lr": 0.5}, model=nn.Sequential(nn.Linear(1, 1)))
    assert found.lr == "0.5 (groups[0])"


@pytest.mark.parametrize("name", ["transformer.wte.weight", "lm_head.weight"])
def test_a_tied_parameter_is_told_under_each_of_its_names(name):
    found = explained(name, {"match": "lm_head.*", "lr_scale": 2}, model=tiny_gpt2())
    assert found.names == ("transformer.wte.weight", "lm_head.weight")
    assert [s.names for s in found.statements] == [("lm_head.weight",)]
    assert "tied, one tensor under 2 names: transformer.wte.weight, lm_head.weight" in str(found)


def test_a_frozen_parameter_is_told_with_what_freezes_it():
    found = explained("bert.embeddings.position_embeddings.weight")
    assert (found.group, found.frozen_by) == (None, "groups[3]")
    assert "frozen by groups[3]; it is in no group" in str(found)
    model = tiny_bert()
    model.classifier.bias.requires_grad_(False)
    found = explained("classifier.bias", model=model)
    assert found.frozen_by == "the model (requires_grad=False)"


def test_what_is_frozen_for_a_time_or_has_a_schedule_of_its_own():
    rules = [{"freeze": {"until": "10%"}}, {"match": "bias", "schedule": "cosine"}]
    found = explained("bias", *rules, model=nn.Linear(2, 2))
    assert [(s.key, s.value) for s in found.statements] == [
        ("freeze", "until 10%"),
        ("schedule", "of its own"),
    ]
    assert found.frozen_by is None
    assert found.group == "bias"


def test_a_parameter_that_no_rule_speaks_of():
    found = explained("bias", {"match": "weight", "lr_scale": 2}, model=nn.Linear(2, 2))
    assert "no rule speaks of it" in str(found)
    assert found.lr == "0.001 (optimizer)"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bert.encoder.layer.0.output.dens.bias", f"did you mean '{LAYER0}'?"),
        ("zzz", "the model's first is 'bert.embeddings.word_embeddings.weight'"),
        ("", "the model's first is"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name, hint):
    with pytest.raises(ArgumentError, match="no parameter") as error:
        explained(name)
    assert hint in str(error.value)


@pytest.mark.parametrize("name", [LAYER0, "bert.embeddings.position_embeddings.weight"])
def test_the_dict_is_plain(name):
    found = explained(name).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["rules"][0] == {
        "rule": "groups[0]",
        "match": "",
        "key": "layer_decay",
        "value": 0.5,
        "names": [name],
        "overridden_by": None,
    }
