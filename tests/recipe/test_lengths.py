"""Lengths of an optimizer's own ramps, written in a recipe as parts of the run."""

import copy

import pytest
import torch
from support.labels import label

from optimplug import ArgumentError, Horizon, Recipe, RecipeError
from optimplug.optim import AdEMAMix, ScheduleFreeAdamW, ScheduleFreeSGD

HORIZON = Horizon(total_steps=1000, steps_per_epoch=50)


def recipe(t_alpha, t_beta3=None, **more):
    ramps = {"t_alpha": t_alpha, "t_beta3": t_beta3}
    return Recipe({"optimizer": {"name": "AdEMAMix", "lr": 0.01, **ramps}, **more})


@pytest.mark.parametrize(
    ("written", "steps"),
    [("60%", 600), ("3 epochs", 150), ("500 steps", 500), (70, 70), ("0.05%", 1), (None, None)],
)
def test_a_length_is_of_the_horizon(written, steps):
    for name in ("t_alpha", "t_beta3"):
        found = recipe(**{"t_alpha": None, name: written})
        model = torch.nn.Linear(2, 2)
        optimizer, _ = found.build(model, HORIZON)
        assert [group[name] for group in optimizer.param_groups] == [steps]
        assert optimizer.defaults[name] == steps
        run = found.start(model, HORIZON)
        assert run.optimizer.param_groups[0][name] == steps


def test_a_rule_has_its_own():
    rules = [{"match": "bias", "t_alpha": "10%"}]
    optimizer, _ = recipe("60%", groups=rules).build(torch.nn.Linear(2, 2), HORIZON)
    assert sorted(group["t_alpha"] for group in optimizer.param_groups) == [100, 600]


def test_one_of_several_optimizers_has_its_own():
    rules = [{"match": "bias", "optimizer": {"name": "AdEMAMix", "t_alpha": "60%"}}]
    found = Recipe({"optimizer": {"name": "AdamW"}, "groups": rules})
    optimizer, _ = found.build(torch.nn.Linear(2, 2), HORIZON)
    assert [group["t_alpha"] for group in optimizer.param_groups if "t_alpha" in group] == [600]
    with pytest.raises(RecipeError, match=r"groups\[0\]\.optimizer\.t_alpha: a percentage needs"):
        found.plan(torch.nn.Linear(2, 2), Horizon(steps_per_epoch=3))


def test_the_ramp_is_that_of_the_same_number():
    def trained(build):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        optimizer = build(model)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        return list(model.parameters())

    ours = trained(lambda m: recipe("1%", "50%").build(m, HORIZON)[0])
    theirs = trained(lambda m: AdEMAMix(m.parameters(), lr=0.01, t_alpha=10, t_beta3=500))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_where_the_horizon_comes_later_no_step_is_done_before_it():
    found, model = recipe("60%"), torch.nn.Linear(2, 2)
    optimizer = found.build_optimizer(model)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.detach().clone()
    with pytest.raises(ArgumentError, match=r"t_alpha is '60%' of a run whose length is not known"):
        optimizer.step()
    assert torch.equal(model.weight, before)
    found.build_scheduler(optimizer, HORIZON)
    optimizer.step()
    assert optimizer.param_groups[0]["t_alpha"] == 600


def test_a_later_horizon_has_a_length_of_its_own():
    rules = [{"match": "bias", "t_alpha": "10%"}, {"match": "bias", "t_beta3": 7}]
    run = recipe("50%", "2 epochs", groups=rules).start(torch.nn.Linear(2, 2), HORIZON)

    def lengths():
        return [(group["t_alpha"], group["t_beta3"]) for group in run.optimizer.param_groups]

    assert lengths() == [(500, 100), (100, 7)]
    run.schedule_over(Horizon(total_steps=100, steps_per_epoch=5))
    assert lengths() == [(50, 10), (10, 7)]
    assert run.optimizer.defaults["t_alpha"] == 50
    with pytest.raises(RecipeError, match=r"optimizer\.t_beta3: epochs need to know"):
        run.schedule_over(Horizon(total_steps=1000))
    assert lengths() == [(50, 10), (10, 7)]


