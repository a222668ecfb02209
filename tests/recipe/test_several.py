"""Recipes with several optimizers: which parameter has which, and what is refused."""

import json

import pytest
import torch
import torch.distributed as dist
from support.bert import collate, tiny_bert, tiny_rows
from support.recipes import RUN
from support.tensors import same_weights
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from optimplug import Horizon, Recipe, RecipeError, StateError, optim
from optimplug.recipe import build_scheduler
from optimplug.recipe.text.override import override

HIDDEN = "Muon"
FALLBACK = {"name": "AdamW", "lr": 3e-4, "weight_decay": 0.1}
MATRICES = {
    "optimizer": {"name": HIDDEN, "lr": 0.02, "max_grad_norm": 1.0, "fallback": FALLBACK},
    "groups": [{"no_decay": ["norm", "bias"]}, {"layer_decay": 0.5}],
    "schedule": "linear",
}
BY_RULE = {
    "optimizer": {"name": "AdamW", "lr": 1e-3},
    "groups": [
        {"match": "classifier.*", "optimizer": {"name": "SGD", "momentum": 0.9}, "lr": 0.1},
        {"match": "*.query.*", "optimizer": "Lion"},
        {"match": "*.layer.1.*", "lr_scale": 10},
        {"no_decay": "bias"},
    ],
}


def by_name(optimizer):
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


def test_what_an_optimizer_is_not_made_for_falls_back():
    optimizer, _ = Recipe(MATRICES).build(tiny_bert(), RUN)
    found = {name: group["optimizer"] for name, group in by_name(optimizer).items()}
    layers = ("attention.self.query", "attention.self.key", "attention.self.value")
    layers += ("attention.output.dense", "intermediate.dense", "output.dense")
    hidden = {f"bert.encoder.layer.{i}.{name}.weight" for i in range(2) for name in layers}
    assert {name for name, own in found.items() if own == HIDDEN} == hidden
    assert {own for name, own in found.items() if name not in hidden} == {"AdamW"}


def test_each_has_its_own_rate_and_what_rules_make_of_it():
    groups = by_name(Recipe(MATRICES).build(tiny_bert(), RUN)[0])
    rates = {
        "bert.encoder.layer.1.output.dense.weight": (0.02 * 0.5, 0.1),
        "bert.encoder.layer.0.output.dense.weight": (0.02 * 0.25, 0.1),
        "bert.encoder.layer.0.output.dense.bias": (3e-4 * 0.25, 0),
        "bert.embeddings.word_embeddings.weight": (3e-4 * 0.125, 0.1),
        "classifier.weight": (3e-4, 0.1),
    }
    for name, (rate, decay) in rates.items():
        assert groups[name]["lr"] == pytest.approx(rate)
        assert groups[name]["weight_decay"] == decay


def test_a_rule_names_the_optimizer_of_its_parameters():
    groups = by_name(Recipe(BY_RULE).build(tiny_bert(), RUN)[0])
    query = groups["bert.encoder.layer.1.attention.self.query.weight"]
    assert (query["optimizer"], query["lr"]) == ("Lion", pytest.approx(1e-3))
    head = groups["classifier.weight"]
    assert (head["optimizer"], head["lr"], head["momentum"]) == ("SGD", 0.1, 0.9)
    assert groups["bert.pooler.dense.weight"]["optimizer"] == "AdamW"
    assert groups["bert.pooler.dense.weight"]["lr"] == 1e-3
    assert groups["bert.pooler.dense.bias"]["weight_decay"] == 0


def test_the_last_rule_with_an_optimizer_wins():
    rules = [{"optimizer": "Lion"}, {"match": "*bias", "optimizer": "Adagrad"}]
    optimizer, _ = Recipe({"optimizer": {"name": "AdamW"}, "groups": rules}).build(
        nn.Linear(2, 2), RUN
    )
    assert [group["optimizer"] for group in optimizer.param_groups] == ["Lion", "Adagrad"]


