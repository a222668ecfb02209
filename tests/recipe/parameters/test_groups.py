import pytest
import torch
from support.bert import tiny_bert
from support.labels import label
from support.plans import MANY, many_groups
from support.recipes import RUN, recipe_of
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from optimplug import Recipe, RecipeError


def settings(model, *rules, **optimizer):
    """Each parameter's lr and weight decay."""
    plan = recipe_of(*rules, lr=1.0, weight_decay=0.1, **optimizer).plan(model, RUN)
    return {
        name: (group.lr, group.settings.get("weight_decay", 0.1))
        for group in plan.groups
        for name in group.parameters
    }


def spared(model, *rules):
    return {name for name, (_, decay) in settings(model, *rules).items() if decay == 0}


class TestNoDecay:
    def model(self):
        return nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))

    @pytest.mark.parametrize(
        ("members", "expected"),
        [
            ("norm", {"2.weight", "2.bias"}),
            (["bias"], {"1.bias", "2.bias", "3.bias"}),
            (["norm", "bias"], {"1.bias", "2.weight", "2.bias", "3.bias"}),
            (["embedding", "3.*"], {"0.weight", "3.weight", "3.bias"}),
        ],
        ids=label,
    )
    def test_members(self, members, expected):
        assert spared(self.model(), {"no_decay": members}) == expected

    def test_within_a_match_and_beside_other_settings(self):
        rule = {"match": "3.*", "no_decay": "bias", "weight_decay": 0.5, "lr_scale": 2}
        found = settings(self.model(), rule)
        assert found["3.weight"] == (2.0, 0.5)
        assert found["3.bias"] == (2.0, 0)
        assert found["1.bias"] == (1.0, 0.1)

    def test_a_later_rule_wins(self):
        rules = [{"no_decay": ["norm", "bias"]}, {"match": "1.*", "weight_decay": 0.3}]
        assert spared(self.model(), *rules) == {"2.weight", "2.bias", "3.bias"}

    @pytest.mark.parametrize(
        ("rule", "line"),
        [
            (
                {"no_decay": "0.wieght"},
                "groups[0].no_decay: '0.wieght' matches no parameter; did you mean '0.weight'?",
            ),
            (
                {"no_decay": "norms"},
                "groups[0].no_decay: 'norms' matches no parameter; did you mean 'norm'?",
            ),
            (
                {"match": "*.bias", "no_decay": "*.weight"},
                "groups[0].no_decay: '*.weight' within '*.bias' matches no parameter",
            ),
        ],
        ids=["glob", "family", "match"],
    )
    def test_a_member_that_matches_nothing_is_told(self, rule, line):
        with pytest.raises(RecipeError) as error:
            spared(nn.Sequential(nn.Linear(2, 2)), rule)
        assert str(error.value) == line

    def test_an_optimizer_without_weight_decay_is_told_before_there_is_a_model(self):
        optimizer = {"name": "torch.optim.Rprop", "lr": 0.1}
        with pytest.raises(RecipeError) as error:
            Recipe.load({"optimizer": optimizer, "groups": [{"no_decay": ["norm"]}]})
        assert str(error.value) == "groups[0].no_decay: Rprop has no weight_decay"


