"""Rates that would jump, where a run goes on, climb from what they were."""

import copy

import pytest
from support.resume_cases import BASE
from support.resuming import (
    HORIZON,
    LOSSES,
    UPDATES,
    Net,
    changed,
    started,
    state_of,
    stopped,
    update,
)
from support.tensors import same_weights

from optimplug import ArgumentError, Horizon, Recipe, RecipeError, StateError

PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "eval_loss", "patience": 0, "factor": 0.5}
PLAIN = {"optimizer": {"name": "AdamW", "lr": 0.1}, "groups": [{"match": "head.*", "lr_scale": 2}]}
LONGER = Horizon(24, 4)
OF_RULE = {"match": "head.*", "lr_scale": 2, "schedule": "linear"}
AFTER = {
    "none": changed(PLAIN, optimizer={"lr": 0.3}),
    "down": changed(PLAIN, optimizer={"lr": 0.001}),
    "linear": changed(PLAIN, schedule="linear"),
    "cosine": changed(PLAIN, schedule=[{"name": "CosineAnnealingLR", "floor": 0.1}]),
    "warm-up": changed(PLAIN, schedule=[{"name": "LinearLR", "start_factor": 0.1, "for": 20}]),
    "by epochs": changed(PLAIN, schedule=[{"name": "StepLR", "step_size": 1, "every": "epoch"}]),
    "plateau": changed(PLAIN, optimizer={"lr": 0.3}, schedule=[PLATEAU]),
    "of a rule": changed(PLAIN, optimizer={"lr": 0.2}, groups=[OF_RULE]),
    "zero": changed(PLAIN, schedule=[{"name": "ConstantLR", "factor": 0.0, "for": 24}]),
}


def resumed(state, recipe, horizon=LONGER, **how):
    run = started(recipe, horizon=horizon)
    how = {"resume": "adapt", "rewarm": 3, **how}
    return run, run.load_state_dict(state, **how)


@pytest.fixture(scope="module")
def saved():
    return state_of(stopped(PLAIN))


def rates_of(run, updates):
    """Return the rates before each update, and after the last one."""
    found = [run.scheduler.get_last_lr()]
    for t in updates:
        update(run, t % len(LOSSES))
        found.append([group["lr"] for group in run.optimizer.param_groups])
    return found


@pytest.mark.parametrize("name", AFTER)
def test_each_group_goes_in_a_straight_line_to_its_schedule(saved, name):
    run, found = resumed(saved, AFTER[name])
    jumping, _ = resumed(saved, AFTER[name], rewarm=0)
    climbing, scheduled = (rates_of(r, range(UPDATES, 16)) for r in (run, jumping))
    assert climbing[0] == [0.1, 0.2]
    for i, (held, new) in enumerate(zip(climbing, scheduled, strict=True)):
        share = min(i / 3, 1)
        line = [was + (rate - was) * share for was, rate in zip((0.1, 0.2), new, strict=True)]
        assert held == pytest.approx(line, abs=1e-15)
        assert min(held) >= 0
    assert climbing[3:] == scheduled[3:]
    assert [each.start for each in found.rewarmed] == [0.1, 0.2][-len(found.rewarmed) :]
    assert [r.before for r in found.rates] == [r.after for r in found.rates]
    jumped = {
        group for group, was, now in resumed(saved, AFTER[name], rewarm=0)[1].rates if was != now
    }
    assert {each.group for each in found.rewarmed} == jumped


@pytest.mark.parametrize("rewarm", ["12.5%", "3 steps", "0.75 epochs", 3])
def test_a_duration_is_one_of_the_run_that_goes_on(saved, rewarm):
    recipe = {**AFTER["none"], "resume": {"policy": "adapt", "rewarm": rewarm}}
    run, _ = resumed(saved, recipe, resume=None, rewarm=None)
    assert [run.scheduler.rates(t)[0] for t in (6, 9, 10)] == [0.1, 0.3, 0.3]
    assert 0.1 < run.scheduler.rates(8)[0] < 0.3
    assert Recipe(run.recipe.to_yaml()).spec == run.recipe.spec


@pytest.mark.parametrize("again", range(UPDATES, 11))
@pytest.mark.parametrize("policy", ["exact", "adapt"])
@pytest.mark.parametrize("name", ["cosine", "plateau", "of a rule"])
def test_it_survives_another_resume(saved, name, policy, again):
    recipe = {**AFTER[name], "resume": {"policy": "adapt", "rewarm": 3}}
    whole, _ = resumed(saved, recipe)
    for t in range(UPDATES, again):
        update(whole, t)
    state, weights = state_of(whole), copy.deepcopy(whole.model.state_dict())
    run = started(recipe, horizon=LONGER)
    run.model.load_state_dict(weights)
    assert run.load_state_dict(state, resume=policy).is_exact
    assert run.scheduler.get_last_lr() == whole.scheduler.get_last_lr()
    assert rates_of(run, range(again, 12)) == rates_of(whole, range(again, 12))
    assert same_weights(run.model, whole.model)
    assert run.scheduler.state_dict()["_climbs"] == []


