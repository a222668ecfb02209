import pytest
import torch
from support.bert import collate, tiny_bert, tiny_rows
from support.labels import label
from support.recipes import ADAMW, FULL, RUN, recipe_of
from support.tensors import same_bits
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from optimplug import Horizon, Recipe, RecipeError, StateError
from optimplug.optim import AdamW
from optimplug.optim import lr_scheduler as schedulers
from optimplug.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR


def by_name(optimizer):
    """Each parameter's group, by the parameter's name."""
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


class TestGroups:
    def test_the_whole_recipe(self):
        model = tiny_bert(layers=2)
        optimizer, _ = Recipe.load(FULL).build(model, RUN)
        found = by_name(optimizer)
        expected = {  # name: (distance from the top, lr_scale, weight decay)
            "bert.embeddings.word_embeddings.weight": (3, 1, 0.1),
            "bert.embeddings.LayerNorm.weight": (3, 1, 0),
            "bert.encoder.layer.0.attention.self.query.weight": (2, 1, 0.1),
            "bert.encoder.layer.0.attention.self.query.bias": (2, 1, 0),
            "bert.encoder.layer.1.output.LayerNorm.weight": (1, 1, 0),
            "bert.pooler.dense.weight": (0, 1, 0.1),
            "classifier.weight": (0, 10, 0.1),
            "classifier.bias": (0, 10, 0),
        }
        for name, (distance, scale, decay) in expected.items():
            assert found[name]["initial_lr"] == pytest.approx(
                1e-3 * 0.5**distance * scale, rel=1e-15
            )
            assert found[name]["weight_decay"] == decay
        assert optimizer.max_grad_norm == 1.0
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)

    def test_every_parameter_is_in_one_group_or_frozen(self):
        model = tiny_bert()
        optimizer, _ = Recipe.load(FULL).build(model, RUN)
        grouped = by_name(optimizer)
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        assert frozen == ["bert.embeddings.position_embeddings.weight"]
        assert sorted([*grouped, *frozen]) == sorted(name for name, _ in model.named_parameters())
        for name, group in grouped.items():
            position = group["param_names"].index(name)
            assert group["params"][position] is model.get_parameter(name)

    def test_groups_have_unique_names_and_none_is_empty(self):
        optimizer, _ = Recipe.load(FULL).build(tiny_bert(), RUN)
        names = [group["name"] for group in optimizer.param_groups]
        assert len(set(names)) == len(names)
        assert all(group["params"] for group in optimizer.param_groups)
        assert "bert.encoder.layer.1" in names
        assert "bert.encoder.layer.1/no_decay" in names

    def test_without_rules_there_is_one_group(self):
        optimizer, _ = recipe_of().build(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), RUN)
        assert [group["name"] for group in optimizer.param_groups] == ["model"]

    def test_settings_that_end_up_equal_share_a_group(self):
        recipe = recipe_of(
            {"match": "0.*", "weight_decay": 0},
            {"match": "1.*", "weight_decay": 0.0},
            {"match": "2.*", "weight_decay": 0.3, "betas": [0.9, 0.999]},
            weight_decay=0.3,
        )
        model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)])
        members = [group["param_names"] for group in recipe.build(model, RUN)[0].param_groups]
        assert [{name[0] for name in names} for names in members] == [{"0", "1"}, {"2", "3"}]

    def test_later_rules_win_key_by_key(self):
        recipe = recipe_of(
            {"match": "0.*", "lr_scale": 2, "weight_decay": 0.5},
            {"match": "*.weight", "lr_scale": 3},
            {"match": "0.bias", "lr": 7.0},
        )
        found = by_name(recipe.build(nn.Sequential(nn.Linear(2, 2)), RUN)[0])
        assert found["0.weight"]["lr"] == pytest.approx(3e-3)
        assert found["0.weight"]["weight_decay"] == 0.5
        assert found["0.bias"]["lr"] == 14.0

    @pytest.mark.parametrize(
        ("match", "expected"),
        [
            ("0.*", {"0.weight", "0.bias"}),
            (["0.bias", "1.bias"], {"0.bias", "1.bias"}),
            ({"name": "*.weight"}, {"0.weight", "1.weight", "2.weight", "3.weight"}),
            ({"regex": r"^[01]\.b"}, {"0.bias", "1.bias"}),
            ({"type": "norm"}, {"1.weight", "1.bias"}),
            ({"type": "LayerNorm"}, {"1.weight", "1.bias"}),
            ({"type": ["conv", "embedding"]}, {"2.weight", "2.bias", "3.weight"}),
            ({"type": "linear"}, {"0.weight", "0.bias"}),
            ({"ndim": 2}, {"0.weight", "3.weight"}),
            ({"ndim": 2, "type": "Linear"}, {"0.weight"}),
            ({"any": [{"type": "norm"}, "0.bias"]}, {"1.weight", "1.bias", "0.bias"}),
            ({"all": ["*.bias", {"not": "0.*"}]}, {"1.bias", "2.bias"}),
            ({"not": {"ndim": 1}}, {"0.weight", "2.weight", "3.weight"}),
        ],
        ids=label,
    )
    def test_match(self, match, expected):
        model = nn.Sequential(
            nn.Linear(2, 2), nn.LayerNorm(2), nn.Conv1d(2, 2, 1), nn.Embedding(3, 2)
        )
        optimizer, _ = recipe_of({"match": match, "lr": 5.0}).build(model, RUN)
        assert {
            name for name, group in by_name(optimizer).items() if group["lr"] == 5.0
        } == expected

    def test_a_norm_that_a_model_defines_itself_is_a_norm(self):
        config = LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        model = LlamaForCausalLM(config)
        found = by_name(
            recipe_of({"match": {"type": "norm"}, "weight_decay": 0}).build(model, RUN)[0]
        )
        exempt = {name for name, group in found.items() if group["weight_decay"] == 0}
        assert exempt == {name for name, _ in model.named_parameters() if "norm" in name}

    def test_what_the_model_has_frozen_stays_so(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[0].requires_grad_(False)
        optimizer, _ = recipe_of({"match": "*.weight", "freeze": False}).build(model, RUN)
        assert set(by_name(optimizer)) == {"1.weight", "1.bias"}

    def test_planning_leaves_the_model_as_it_is(self):
        model = tiny_bert()
        Recipe.load(FULL).plan(model, RUN)
        assert all(p.requires_grad for p in model.parameters())


class TestTied:
    def model(self):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=8)
        return GPT2LMHeadModel(config)

    @pytest.mark.parametrize("name", ["transformer.wte.*", "lm_head.*"])
    def test_a_rule_on_any_of_the_names_applies_once(self, name):
        optimizer, _ = recipe_of({"match": name, "lr": 5.0}).build(self.model(), RUN)
        hit = [
            n
            for group in optimizer.param_groups
            if group["lr"] == 5.0
            for n in group["param_names"]
        ]
        assert hit == ["transformer.wte.weight"]

    def test_names_that_pull_apart_are_an_error(self):
        recipe = recipe_of(
            {"match": "transformer.wte.*", "lr_scale": 0.1}, {"match": "lm_head.*", "lr_scale": 10}
        )
        with pytest.raises(
            RecipeError, match=r"groups\[1\]\.lr_scale: 10.* contradicts 0\.1.* tied"
        ):
            recipe.build(self.model(), RUN)

    def test_a_wider_rule_may_be_overridden(self):
        recipe = recipe_of({"match": "*", "lr_scale": 0.1}, {"match": "lm_head.*", "lr_scale": 10})
        found = by_name(recipe.build(self.model(), RUN)[0])
        assert found["transformer.wte.weight"]["lr"] == pytest.approx(1e-2)

    def test_depth_is_that_of_the_first_name(self):
        found = by_name(recipe_of({"layer_decay": 0.5}).build(self.model(), RUN)[0])
        assert found["transformer.wte.weight"]["lr"] == pytest.approx(1e-3 / 8)

    def test_what_is_excluded_by_any_name_stays_out(self):
        recipe = recipe_of({"match": {"not": "*wte*"}, "lr": 5.0})
        found = by_name(recipe.build(self.model(), RUN)[0])
        assert found["transformer.wte.weight"]["lr"] == 1e-3
        assert found["transformer.wpe.weight"]["lr"] == 5.0

    def test_a_last_rule_for_all_names_settles_it(self):
        recipe = recipe_of(
            {"match": "transformer.wte.*", "lr_scale": 2},
            {"match": "lm_head.*", "lr_scale": 3},
            {"lr_scale": 1.0},
        )
        assert len(recipe.build(self.model(), RUN)[0].param_groups) == 1