class TestLayerDecay:
    def rates(self, *rules):
        found = settings(tiny_bert(layers=3), *rules)
        names = ["bert.embeddings.LayerNorm.bias", "bert.encoder.layer.0.output.dense.bias"]
        names += ["bert.encoder.layer.2.output.dense.bias", "classifier.bias"]
        return [found[name][0] for name in names]

    @pytest.mark.parametrize(
        ("decay", "expected"),
        [
            (0.5, [1 / 16, 1 / 8, 1 / 2, 1]),
            ({"rate": 0.5}, [1 / 16, 1 / 8, 1 / 2, 1]),
            ({"rate": 0.5, "min": 0.2}, [0.2, 0.2, 1 / 2, 1]),
            ({"rate": 1, "min": 0}, [1, 1, 1, 1]),
            (1, [1, 1, 1, 1]),
        ],
        ids=label,
    )
    def test_factors(self, decay, expected):
        assert self.rates({"layer_decay": decay}) == expected

    def test_the_smallest_factor_is_of_the_decay_alone(self):
        rules = [{"layer_decay": {"rate": 0.5, "min": 0.2}}, {"lr_scale": 10.0}]
        assert self.rates(*rules) == [2.0, 2.0, 5.0, 10.0]

    @pytest.mark.parametrize(
        ("decay", "line"),
        [
            ({}, "groups[0].layer_decay.rate: is required, but missing"),
            ({"rat": 0.5}, "groups[0].layer_decay.rat: unknown key; did you mean 'rate'?"),
            ({"rate": 0}, "groups[0].layer_decay.rate: input should be greater than 0 (got 0)"),
            (
                {"rate": 0.5, "min": -1},
                "groups[0].layer_decay.min: input should be greater than or equal to 0 (got -1)",
            ),
            ("fast", "groups[0].layer_decay: input should be a valid number (got 'fast')"),
            ([0.5], "groups[0].layer_decay: input should be a valid number (got [0.5])"),
        ],
        ids=label,
    )
    def test_a_bad_one_is_told(self, decay, line):
        with pytest.raises(RecipeError) as error:
            recipe_of({"layer_decay": decay})
        assert str(error.value) == line

    def test_each_tower_falls_from_its_own_top(self):
        config = T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=3, num_heads=2
        )  # fmt: skip
        found = settings(T5ForConditionalGeneration(config), {"layer_decay": 0.5})
        assert found["encoder.block.0.layer.0.layer_norm.weight"][0] == 0.5
        assert found["decoder.block.0.layer.0.layer_norm.weight"][0] == 0.125
        assert found["encoder.final_layer_norm.weight"][0] == 1.0
        assert found["shared.weight"][0] == 0.0625


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=8))


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    )


TIED = [
    (gpt2, ["transformer.wte.weight", "lm_head.weight"]),
    (t5, ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]),
]  # fmt: skip
NAMES = [(build, names, name) for build, names in TIED for name in names]


class TestTied:
    @pytest.mark.parametrize(("build", "names"), TIED)
    def test_it_counts_once(self, build, names):
        model = build()
        plan = recipe_of({"no_decay": ["norm"]}).plan(model, RUN)
        members = [name for group in plan.groups for name in group.parameters]
        assert members.count(names[0]) == 1
        assert not set(members) & set(names[1:])
        assert sum(group.numel for group in plan.groups) == sum(
            p.numel() for p in model.parameters()
        )

    @pytest.mark.parametrize(("build", "names", "name"), NAMES, ids=[n[2] for n in NAMES])
    def test_a_rule_on_any_name_works(self, build, names, name):
        assert settings(build(), {"match": name, "lr": 5.0})[names[0]][0] == 5.0

    @pytest.mark.parametrize(("build", "names", "name"), NAMES, ids=[n[2] for n in NAMES])
    def test_another_name_that_says_otherwise_contradicts(self, build, names, name):
        for other in set(names) - {name}:
            rules = [{"match": name, "weight_decay": 0.5}, {"match": other, "weight_decay": 0}]
            with pytest.raises(RecipeError, match=r"groups\[1\]\.weight_decay: .* tied parameter"):
                settings(build(), *rules)
            rules[1]["weight_decay"] = 0.5
            assert settings(build(), *rules)[names[0]][1] == 0.5

    def test_freezing_one_name_and_training_the_other_contradicts(self):
        rules = [{"match": "transformer.wte.*", "freeze": True}, {"match": "lm_head.*", "freeze": False}]  # fmt: skip
        with pytest.raises(RecipeError, match=r"groups\[1\]\.freeze: False .* contradicts True"):
            settings(gpt2(), *rules)

    def test_no_decay_knows_it_by_what_any_of_its_modules_is(self):
        assert "transformer.wte.weight" in spared(gpt2(), {"no_decay": "embedding"})

    def test_no_decay_contradicts_a_decay_under_another_name(self):
        rules = [{"no_decay": "embedding"}, {"match": "lm_head.*", "weight_decay": 0.5}]
        with pytest.raises(RecipeError, match=r"groups\[1\]\.weight_decay: 0\.5 .* contradicts 0 "):
            settings(gpt2(), *rules)