def test_one_that_is_under_way_goes_on_under_another_recipe_and_is_told_of(saved):
    first, _ = resumed(saved, AFTER["none"], rewarm=6)
    update(first, 6)
    recut = changed(AFTER["none"], groups=[*PLAIN["groups"], {"match": "*bias", "weight_decay": 0}])
    run, found = resumed(state_of(first), recut, rewarm=None)
    assert found.notes == ("rates still climb since an earlier resume, until update 12",)
    assert found.rewarmed == ()
    names = [group["name"] for group in run.optimizer.param_groups]
    for t in (7, 9, 12):
        body, head = first.scheduler.rates(t)
        expected = [head if "head" in name else body for name in names]
        assert run.scheduler.rates(t) == pytest.approx(expected)


def test_a_climb_from_within_a_climb_begins_at_the_rate_of_then(saved):
    first, _ = resumed(saved, AFTER["none"], rewarm=4)
    update(first, 6)
    now = first.scheduler.get_last_lr()
    assert now == pytest.approx([0.15, 0.3])
    run, found = resumed(state_of(first), AFTER["down"], rewarm=2)
    assert run.scheduler.get_last_lr() == now
    assert run.scheduler.rates(8) == pytest.approx([(0.15 + 0.001) / 2, (0.3 + 0.002) / 2])
    assert run.scheduler.rates(9) == [0.001, 0.002]
    assert [each.until for each in found.rewarmed] == [9, 9]


def test_groups_in_another_order_keep_their_own(saved):
    class Reversed(Net):
        def __init__(self):
            super().__init__()
            body, head = self.body, self.head
            del self.body, self.head
            self.head, self.body = head, body

    first, _ = resumed(saved, AFTER["none"])
    update(first, 6)
    for policy in ("exact", "adapt"):
        run = started(AFTER["none"], Reversed(), LONGER)
        run.load_state_dict(state_of(first), resume=policy)
        for t in (7, 8, 9):
            assert run.scheduler.rates(t) == first.scheduler.rates(t)[::-1]


def test_an_unchanged_run_has_nothing_to_climb_to(saved):
    run, found = resumed(saved, PLAIN, HORIZON)
    assert found.is_exact
    assert found.rewarmed == ()
    assert run.scheduler.state_dict()["_climbs"] == []


FROZEN = {"match": "body.*", "freeze": True}


def test_what_nothing_has_moved_before_begins_at_0():
    state = state_of(stopped(changed(PLAIN, groups=[FROZEN, *PLAIN["groups"]])))
    run, found = resumed(state, PLAIN)
    assert found.new == ("body.weight", "body.bias")
    rates = dict(
        zip(
            ["body", "head"], zip(*map(run.scheduler.rates, range(6, 10)), strict=True), strict=True
        )
    )
    assert rates["body"] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])
    assert rates["head"] == (0.2,) * 4
    assert [(each.group, each.start, each.end) for each in found.rewarmed] == [("body", 0.0, 0.1)]


def test_so_does_what_another_optimizer_has_moved(saved):
    lion = {"match": "head.*", "optimizer": {"name": "Lion", "lr": 0.0001}}
    run, found = resumed(saved, changed(PLAIN, groups=[lion]))
    assert [each.start for each in found.rewarmed] == [0.0]
    assert run.scheduler.get_last_lr() == [0.1, 0.0]
    assert run.scheduler.rates(9) == [0.1, 0.0001]


def test_a_state_of_torch_has_a_rate_too():
    import torch

    model = Net()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    run, _ = resumed(optimizer.state_dict(), PLAIN)
    assert run.scheduler.rates(1) == [0.05, 0.05]
    assert run.scheduler.rates(4) == [0.1, 0.2]


def test_the_report_says_from_where_to_where(saved):
    _, found = resumed(saved, AFTER["none"])
    lines = [" ".join(line.split()) for line in str(found).splitlines()]
    assert "rewarm of body 0.1 from 0.1 to 0.3 by update 9" in lines
    assert found.to_dict()["rewarmed"] == [
        {"group": "body", "start": 0.1, "end": 0.3, "until": 9},
        {"group": "head", "start": 0.2, "end": 0.6, "until": 9},
    ]
    assert not found.is_exact


def test_one_beyond_the_end_of_the_run_is_told_of(saved):
    _, found = resumed(saved, AFTER["none"], HORIZON, rewarm="100%")
    (note,) = found.notes
    assert note.startswith("rates climb until update 18, but the run ends after 12, so that they ")