class TestSchedule:
    def rates(self, schedule, steps=101, groups=()):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        optimizer, scheduler = recipe_of(*groups, schedule=schedule, lr=1.0).build(model, RUN)
        found = []
        for _ in range(steps):
            found.append(scheduler.get_last_lr())
            optimizer.step()
            scheduler.step()
        return found

    def test_the_phases_are_the_schedulers_in_sequence(self):
        found = self.rates(
            [
                {"name": "LinearLR", "start_factor": 0.1, "for": "10%"},
                {"name": "CosineAnnealingLR", "for": "rest"},
            ]
        )
        optimizer = AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
        reference = SequentialLR(
            optimizer,
            [LinearLR(optimizer, 0.1, 1.0, 10), CosineAnnealingLR(optimizer, 90)],
            [10],
        )
        for rate in found:
            assert rate == reference.get_last_lr()
            optimizer.step()
            reference.step()

    def test_a_floor_is_a_ratio_and_ratios_between_groups_hold(self):
        rules = [{"match": "1.*", "lr_scale": 4}]
        found = self.rates([{"name": "CosineAnnealingLR", "floor": 0.25}], groups=rules)
        assert found[0] == [1.0, 4.0]
        assert found[100] == [0.25, 1.0]
        assert all(b == pytest.approx(4 * a, rel=1e-15) for a, b in found)

    def test_past_the_end_the_last_value_holds(self):
        found = self.rates([{"name": "CosineAnnealingLR", "floor": 0.1, "for": "50%"}], steps=140)
        assert {rate for (rate,) in found[50:]} == {0.1}

    def test_no_schedule_is_constant(self):
        assert self.rates([]) == [[1.0]] * 101

    def test_parts_of_a_step_do_not_add_up(self):
        phases = [
            {"name": "LinearLR", "for": "33.5%"},
            {"name": "CosineAnnealingLR", "for": "66.5%"},
        ]
        model = nn.Linear(2, 2)
        plan = recipe_of(schedule=phases).plan(model, RUN)
        assert [(phase.start, phase.steps) for phase in plan.curve.phases] == [(0, 34), (34, 66)]

    def test_a_phase_of_no_steps_is_passed_over(self):
        phases = [{"name": "LinearLR", "for": "0%"}, {"name": "CosineAnnealingLR"}]
        assert self.rates(phases) == self.rates(phases[1:])

    def test_epochs_and_a_length_of_its_own(self):
        phases = [
            {"name": "LinearLR", "start_factor": 0.5, "total_iters": "1 epoch", "for": "3 epochs"},
            {"name": "CosineAnnealingLR"},
        ]
        found = [rate for (rate,) in self.rates(phases)]
        assert found[0] == 0.5
        assert found[10:31] == [1.0] * 21
        assert found[100] == 0.0

    # A phase, and the same by hand; the run has 100 steps, 10 to an epoch.
    PHASES = [
        ({"name": "ConstantLR", "factor": 0.5, "total_iters": "2 epochs"}, lambda o: schedulers.ConstantLR(o, 0.5, 20)),
        ({"name": "PolynomialLR", "power": 2.0}, lambda o: schedulers.PolynomialLR(o, 100, 2.0)),
        ({"name": "ExponentialLR", "gamma": 0.97}, lambda o: schedulers.ExponentialLR(o, 0.97)),
        ({"name": "StepLR", "step_size": "1 epoch", "gamma": 0.5}, lambda o: schedulers.StepLR(o, 10, 0.5)),
        ({"name": "MultiStepLR", "milestones": ["30%", "8 epochs", 90]}, lambda o: schedulers.MultiStepLR(o, [30, 80, 90])),
        ({"name": "CosineAnnealingWarmRestarts", "T_0": "10%", "T_mult": 2}, lambda o: schedulers.CosineAnnealingWarmRestarts(o, 10, 2)),
        (
            {"name": "CyclicLR", "floor": 0.1, "step_size_up": "1 epoch", "step_size_down": 5, "mode": "triangular2"},
            lambda o: schedulers.CyclicLR(o, [0.1, 0.4], [1.0, 4.0], 10, 5, "triangular2", cycle_momentum=False),
        ),
        (
            {"name": "OneCycleLR", "three_phase": True, "anneal_strategy": "linear"},
            lambda o: schedulers.OneCycleLR(o, [1.0, 4.0], 100, three_phase=True, anneal_strategy="linear", cycle_momentum=False),
        ),
    ]  # fmt: skip

    @pytest.mark.parametrize(("phase", "by_hand"), PHASES, ids=label)
    def test_every_scheduler_of_time_is_a_phase(self, phase, by_hand):
        found = self.rates([phase], steps=100, groups=[{"match": "1.*", "lr_scale": 4}])
        optimizer = AdamW([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1, 4)])
        reference = by_hand(optimizer)
        for rate in found:
            assert rate == pytest.approx(reference.get_last_lr(), rel=1e-12)
            optimizer.step()
            reference.step()

    def test_past_its_end_one_cycle_stays_at_its_last_rate(self):
        found = self.rates([{"name": "OneCycleLR", "total_steps": 40, "for": "50%"}], steps=120)
        assert found[38] > found[39]
        assert {rate for (rate,) in found[39:]} == {found[39][0]}

    def test_saved_and_loaded_it_goes_on_exactly(self):
        recipe = Recipe.load(FULL)
        optimizer, scheduler = recipe.build(tiny_bert(), RUN)
        for _ in range(37):
            optimizer.step()
            scheduler.step()
        again, resumed = recipe.build(tiny_bert(), RUN)
        again.load_state_dict(optimizer.state_dict())
        resumed.load_state_dict(scheduler.state_dict())
        for _ in range(70):
            assert resumed.get_last_lr() == scheduler.get_last_lr()
            for o, s in ((optimizer, scheduler), (again, resumed)):
                o.step()
                s.step()

    def test_the_state_of_another_schedule_is_refused(self):
        _, scheduler = recipe_of(schedule=FULL["schedule"]).build(nn.Linear(2, 2), RUN)
        _, other = recipe_of(schedule=FULL["schedule"]).build(nn.Linear(2, 2), Horizon(200))
        with pytest.raises(StateError, match=r"saved under another schedule.*for 20.*for 10"):
            scheduler.load_state_dict(other.state_dict())


