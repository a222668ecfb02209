"""What a plan says that a run takes, against what it has once it runs."""

import inspect
import json
import re

import pytest
import torch
import torch.distributed as dist
from support.labels import label
from support.recipes import RUN, recipe_of
from support.rows import each_in_turn, few_quick
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from optimplug import optim
from optimplug._core.optim.storage.arguments import StateDtype
from optimplug.recipe.resolve import optimizer_names

# They need a closure, or sparse gradients; what LBFGS keeps grows with its steps.
OTHERS = ("LBFGS", "SparseAdam")
NAMES = [name for name in optimizer_names() if name not in OTHERS]
STORED = [n for n in NAMES if "rounding" in inspect.signature(getattr(optim, n)).parameters]
STATE_DTYPES = (None, *StateDtype.__args__)
NEEDED = {
    "Muon": {"fallback": {"name": "AdamW"}},
    "TransformersAdafactor": {"relative_step": False},
}
RULES = [
    {"match": "2.*", "lr_scale": 2},
    {"match": "1.bias", "freeze": True},
    {"match": {"ndim": 1}, "weight_decay": 0},
]


def model(dtype=torch.float32):
    """An embedding of more than 4,096 elements, which is the head's weight too."""
    layers = nn.Sequential(nn.Embedding(70, 60), nn.Linear(60, 60), nn.Linear(60, 70))
    layers[2].weight = layers[0].weight
    return layers.to(dtype)


def recipe(*rules, name="AdamW", **settings):
    return recipe_of(*rules, **{"name": name, **NEEDED.get(name, {}), **settings})


def stepped(recipe, whole):
    """Return the groups' bytes of weights, gradients and state, after one step."""
    optimizer, _ = recipe.build(whole, RUN)
    for p in whole.parameters():
        if p.requires_grad:
            p.grad = torch.ones_like(p)
    optimizer.train()
    optimizer.step()
    found = []
    for group in optimizer.param_groups:
        kept = {id(t): t for p in group["params"] for t in optimizer.state[p].values()}
        grads = [p.grad for p in group["params"]]
        found.append(
            tuple(sum(t.nbytes for t in of) for of in (group["params"], grads, kept.values()))
        )
    return found


def check(recipe, dtype=torch.float32):
    plan = recipe.plan(model(dtype), RUN)
    with torch.device("meta"):
        on_meta = recipe.plan(model(dtype), RUN)
    held = stepped(recipe, model(dtype))
    assert [tuple(memory) for memory in plan.memory] == held
    assert plan.memory == on_meta.memory
    assert tuple(plan.total_memory) == tuple(map(sum, zip(*held, strict=True)))
    assert plan.state_bytes == plan.total_memory.state
    return plan


@pytest.mark.parametrize("name", NAMES)
def test_it_is_exact_for_every_optimizer(name):
    decays = "weight_decay" in inspect.signature(getattr(optim, name)).parameters
    plan = check(recipe(*RULES[: 2 + decays], name=name))
    assert plan.frozen_bytes == 60 * 4
    trained = 70 * 60 + 60 * 60 + 70  # the tied weight once, the frozen bias not at all
    assert plan.total_memory[:2] == (trained * 4, trained * 4)


@pytest.mark.parametrize(
    ("name", "rounding", "state_dtype", "dtype"),
    each_in_turn(
        ["AdamW", "Lion"],
        ["nearest", "stochastic", "kahan", "exact"],
        STATE_DTYPES,
        [torch.float32, torch.bfloat16, torch.float64],
        least=16,
    ),
    ids=label,
)
def test_it_is_exact_for_every_storage(name, rounding, state_dtype, dtype):
    check(recipe(*RULES, name=name, rounding=rounding, state_dtype=state_dtype), dtype)


@pytest.mark.parametrize(
    ("name", "state_dtype"),
    few_quick(
        (name, state_dtype)
        for name in STORED
        for state_dtype in STATE_DTYPES[1:]
        if state_dtype != "8bit" or name not in ("ASGD", "Rprop", "ScheduleFreeSGD")  # refused
    ),
)
def test_it_is_exact_for_every_optimizer_that_has_them(name, state_dtype):
    check(recipe(*RULES[:2], name=name, rounding="exact", state_dtype=state_dtype), torch.bfloat16)