WRONG = [
    ({"resume": "exact", "rewarm": "2%"}, r"rewarm='2%' is for resume='adapt'.*got resume='exact'"),
    ({"resume": "weights", "rewarm": 3}, r"rewarm='3 steps' is for .*got resume='weights'"),
    ({"resume": None, "rewarm": 3}, r"rewarm='3 steps' is for .*got resume='exact'"),
    ({"rewarm": "2 epoch s"}, r"rewarm: must be a number of steps, .*got '2 epoch s'"),
    ({"rewarm": "rest"}, r"rewarm: must be a length of its own, .*got 'rest'"),
    ({"rewarm": -1}, r"rewarm: must be a number of steps, .*got -1"),
    ({"rewarm": True}, r"rewarm: must be a number of steps, .*got True"),
]


@pytest.mark.parametrize(("how", "message"), WRONG)
def test_what_cannot_be_is_refused_and_changes_nothing(saved, how, message):
    run = started(AFTER["none"], horizon=LONGER)
    with pytest.raises(ArgumentError, match=message):
        run.load_state_dict(saved, **{"resume": "adapt", **how})
    assert run.scheduler.last_epoch == 0
    assert not run.optimizer.state


def test_a_share_of_a_run_whose_length_is_not_known(saved):
    run = started(PLAIN, horizon=Horizon())
    with pytest.raises(ArgumentError, match=r"rewarm: a percentage needs .*'rewarm: 100'"):
        run.load_state_dict(saved, resume="adapt", rewarm="2%")
    assert not run.optimizer.state
    with pytest.raises(RecipeError, match=r"^resume\.rewarm: a percentage needs to know"):
        started({**PLAIN, "resume": {"policy": "adapt", "rewarm": "2%"}}, horizon=Horizon())


GRAMMAR = [
    ({"rewarm": 3}, r"^resume\.policy: is required, but missing"),
    ({"policy": "adapt", "rewram": 3}, r"^resume\.rewram: unknown key; did you mean 'rewarm'\?"),
    ({"policy": "adapt", "rewarm": "rest"}, r"^resume\.rewarm: must be a length of its own"),
    ({"policy": "adapt", "rewarm": None}, r"^resume\.rewarm: must be a number of steps"),
    ({"policy": "exact", "rewarm": 3}, r"^resume: rewarm is for 'policy: adapt'"),
    ({"policy": "adopt"}, r"^resume\.policy: .*'exact', 'adapt' or 'weights'"),
]  # fmt: skip


@pytest.mark.parametrize(("resume", "message"), GRAMMAR)
def test_a_recipe_is_told_by_the_key_what_is_wrong(resume, message):
    with pytest.raises(RecipeError, match=message):
        Recipe({**BASE, "resume": resume})


def test_a_plan_says_how_the_run_goes_on():
    recipe = Recipe({**PLAIN, "resume": {"policy": "adapt", "rewarm": "25%"}})
    plan = recipe.plan(Net(), HORIZON)
    assert plan.to_dict()["resume"] == {"policy": "adapt", "rewarm": 3}
    assert "resumes from a checkpoint by adapt, where a rate that jumps climbs over 3 steps" in str(
        plan
    )
    assert "resumes" not in str(Recipe(PLAIN).plan(Net(), HORIZON))
    with pytest.raises(RecipeError, match=r"^resume\.rewarm: '13 steps' is 13 steps, longer than"):
        Recipe({**PLAIN, "resume": {"policy": "adapt", "rewarm": 13}}).plan(Net(), HORIZON)


@pytest.mark.parametrize("policy", ["exact", "adapt"])
@pytest.mark.parametrize(
    "climbs",
    [None, 3, "x", {}, [3], [[6, 3]], [[6, 0, 0.1]], [[-1, 3, 0.1]], [[6, 3, -0.1]], [[6, 3, "a"]],
     [[6, 3, float("nan")]], [[True, 3, 0.1]], [None] * 3, [[6.0, 3, 0.1]]],
)  # fmt: skip
def test_what_nothing_could_have_saved_is_refused(saved, climbs, policy):
    bad = {**saved, "scheduler": {**saved["scheduler"], "_climbs": climbs}}
    run = started(PLAIN)
    with pytest.raises(
        StateError, match="_climbs must hold, for each of at most 2 groups, None or"
    ):
        run.load_state_dict(bad, resume=policy)
    assert not run.optimizer.state


def test_a_state_of_before_there_were_climbs(saved):
    schedule = {key: value for key, value in saved["scheduler"].items() if key != "_climbs"}
    for policy in ("exact", "adapt"):
        run = started(PLAIN)
        assert run.load_state_dict({**saved, "scheduler": schedule}, resume=policy).is_exact


def test_a_group_that_joins_later_follows_its_schedule(saved):
    import torch

    run, _ = resumed(saved, AFTER["cosine"])
    p = torch.nn.Parameter(torch.ones(2))
    run.optimizer.add_param_group({"params": [("new", p)], "lr": 1.0})
    update(run, 6)
    assert len(run.scheduler.get_last_lr()) == 3
    assert run.scheduler.rates(7)[2] == run.scheduler.get_last_lr()[2] > 0.5
    state = state_of(run)
    assert len(state["scheduler"]["_climbs"]) == 2
