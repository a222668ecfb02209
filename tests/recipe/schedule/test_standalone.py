import pytest
import torch
from support.bert import tiny_bert
from support.labels import label
from support.recipes import FULL, RUN, recipe_of
from support.tensors import parameters

from optimplug import Recipe, RecipeError
from optimplug.recipe import build_scheduler


def trace(scheduler, steps=RUN.total_steps):
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr())
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def sgd(**options):
    a, b = parameters(((3,), (4,)))
    return torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=1.0, **options)


@pytest.mark.parametrize(
    "schedule",
    [
        FULL["schedule"],
        {"name": "CosineAnnealingLR", "floor": 0.1},
        "linear",
        {"preset": "cosine", "warmup": "10%"},
        [{"name": "StepLR", "step_size": 2, "every": "epoch"}],
    ],
    ids=label,
)
def test_a_schedule_alone_is_that_of_a_recipe(schedule):
    rates = trace(build_scheduler(schedule, sgd(), RUN))
    spec = Recipe.load({"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": schedule})
    assert rates == trace(spec.build_scheduler(sgd(), RUN))
    assert len({tuple(r) for r in rates}) >= 5
    assert all(a == 2 * b for a, b in rates)


def test_it_schedules_other_numbers_of_the_optimizer():
    optimizer = sgd(momentum=0.8)
    phase = {"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.5, "of": "momentum"}
    scheduler = build_scheduler(phase, optimizer, RUN)
    trace(scheduler)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.4, 0.4]


BAD = [
    ("cosin", r"schedule: .*'cosin'; did you mean 'cosine'"),
    ({"name": "StepLR"}, r"schedule\.step_size: is required"),
    ({"nam": "StepLR", "step_size": 1}, r"schedule\.nam: unknown key; did you mean 'name'"),
    ([{"name": "LinearLR", "of": "momentm"}], r"schedule\[0\]\.of: SGD has no number 'momentm'"),
    ([{"name": "LinearLR", "for": 200}], r"schedule\[0\]\.for: .*longer than the run of 100"),
]


@pytest.mark.parametrize(("schedule", "message"), BAD, ids=label)
def test_what_is_wrong_has_its_path_and_changes_nothing(schedule, message):
    optimizer = sgd()
    held = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(RecipeError, match=message):
        build_scheduler(schedule, optimizer, RUN)
    assert [dict(group) for group in optimizer.param_groups] == held


def test_groups_alone_are_those_of_the_recipes_optimizer():
    model, other = tiny_bert(), tiny_bert()
    recipe = Recipe.load(FULL)
    optimizer = torch.optim.AdamW(recipe.param_groups(model), **{"lr": 7.0, "weight_decay": 0.1})
    built = recipe.build_optimizer(other)
    keys = ("name", "lr", "weight_decay", "param_names")
    for group, expected in zip(optimizer.param_groups, built.param_groups, strict=True):
        assert [group[key] for key in keys] == [expected[key] for key in keys]
    frozen = [p.requires_grad for p in other.parameters()]
    assert [p.requires_grad for p in model.parameters()] == frozen
    assert not all(frozen)


def test_rules_that_do_not_fit_freeze_nothing():
    model = tiny_bert()
    recipe = recipe_of({"match": "*bias", "freeze": True}, {"match": "nothing.*", "lr": 1.0})
    with pytest.raises(RecipeError, match="matches no parameter"):
        recipe.param_groups(model)
    assert all(p.requires_grad for p in model.parameters())