def test_a_rule_keeps_the_moments_of_embeddings_in_float32():
    rule = {"match": {"type": "embedding"}, "state_dtype": "float32"}
    plan = check(recipe(rule, state_dtype="bfloat16"))
    assert [group.settings.get("state_dtype") for group in plan.groups] == ["float32", None]
    assert plan.memory[0].state == 2 * 4 * 70 * 60 + 4
    assert plan.memory[1].state == 2 * 2 * (60 * 60 + 60 + 70) + 4 * 3


def test_eight_bits_are_a_byte_and_a_scale_for_each_128_of_large_parameters():
    plan = check(recipe(state_dtype="8bit"))
    assert plan.state_bytes == 2 * (4200 + 4 * 33) + 2 * 4 * (3600 + 60 + 70) + 4 * 4


@pytest.fixture
def half():
    """A mesh of two processes, of which this is one; the other is not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


SHARDED = [{"name": "Adafactor"}] + [
    {"rounding": "exact", "state_dtype": state_dtype} for state_dtype in STATE_DTYPES
]


@pytest.mark.parametrize("settings", SHARDED, ids=label)
def test_of_what_is_sharded_it_is_the_part_that_is_here(half, settings):
    whole = nn.Sequential(nn.Linear(100, 60, bias=False, dtype=torch.bfloat16))
    whole[0].weight = nn.Parameter(distribute_tensor(whole[0].weight.data, half, [Shard(0)]))
    said = recipe(**settings).plan(whole, RUN)
    optimizer, _ = recipe(**settings).build(whole, RUN)
    (p,) = whole.parameters()
    p.grad = torch.ones_like(p)
    # Not a step: its sums are over processes that are not there.
    optimizer.begin_state()
    kept = [t.to_local() if isinstance(t, DTensor) else t for t in optimizer.state[p].values()]
    assert said.memory == ((6000, 6000, sum(t.nbytes for t in kept)),)


def test_several_optimizers_are_counted_each_by_its_own():
    lion = {"name": "Lion", "lr": 1e-4, "rounding": "exact"}
    plan = check(recipe({"match": "1.*", "optimizer": lion}, state_dtype="float32"), torch.bfloat16)
    assert plan.memory[1].state == (60 * 60 + 60) * (4 + 2)


def test_weights_and_gradients_are_known_for_any_optimizer():
    plan = recipe(name="torch.optim.AdamW").plan(model(), RUN)
    assert plan.memory[0][:2] == (4 * (70 * 60 + 60 * 60 + 60 + 70),) * 2
    assert plan.memory[0].state is plan.total_memory.state is plan.total_memory.together is None
    assert "unknown" in str(plan)
    assert "unknown" in plan.html()


def test_the_dict_has_all_of_it():
    plan = recipe(*RULES).plan(model(), RUN)
    found = json.loads(json.dumps(plan.to_dict()))
    assert found["memory"] == {**plan.total_memory._asdict(), "frozen": plan.frozen_bytes}
    assert [group["memory"] for group in found["groups"]] == [m._asdict() for m in plan.memory]


def test_the_table_and_the_page_show_all_of_it():
    plan = recipe(*RULES).plan(model(), RUN)
    rows = {row[-1]: row[:-1] for line in str(plan).splitlines() if (row := line.split())}
    for group, memory in zip(plan.groups, plan.memory, strict=True):
        assert rows[group.name] == [f"{size:,}" for size in memory]
    assert rows["groups"] == [*(f"{size:,}" for size in plan.total_memory), "all"]
    assert rows["frozen"] == [f"{plan.frozen_bytes:,}", "what", "is"]
    page = plan.html()
    for memory in (*plan.memory, plan.total_memory):
        assert "".join(f"<td>{size:,}</td>" for size in memory) in page
    assert re.search(rf"what is frozen.*<td>{plan.frozen_bytes:,}</td>", page)


def test_the_representation_is_a_short_line():
    found = repr(recipe(*RULES).plan(model(), RUN))
    assert len(found) <= 100
    assert "AdamW, 3 groups, 7,870 parameters, 125,932 bytes" in found
    assert "<Plan: torch.optim.SGD" in repr(recipe_of(name="torch.optim.SGD").plan(model(), RUN))


def test_gradients_of_another_type_than_their_weights_are_counted_as_such():
    model = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    if not hasattr(model.weight, "grad_dtype"):
        pytest.skip("this release of torch has gradients of the parameter's type alone")
    model.weight.grad_dtype = torch.float32
    (row,) = recipe_of().plan(model, RUN).to_dict()["groups"]
    assert (row["memory"]["weights"], row["memory"]["gradients"]) == (2 * 16, 4 * 16)