def test_so_it_has_after_a_state_and_in_a_copy():
    def start():
        return recipe("50%").start(torch.nn.Linear(2, 2), HORIZON)

    run, state = start(), start().state_dict()
    run.load_state_dict(state)
    copied = copy.deepcopy(run.optimizer)
    run.schedule_over(Horizon(total_steps=10))
    assert run.optimizer.param_groups[0]["t_alpha"] == 5
    run.recipe.build_scheduler(copied, Horizon(total_steps=20))
    assert copied.param_groups[0]["t_alpha"] == 10


def test_so_has_a_group_that_was_added_but_not_one_with_a_number_of_its_own():
    run = recipe("50%").start(torch.nn.Linear(2, 2), HORIZON)
    for own in ({}, {"t_alpha": 7}):
        added = {"params": [torch.zeros(1, requires_grad=True)], "param_names": [f"added {own}"]}
        run.optimizer.add_param_group({**added, **own})
    run.schedule_over(Horizon(total_steps=10))
    assert [group["t_alpha"] for group in run.optimizer.param_groups] == [5, 5, 7]
    run.optimizer.param_groups[0]["t_alpha"] = 3
    run.schedule_over(HORIZON)
    assert [group["t_alpha"] for group in run.optimizer.param_groups] == [3, 500, 7]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("60 percents", r"optimizer\.t_alpha: must be a number of steps"),
        ("120%", r"optimizer\.t_alpha: '120%' is longer than the run"),
        (-3, r"optimizer\.t_alpha: Invalid t_alpha: -3; must be a number of updates"),
    ],
    ids=label,
)
def test_what_is_no_length_is_refused_without_a_model(written, message):
    with pytest.raises(RecipeError, match=message):
        recipe(written)


@pytest.mark.parametrize(
    ("written", "horizon", "message"),
    [
        ("2 epochs", Horizon(total_steps=10), "epochs need to know"),
        ("6%", Horizon(steps_per_epoch=10), "a percentage needs to know"),
        ("rest", HORIZON, "'rest' is what the other phases leave"),
    ],
)
def test_what_the_horizon_does_not_tell_is_a_problem_of_the_plan(written, horizon, message):
    found, model = recipe(written), torch.nn.Linear(2, 2)
    for attempt in (found.plan, found.build):
        with pytest.raises(RecipeError, match=rf"optimizer\.t_alpha: {message}"):
            attempt(model, horizon)
    rules = [{"match": "bias", "t_beta3": written}]
    with pytest.raises(RecipeError, match=rf"groups\[0\]\.t_beta3: {message}"):
        recipe(5, groups=rules).plan(model, horizon)


def test_a_state_holds_the_number_and_resumes():
    model = torch.nn.Linear(2, 2)
    run = recipe("60%").start(model, HORIZON)
    model(torch.ones(1, 2)).sum().backward()
    run.step()
    state = run.state_dict()
    again = recipe("60%").start(torch.nn.Linear(2, 2), HORIZON)
    again.load_state_dict(state)
    assert again.optimizer.param_groups[0]["t_alpha"] == 600


@pytest.mark.parametrize("cls", [ScheduleFreeAdamW, ScheduleFreeSGD])
@pytest.mark.parametrize(("written", "steps"), [("6%", 60), ("2 epochs", 100), (7, 7)])
def test_the_warm_up_of_a_schedule_free_optimizer_is_of_the_horizon(cls, written, steps):
    settings = {"name": cls.__name__, "lr": 0.01, "warmup_steps": written}
    run = Recipe({"optimizer": settings}).start(torch.nn.Linear(2, 2), HORIZON)
    assert run.optimizer.param_groups[0]["warmup_steps"] == steps
    for p in run.optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    run.step()
    assert run.optimizer.param_groups[0]["scheduled_lr"] == pytest.approx(0.01 / steps)