def test_a_run_is_that_of_the_optimizers_written_by_hand():
    def train(optimizer, model, clip=None):
        for batch in (collate(tiny_rows()[i : i + 8]) for i in range(0, 16, 8)):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    recipe = {**MATRICES, "schedule": [], "groups": []}
    model = tiny_bert()
    ours = train(Recipe(recipe).build(model, RUN)[0], model)
    model = tiny_bert()
    named = dict(model.named_parameters())
    hidden = [
        n for n, p in named.items() if ".layer." in n and p.ndim == 2 and "LayerNorm" not in n
    ]
    optimizer = optim.MultiOptimizer(
        [
            {"params": [named[n] for n in hidden], "optimizer": "Muon", "lr": 0.02},
            {
                "params": [p for n, p in named.items() if n not in hidden],
                "optimizer": "AdamW",
                "lr": 3e-4,
                "weight_decay": 0.1,
            },
        ],
        max_grad_norm=1.0,
    )
    assert same_weights(ours, train(optimizer, model))


class Net(nn.Module):
    """A stem, blocks of each kind of matrix, and a head."""

    def __init__(self, tied=False):
        super().__init__()
        self.table = nn.Embedding(6, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 6, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x):
        x = self.table(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.positions = nn.Embedding(4, 8)
        self.experts = nn.Parameter(torch.zeros(2, 8, 8))
        self.gate = nn.Parameter(torch.ones(8))

    def forward(self, x):
        x = self.conv(self.linear(self.norm(x)).transpose(1, 2)).transpose(1, 2)
        return x * self.gate + self.positions.weight.sum() + self.experts.sum()


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_matrices_of_a_model_of_ones_own(tied):
    recipe = {"optimizer": {"name": HIDDEN, "lr": 0.1, "fallback": "AdamW"}}
    groups = by_name(Recipe(recipe).build(Net(tied), RUN)[0])
    hidden = {name for name, group in groups.items() if group["optimizer"] == HIDDEN}
    assert hidden == {f"blocks.{i}.{m}.weight" for i in range(3) for m in ("linear", "conv")}


def test_layers_that_are_not_found_are_asked_for():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

    recipe = {"optimizer": {"name": HIDDEN, "lr": 0.1, "fallback": "AdamW"}}
    with pytest.raises(RecipeError, match=r"^optimizer: Muon needs to know what is in layers"):
        Recipe(recipe).plan(Plain(), RUN)
    rules = [{"match": f"{name}.weight", "optimizer": HIDDEN} for name in ("one", "two")]
    with pytest.raises(RecipeError) as error:
        Recipe({"optimizer": ADAMW, "groups": rules}).plan(Plain(), RUN)
    (said,) = str(error.value).splitlines()
    assert said.startswith("groups[0].optimizer: Muon needs to know what is in layers")
    plan = Recipe({**recipe, "layers": ["one", "two"]}).plan(Plain(), RUN)
    assert [str(w) for w in plan.warnings] == []
    found = {n: g.optimizer.name for g in plan.groups for n in g.parameters if "weight" in n}
    assert found == {"one.weight": HIDDEN, "two.weight": HIDDEN, "out.weight": "AdamW"}


def test_without_a_fallback_what_does_not_fit_is_listed_with_what_to_write():
    recipe = Recipe({"optimizer": {"name": HIDDEN, "lr": 0.1}})
    with pytest.raises(RecipeError) as error:
        recipe.build(Net(), RUN)
    message = str(error.value)
    assert message.startswith("optimizer: ")
    for name in ("table.weight", "head.weight", "blocks.0.norm.bias", "blocks.2.experts"):
        assert name in message
    assert "blocks.0.linear.weight" not in message
    assert "fallback: {name: AdamW, lr: 3e-4}" in message
    frozen = [{"match": "blocks.*.linear.weight", "optimizer": HIDDEN}]
    Recipe({"optimizer": {"name": "AdamW"}, "groups": frozen}).build(Net(), RUN)


def test_what_is_frozen_needs_no_fallback():
    others = {"not": "blocks.*.linear.weight"}
    recipe = {
        "optimizer": {"name": HIDDEN, "lr": 0.1},
        "groups": [{"match": others, "freeze": True}],
    }
    optimizer, _ = Recipe(recipe).build(Net(), RUN)
    assert type(optimizer) is optim.Muon
    assert len(by_name(optimizer)) == 3


ADAMW = {"name": "AdamW", "lr": 1e-3}
TORCHS = {"name": "torch.optim.AdamW", "lr": 1e-3}


def rule(optimizer, **said):
    return {"optimizer": ADAMW, "groups": [{"match": "*", "optimizer": optimizer, **said}]}


BAD = {
    "misspelt": (rule("Lino"), "groups[0].optimizer: no optimizer 'Lino'; did you mean 'Lion'?"),
    "misspelt key": (
        rule({"name": "Lion", "lrr": 1}),
        "groups[0].optimizer.lrr: unknown key; did you mean 'lr'?",
    ),
    "another's key": (
        rule({"name": "Lion", "eps": 1}),
        "groups[0].optimizer.eps: unknown key; valid are: lr, betas",
    ),
    "misspelt fallback": (
        {"optimizer": {"name": HIDDEN, "lr": 1, "fallback": "AdmaW"}},
        "optimizer.fallback: no optimizer 'AdmaW'; did you mean 'AdamW'?",
    ),
    "a value": (
        rule({"name": "Lion", "lr": -1}),
        "groups[0].optimizer.lr: Invalid learning rate: -1; must be >= 0",
    ),
    "a kind": (
        rule({"name": "Lion", "lr": "1e-3"}),
        "groups[0].optimizer.lr: must be a finite number (got '1e-3')",
    ),
    "clips alone": (
        rule({"name": "Lion", "max_grad_norm": 1.0}),
        "groups[0].optimizer.max_grad_norm: is for the whole optimizer; move it to 'optimizer'",
    ),
    "a fallback that clips alone": (
        {"optimizer": {"name": HIDDEN, "lr": 1, "fallback": {**ADAMW, "skip_nonfinite": True}}},
        "optimizer.fallback.skip_nonfinite: is for the whole optimizer; move it to 'optimizer'",
    ),
    "runs alone": (
        rule({"name": "Lion", "foreach": True}),
        "groups[0].optimizer.foreach: is for the whole optimizer; move it to 'optimizer'",
    ),
    "a choice that one lacks": (
        {**rule("Lion"), "optimizer": {**ADAMW, "fused": True}},
        "optimizer: param_groups[1] ('groups[0].optimizer'): fused=True is a choice for all",
    ),
    "a foreign one": (
        rule(TORCHS),
        "groups[0].optimizer.name: torch.optim.adamw.AdamW cannot be one of several optimizers: "
        "each must be of optimplug.optim",
    ),
    "ours beside a foreign one": (
        {**rule("Lion"), "optimizer": TORCHS},
        "optimizer.name: torch.optim.adamw.AdamW cannot be one of several",
    ),
    "a fallback of one for all": (
        {"optimizer": {**ADAMW, "fallback": "Lion"}},
        "optimizer.fallback: AdamW is made for all parameters, so that nothing falls back",
    ),
    "a fallback for some": (
        {"optimizer": {"name": HIDDEN, "fallback": HIDDEN}},
        "optimizer.fallback: Muon is itself made for hidden matrices alone",
    ),
    "nothing": (
        {"optimizer": ADAMW, "groups": [{"match": "*", "optimizer": None}]},
        "groups[0]: optimizer must not be empty; leave it out",
    ),
    "an empty fallback": (
        {"optimizer": {"name": HIDDEN, "fallback": None}},
        "optimizer: fallback must not be empty; leave it out",
    ),
    "a fallback of a fallback": (
        {"optimizer": {"name": HIDDEN, "fallback": {**ADAMW, "fallback": "SGD"}}},
        "optimizer.fallback.fallback: unknown key",
    ),
    "a number": (rule(3), "groups[0].optimizer: must be a mapping (got 3)"),
    "several in one": (
        {"optimizer": {"name": "MultiOptimizer"}},
        "optimizer.name: MultiOptimizer is what a recipe of several makes",
    ),
    "several in one of a rule": (
        rule("MultiOptimizer"),
        "groups[0].optimizer: MultiOptimizer is what a recipe of several makes",
    ),
    "several in one of a fallback": (
        {"optimizer": {"name": HIDDEN, "lr": 1, "fallback": {"name": "MultiOptimizer"}}},
        "optimizer.fallback.name: MultiOptimizer is what a recipe of several makes",
    ),
    "a key that none has": (
        rule("Lion", momentum=0.9),
        "groups[0].momentum: unknown key",
    ),
    "a schedule of nothing": (
        {**rule("Lion"), "schedule": {"preset": "linear", "of": "momentum"}},
        "schedule.of: each of AdamW, Lion has no number 'momentum'",
    ),
    "no decay of nothing": (
        {
            "optimizer": {"name": "Rprop"},
            "groups": [{"match": "*", "optimizer": HIDDEN}, {"no_decay": "bias"}],
        },
        None,
    ),
}


@pytest.mark.parametrize(("recipe", "message"), BAD.values(), ids=BAD)
def test_a_bad_recipe_says_what_to_write(recipe, message):
    if message is None:
        Recipe(recipe)
        return
    with pytest.raises(RecipeError) as error:
        Recipe(recipe)
    assert message in str(error.value).splitlines()[0] or str(error.value).startswith(message)


def test_a_hyperparameter_that_the_optimizer_of_a_parameter_lacks_names_both():
    rules = [{"match": "*bias", "optimizer": "Lion"}, {"eps": 1e-6}]
    recipe = Recipe({"optimizer": ADAMW, "groups": rules})
    with pytest.raises(RecipeError) as error:
        recipe.plan(nn.Linear(2, 2), RUN)
    assert str(error.value) == (
        "groups[1].eps: Lion has no 'eps', and is the optimizer of bias; let the rule match only "
        "parameters whose optimizer has it"
    )
    rules[1]["match"] = "*weight"
    Recipe({"optimizer": ADAMW, "groups": rules}).plan(nn.Linear(2, 2), RUN)


@pytest.mark.parametrize("phases", [1, 2])
def test_so_does_a_rules_schedule_of_what_the_optimizer_of_a_parameter_lacks(phases):
    of_eps = {"preset": "linear", "of": "eps"}
    schedule = [{"preset": "linear"}, of_eps][-phases:]
    rules = [{"match": "*bias", "optimizer": "Lion"}, {"schedule": schedule}]
    recipe = Recipe({"optimizer": ADAMW, "groups": rules})
    for attempt in (recipe.plan, recipe.build):
        with pytest.raises(RecipeError) as error:
            attempt(nn.Linear(2, 2), RUN)
        assert str(error.value) == (
            f"groups[1].schedule[{phases - 1}].of: Lion has no 'eps', and is the optimizer of "
            "bias; let the rule match only parameters whose optimizer has it"
        )
    rules[1]["match"] = "*weight"
    Recipe({"optimizer": ADAMW, "groups": rules}).plan(nn.Linear(2, 2), RUN)
    Recipe({"optimizer": ADAMW, "groups": rules[:1], "schedule": of_eps}).plan(nn.Linear(2, 2), RUN)


def test_no_decay_says_nothing_of_what_has_none():
    rules = [{"match": "*bias", "optimizer": "Rprop"}, {"no_decay": "bias"}]
    optimizer, _ = Recipe({"optimizer": ADAMW, "groups": rules}).build(nn.Linear(2, 2), RUN)
    weight, bias = optimizer.param_groups
    assert (weight["weight_decay"], bias.get("weight_decay")) == (0.01, None)


def test_a_schedule_moves_what_a_group_has():
    phases = [{"preset": "linear"}, {"preset": "linear", "of": "momentum"}]
    rules = [{"match": "*bias", "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.8}}]
    recipe = Recipe({"optimizer": ADAMW, "groups": rules, "schedule": phases})
    optimizer, scheduler = recipe.build(nn.Linear(2, 2), Horizon(total_steps=4))
    optimizer.step()
    scheduler.step()
    adamw, sgd = optimizer.param_groups
    assert (adamw["lr"], sgd["lr"]) == (pytest.approx(0.75e-3), pytest.approx(0.075))
    assert sgd["momentum"] == pytest.approx(0.6)
    assert "momentum" not in adamw
    scheduler.load_state_dict(scheduler.state_dict())


def test_a_schedule_alone_takes_what_any_group_has():
    def scheduled(of):
        p, q = (torch.zeros(1, requires_grad=True) for _ in range(2))
        optimizer = optim.MultiOptimizer(
            [
                {"params": [p], "optimizer": "SGD", "lr": 0.1, "momentum": 0.8},
                {"params": [q], "optimizer": "Lion"},
            ]
        )
        phases = [{"preset": "linear"}, {"preset": "linear", "of": of}]
        build_scheduler(phases, optimizer, Horizon(total_steps=4)).go_to(1)
        return optimizer.param_groups[0]

    assert scheduled("momentum")["momentum"] == pytest.approx(0.6)
    with pytest.raises(RecipeError, match="MultiOptimizer has no number 'eps'"):
        scheduled("eps")


def test_groups_alone_are_for_an_optimizer_of_several():
    groups = Recipe(BY_RULE).param_groups(tiny_bert())
    ours = optim.MultiOptimizer(groups)
    theirs, _ = Recipe(BY_RULE).build(tiny_bert(), RUN)
    for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
        own = b.keys() - {"params", "initial_lr"}
        assert {key: a[key] for key in own} == {key: b[key] for key in own}


def test_the_plan_shows_each_groups_optimizer():
    plan = Recipe(MATRICES).plan(tiny_bert(), RUN)
    assert f"{HIDDEN}(lr=0.02, max_grad_norm=1.0), AdamW(lr=0.0003, weight_decay=0.1)" in str(plan)
    row = next(line for line in str(plan).splitlines() if "embeddings" in line)
    assert "AdamW" in row
    content = plan.to_dict()
    json.dumps(content)
    assert [each["path"] for each in content["optimizers"]] == ["optimizer", "optimizer.fallback"]
    assert {group["settings"]["optimizer"] for group in content["groups"]} == {HIDDEN, "AdamW"}
    assert HIDDEN in plan.html()
    alone = Recipe({"optimizer": ADAMW}).plan(nn.Linear(2, 2), RUN)
    assert "optimizers" not in alone.to_dict()


def test_the_plan_shows_no_value_where_an_optimizer_has_no_such_hyperparameter():
    rules = [{"match": "*bias", "optimizer": "Lion"}, {"match": "*weight", "eps": 1e-6}]
    text = str(Recipe({"optimizer": ADAMW, "groups": rules}).plan(nn.Linear(2, 2), RUN))
    assert "1e-06" in text
    assert "None" not in text


def test_state_bytes_are_those_of_each_groups_optimizer():
    model = tiny_bert()
    recipe = Recipe(MATRICES)
    said = recipe.plan(model, RUN).state_bytes
    run = recipe.start(model, RUN)
    model(**collate(tiny_rows())).loss.backward()
    run.step()
    kept = [t for state in run.optimizer.state.values() for t in state.values()]
    assert said == sum(t.numel() * t.element_size() for t in kept)


def test_explain_names_the_optimizer_and_where_its_rate_stands():
    recipe, model = Recipe(BY_RULE), tiny_bert()
    query = recipe.explain(model, "bert.encoder.layer.1.attention.self.query.weight")
    assert query.settings["optimizer"] == "Lion"
    assert "eps" not in query.settings
    assert query.lr == "0.001 = 0.0001 (groups[1].optimizer) x 10.0 (lr_scale of groups[2])"
    assert "groups[1] ('*.query.*'): optimizer = Lion" in str(query)
    head = recipe.explain(model, "classifier.weight")
    assert head.lr == "0.1 (groups[0])"
    fallen = Recipe(MATRICES).explain(model, "classifier.weight")
    assert fallen.lr.endswith("0.0003 (optimizer.fallback) x 0.5^0 (groups[1], 0 below the top)")


def test_a_tied_parameter_has_one_optimizer():
    rules = [
        {"match": "table.*", "optimizer": "Lion"},
        {"match": "head.*", "optimizer": {"name": "SGD", "lr": 0.1}},
    ]
    with pytest.raises(RecipeError, match=r"groups\[1\].optimizer: .*they are one tied parameter"):
        Recipe({"optimizer": ADAMW, "groups": rules}).plan(Net(tied=True), RUN)


def test_a_rule_whose_optimizer_is_overridden_is_told_of():
    rules = [{"match": "*bias", "optimizer": "Lion"}, {"optimizer": "Adagrad"}]
    plan = Recipe({"optimizer": ADAMW, "groups": rules}).plan(nn.Linear(2, 2), RUN)
    assert "groups[0]: is overridden for all its parameters by groups[1]; remove it" in map(
        str, plan.warnings
    )


def test_an_optimizer_without_effect_is_told_of():
    def told(*rules, **fallback):
        optimizer = {"name": HIDDEN, "lr": 0.1, "fallback": fallback} if fallback else ADAMW
        plan = Recipe({"optimizer": optimizer, "groups": list(rules)}).plan(Net(), RUN)
        return list(map(str, plan.warnings))

    bias = {"match": "*norm.bias", "optimizer": {"name": "Lion", "lr": 1e-4, "weight_decay": 0.3}}
    assert told(bias, {"match": "blocks.0.*", "weight_decay": 0}) == []
    assert told({"match": "*norm.*", "lr": 1.0}, bias, {"match": "*norm.*", "lr": 2.0})[1:] == [
        "groups[1].optimizer.lr: is overridden for all its parameters by groups[2]; "
        "remove one of them"
    ]
    assert told(bias, {"match": "*norm.*", "optimizer": "Adagrad"})[-1] == (
        "groups[0].optimizer: has no effect: it has no parameters to train"
    )
    others = {"not": "blocks.*.linear.weight"}
    assert told({"match": others, "freeze": True}, **ADAMW) == [
        "optimizer.fallback: has no effect: it has no parameters to train"
    ]


def test_a_value_of_any_of_them_may_be_changed_when_a_recipe_is_loaded():
    changed = override(MATRICES, {"optimizer.fallback.lr": "1e-4"})
    groups = by_name(Recipe(changed).build(tiny_bert(), RUN)[0])
    assert groups["classifier.weight"]["lr"] == 1e-4
    with pytest.raises(RecipeError, match=r"^optimizer\.fallback\.lrr: unknown key; did you"):
        Recipe(override(MATRICES, {"optimizer.fallback.lrr": "1e-4"}))


def test_a_run_resumes_exactly():
    batches = [collate(tiny_rows()[i : i + 4]) for i in range(0, 20, 4)]

    def train(run, some):
        for batch in some:
            run.model(**batch).loss.backward()
            run.step()

    whole = Recipe(MATRICES).start(tiny_bert(), RUN)
    train(whole, batches)
    first = Recipe(MATRICES).start(tiny_bert(), RUN)
    train(first, batches[:2])
    again = Recipe(MATRICES).start(tiny_bert(), RUN)
    again.model.load_state_dict(first.model.state_dict())
    again.load_state_dict(first.state_dict())
    train(again, batches[2:])
    assert same_weights(again.model, whole.model)


def test_a_state_of_other_optimizers_is_refused():
    def start(name):
        rules = [{"match": "*bias", "optimizer": {"name": name, "lr": 0.1}}]
        return Recipe({"optimizer": ADAMW, "groups": rules}).start(nn.Linear(2, 2), RUN)

    with pytest.raises(StateError, match=r"optimizer of bias +Lion +SGD, whose state begins anew"):
        start("SGD").load_state_dict(start("Lion").state_dict())


@pytest.fixture
def mesh(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_model_trains_as_a_whole_one_and_resumes(mesh):
    def start(sharded):
        model = tiny_bert()
        if sharded:
            for layer in model.bert.encoder.layer:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        return Recipe(MATRICES).start(model, RUN)

    def train(run, steps):
        for step in steps:
            run.model(**collate(tiny_rows()[4 * step : 4 * step + 4])).loss.backward()
            run.step()

    def weights(run):
        named = run.model.named_parameters()
        return {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in named}

    plain, whole, first, again = start(False), start(True), start(True), start(True)
    train(plain, range(4))
    train(whole, range(4))
    # FSDP may add up a batch in another order, and a sign is of 0 only there.
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(whole)[name], weight, rtol=1e-4, atol=1e-5)
    train(first, range(2))
    state = get_state_dict(first.model, first.optimizer)
    set_state_dict(
        again.model, again.optimizer, model_state_dict=state[0], optim_state_dict=state[1]
    )
    again.load_state_dict(first.state_dict())
    train(again, range(2, 4))
    for name, weight in weights(whole).items():
        assert torch.equal(weights(again)[name], weight)


def test_one_of_several_may_have_modes():
    rules = [{"match": "bias", "optimizer": {"name": "ScheduleFreeSGD", "lr": 0.5}, "schedule": []}]
    recipe = Recipe({"optimizer": ADAMW, "groups": rules, "schedule": "linear"})
    model = nn.Linear(2, 1)
    assert recipe.plan(model, RUN).warnings == ()
    run = recipe.start(model, RUN)
    assert run.has_modes
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        run.step()
    trained = [p.detach().clone() for p in (model.weight, model.bias)]
    run.eval()
    assert torch.equal(model.weight, trained[0])
    assert not torch.equal(model.bias, trained[1])
    run.train()
    torch.testing.assert_close(model.bias.detach(), trained[1])


def test_a_schedule_of_one_that_is_schedule_free_is_told_of():
    rules = [{"match": "bias", "optimizer": {"name": "ScheduleFreeSGD", "lr": 0.5}}]
    recipe = Recipe({"optimizer": ADAMW, "groups": rules, "schedule": "linear"})
    (warning,) = map(str, recipe.plan(nn.Linear(2, 1), RUN).warnings)
    assert warning.startswith("schedule: ScheduleFreeSGD is schedule-free")
    assert "say 'schedule: []' in a rule for its parameters" in warning