class TestTraining:
    def test_it_trains_as_the_same_groups_by_hand(self):
        def train(model, optimizer, scheduler=None):
            for batch in 3 * [collate(tiny_rows(4))]:
                model(**batch).loss.backward()
                optimizer.step()
                if scheduler:
                    scheduler.step()
                optimizer.zero_grad()
            return list(model.parameters())

        model, twin = tiny_bert(), tiny_bert()
        recipe = recipe_of({"match": "*.bias", "weight_decay": 0}, lr=1e-2, foreach=False)
        ours = train(model, *recipe.build(model, RUN))
        plain = [p for n, p in twin.named_parameters() if not n.endswith(".bias")]
        bias = [p for n, p in twin.named_parameters() if n.endswith(".bias")]
        by_hand = torch.optim.AdamW(
            [{"params": plain}, {"params": bias, "weight_decay": 0}], lr=1e-2, foreach=False
        )
        assert all(map(same_bits, ours, train(twin, by_hand)))

    def test_any_torch_optimizer_by_its_import_path(self):
        model = nn.Linear(2, 2)
        recipe = Recipe.load(
            {
                "optimizer": {"name": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
                "groups": [{"match": "bias", "momentum": 0.5}],
                "schedule": FULL["schedule"],
            }
        )
        optimizer, scheduler = recipe.build(model, RUN)
        assert type(optimizer) is torch.optim.SGD
        assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.5]
        assert scheduler.get_last_lr() == pytest.approx([0.01, 0.01])

    def test_an_optimizer_for_matrices_alone(self):
        model = nn.Sequential(nn.Linear(2, 2, bias=False))
        recipe = Recipe.load({"optimizer": {"name": "torch.optim.Muon", "lr": 0.1}})
        assert type(recipe.build(model, RUN)[0]) is torch.optim.Muon

    def test_a_rule_is_judged_beside_the_optimizers_own_settings(self):
        recipe = Recipe.load({
            "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9, "max_grad_norm": None},
            "groups": [{"match": "bias", "nesterov": True}],
        })  # fmt: skip
        optimizer, _ = recipe.build(nn.Linear(2, 2), RUN)
        assert [group["nesterov"] for group in optimizer.param_groups] == [False, True]
        assert optimizer.max_grad_norm is None

    def test_the_same_recipe_builds_the_same_thing_twice(self):
        recipe = Recipe.load(FULL)
        built = [recipe.build(tiny_bert(), RUN)[0].state_dict()["param_groups"] for _ in range(2)]
        assert built[0] == built[1]

    def test_load_takes_a_recipe_as_it_is(self):
        recipe = Recipe.load(FULL)
        assert Recipe.load(recipe) is recipe

    def test_frozen_weights_do_not_move(self):
        model = tiny_bert()
        frozen = model.bert.embeddings.position_embeddings.weight
        before = frozen.detach().clone()
        optimizer, scheduler = Recipe.load(FULL).build(model, RUN)
        model(**collate(tiny_rows(4))).loss.backward()
        optimizer.step()
        scheduler.step()
        assert same_bits(frozen, before)


def test_an_omegaconf_node_is_a_mapping_like_any():
    from omegaconf import OmegaConf

    node = OmegaConf.create(
        {"lr": 2e-3, "recipe": {**FULL, "optimizer": {**ADAMW, "lr": "${lr}"}}}
    ).recipe
    optimizer, _ = Recipe.load(node).build(tiny_bert(), RUN)
    assert optimizer.defaults["lr"] == 2e-3


@pytest.mark.parametrize("value", ["${nowhere}", "???"])
def test_an_omegaconf_node_that_cannot_be_read_is_a_recipe_error(value):
    from omegaconf import OmegaConf

    node = OmegaConf.create({"optimizer": {"name": "SGD", "lr": value}})
    with pytest.raises(RecipeError, match="cannot read the mapping"):
        Recipe.load(node)