def test_a_model_of_seven_billion_on_the_meta_device_is_planned():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    rules = [{"match": f"model.layers.{i % 32}.*", "lr_scale": 1 + i / 200} for i in range(198)]
    plan = recipe_of({"layer_decay": 0.9}, {"no_decay": "norm"}, *rules).plan(model, RUN)
    assert sum(group.numel for group in plan.groups) == 6_738_415_616
    assert all(p.is_meta for group in plan.groups for p in group.parameters.values())


class TestTold:
    """What explanations and warnings make of these rules."""

    def test_how_a_rate_comes_about(self):
        recipe = recipe_of({"layer_decay": {"rate": 0.5, "min": 0.2}}, lr=1.0)
        model = tiny_bert(layers=3)
        low = recipe.explain(model, "bert.encoder.layer.0.output.dense.bias")
        assert low.lr == "0.2 = 1.0 (optimizer) x 0.2 (groups[0], 3 below the top)"
        assert str(low.statements[0]) == "groups[0]: layer_decay = 0.5, at least 0.2"
        high = recipe.explain(model, "bert.encoder.layer.2.output.dense.bias")
        assert high.lr == "0.5 = 1.0 (optimizer) x 0.5^1 (groups[0], 1 below the top)"

    def test_the_bias_of_a_norm_is_spoken_of_once(self):
        told = recipe_of({"no_decay": ["norm", "bias"]}).explain(nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2)), "0.bias")  # fmt: skip
        assert [str(statement) for statement in told.statements] == ["groups[0]: weight_decay = 0"]

    def test_a_no_decay_that_is_overridden_is_named_as_the_recipe_does(self):
        rules = [{"no_decay": "bias", "lr_scale": 2.0}, {"match": "*.bias", "weight_decay": 0.3}]
        plan = recipe_of(*rules).plan(nn.Sequential(nn.Linear(2, 2)), RUN)
        assert [warning.path for warning in plan.warnings] == ["groups[0].no_decay"]


NAMED = [
    ([], ["model"]),
    ([{"match": "*.bias", "weight_decay": 0}], ["model", "model/no_decay"]),
    ([{"match": "*.bias", "weight_decay": 0.5}], ["model", "model/weight_decay"]),
    (
        [{"match": "*.bias", "weight_decay": 0, "betas": [0.8, 0.9]}],
        ["model", "model/betas-no_decay"],
    ),
    (
        [{"match": "*.bias", "lr_scale": 2}],
        ["model/weight", "model/bias"],
    ),
    (
        [{"match": ["0.weight", "1.bias"], "lr_scale": 2}],
        ["model/0.weight", "model/0.bias"],
    ),
    (
        [{"match": "*.bias", "freeze": {"until": 5}}, {"match": "2.bias", "schedule": "linear"}],
        ["model", "model/freeze", "2.bias"],
    ),
    (
        [{"match": "*.bias", "optimizer": {"name": "Lion", "lr": 1e-4}}],
        ["model/AdamW", "model/Lion"],
    ),
]


class TestNames:
    @pytest.mark.parametrize(("rules", "names"), NAMED, ids=label)
    def test_they_say_in_words_what_tells_groups_apart(self, rules, names):
        model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
        plan = recipe_of(*rules).plan(model, RUN)
        assert [group.name for group in plan.groups] == names

    def test_they_hold_no_value_so_that_another_value_has_the_same_name(self):
        names = [group.name for group in many_groups().groups]
        assert len(set(names)) == len(names) == 226
        assert not any("=" in name for name in names)
        rules = [
            {**rule, **({"lr_scale": rule["lr_scale"] * 1.1} if "lr_scale" in rule else {})}
            for rule in MANY["groups"]
        ]
        optimizer = {"name": "AdamW", "lr": 3e-5, "weight_decay": 0.2}
        other = {**MANY, "optimizer": optimizer, "groups": rules}
        plan = Recipe.load(other).plan(tiny_bert(28), RUN)
        assert [group.name for group in plan.groups] == names
