"""Every difference between a checkpoint and a run, under every policy."""

import copy
import json

import pytest
import torch
from support.resume_cases import BASE, CASES, OTHERS
from support.resuming import (
    HORIZON,
    UPDATES,
    Net,
    gradients,
    moments,
    started,
    state_of,
    through_file,
)

from optimplug import ArgumentError, Horizon, Recipe, RecipeError, StateError


def trained(recipe=BASE, updates=UPDATES, horizon=HORIZON, model=None):
    run = started(recipe, model, horizon)
    for t in range(updates):
        gradients(run.model, t)
        run.step()
    return run


@pytest.fixture(scope="module")
def saved():
    return state_of(trained())


def held(run):
    return copy.deepcopy([run.state_dict(), [p.detach() for p in run.model.parameters()]])


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("name", CASES)
def test_exact_refuses_it_in_a_table(saved, name):
    case = CASES[name]
    run = started(case.recipe)
    before = held(run)
    with pytest.raises(StateError, match=case.row) as error:
        run.load_state_dict(saved)
    assert same(held(run), before)
    text = str(error.value)
    assert text.startswith(
        "the checkpoint is not of this run, and resume='exact' lets nothing change:\nwhat "
    )
    *_, python, elsewhere = text.splitlines()
    assert python.startswith("give resume='adapt'")
    assert elsewhere == (
        "in a recipe that is 'resume: adapt', on the command line of a trainer --resume adapt"
    )
    assert max(map(len, text.splitlines())) < 150


@pytest.mark.parametrize("name", CASES)
def test_adapt_takes_over_what_goes_on_and_says_what_is_otherwise(saved, name):
    case = CASES[name]
    run, fresh = started(case.recipe), started(case.recipe)
    found = run.load_state_dict(saved, resume="adapt")
    settings = [strip(group) for group in run.optimizer.param_groups]
    assert settings == [strip(group) for group in fresh.optimizer.param_groups]
    assert run.scheduler.last_epoch == UPDATES == found.update
    fresh.scheduler.go_to(UPDATES)
    assert run.scheduler.get_last_lr() == fresh.scheduler.get_last_lr()
    assert [r.after for r in found.rates] == run.scheduler.get_last_lr()
    assert tuple(found.dropped) == case.dropped
    assert {*found.moved} == {*dict(Net().named_parameters())} - {*case.dropped}
    assert not found.is_exact
    assert json.loads(json.dumps(found.to_dict()))["update"] == UPDATES
    for t in range(UPDATES, 12):
        gradients(run.model, t)
        run.step()


def strip(group):
    """Return the settings of a group that no schedule moves."""
    return {
        key: value
        for key, value in group.items()
        if key not in ("params", "lr", "initial_lr", "foreach", "fused")
    }


@pytest.mark.parametrize("name", CASES)
def test_weights_begins_anew(saved, name):
    run, fresh = started(CASES[name].recipe), started(CASES[name].recipe)
    found = run.load_state_dict(saved, resume="weights")
    assert same(held(run), held(fresh))
    assert (found.update, found.moved, found.is_exact) == (0, (), False)
    assert "optimizer and schedule begin anew" in str(found)


@pytest.mark.parametrize("policy", ["exact", "adapt"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_optimizers_state_is_refused(saved, name, policy):
    run = started(OTHERS[name])
    before = held(run)
    with pytest.raises(
        StateError, match=r"state of AdamW, which means nothing to .*resume='weights'"
    ):
        run.load_state_dict(saved, resume=policy)
    assert same(held(run), before)


@pytest.mark.parametrize("name", OTHERS)
def test_weights_needs_no_state_that_means_something(saved, name):
    run = started(OTHERS[name])
    assert run.load_state_dict(saved, resume="weights").moved == ()
    assert not run.optimizer.state


@pytest.mark.parametrize("policy", ["exact", "adapt"])
def test_so_is_that_of_an_optimizer_alone_which_does_not_say_of_whose_it_is(policy):
    plain = torch.optim.AdamW(Net().parameters())
    with pytest.raises(StateError, match="state of Adam, which means nothing to SGD"):
        started(OTHERS["SGD"]).load_state_dict(plain.state_dict(), resume=policy)


def test_another_shape_is_a_difference_too(saved):
    class Wider(Net):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(4, 3)

    run = started(BASE, Wider())
    with pytest.raises(StateError, match=r"state of head\.weight +exp_avg of head\.weight has the"):
        run.load_state_dict(saved)
    assert not run.optimizer.state
    found = run.load_state_dict(saved, resume="adapt")
    assert {*found.moved} == {"body.weight", "body.bias"}
    assert {*found.dropped} == {"head.weight", "head.bias"}


HORIZONS = {
    "longer": (Horizon(20, 4), r"horizon +12 updates, 4 an epoch +20 updates, 4 an epoch +adapt"),
    "shorter": (Horizon(8, 4), r"horizon +12 updates, 4 an epoch +8 updates, 4 an epoch +adapt"),
    "other epochs": (Horizon(12, 6), r"horizon +12 updates, 4 an epoch +12 updates, 6 an"),
}


@pytest.mark.parametrize("name", HORIZONS)
@pytest.mark.parametrize("recipe", [BASE, {**BASE, "schedule": []}], ids=["schedule", "none"])
def test_another_horizon(recipe, name):
    horizon, row = HORIZONS[name]
    state = state_of(trained(recipe))
    with pytest.raises(StateError, match=row):
        started(recipe, horizon=horizon).load_state_dict(state)
    run, fresh = (started(recipe, horizon=horizon) for _ in range(2))
    found = run.load_state_dict(state, resume="adapt")
    fresh.scheduler.go_to(UPDATES)
    assert run.scheduler.get_last_lr() == fresh.scheduler.get_last_lr()
    assert "12 updates" in str(found.horizon[0])
    assert str(horizon.total_steps) in str(found.horizon[1])
    assert "horizon" in str(found)


def test_a_run_that_is_over_by_then_is_told_of():
    state = state_of(trained(updates=10))
    run = started(horizon=Horizon(8, 4), recipe=BASE)
    found = run.load_state_dict(state, resume="adapt")
    assert found.notes == ("there were 10 updates already, and the run has 8: it is over",)


def test_an_unchanged_run_is_exact_and_said_in_a_line(saved):
    found = started(BASE).load_state_dict(saved)
    assert found.is_exact
    assert str(found) == "resumed at update 6 (exact): nothing has changed, 4 parameters went on"
    assert started(BASE).load_state_dict(saved, resume="adapt").is_exact


@pytest.mark.parametrize("policy", ["exact", "adapt"])
def test_groups_in_another_order_are_the_same(policy):
    class Reversed(Net):
        def __init__(self):
            super().__init__()
            body, head = self.body, self.head
            del self.body, self.head
            self.head, self.body = head, body

    whole, run = trained(updates=12), started(BASE, Reversed())
    stopped = trained()
    run.model.load_state_dict(stopped.model.state_dict())
    found = run.load_state_dict(state_of(stopped), resume=policy)
    assert found.is_exact
    for t in range(UPDATES, 12):
        gradients(run.model, t)
        run.step()
    weights = dict(run.model.named_parameters())
    assert all(torch.equal(weights[n], p) for n, p in whole.model.named_parameters())
    assert whole.scheduler.get_last_lr() == run.scheduler.get_last_lr()[::-1]


def test_a_weights_run_must_not_have_begun(saved):
    run = trained(updates=1)
    with pytest.raises(ArgumentError, match="this run has begun; start another one"):
        run.load_state_dict(saved, resume="weights")


@pytest.mark.parametrize("policy", ["exactly", 3, ""])
def test_no_policy(saved, policy):
    with pytest.raises(ArgumentError, match=r"resume must be one of exact, adapt, weights \(got"):
        started(BASE).load_state_dict(saved, resume=policy)


def test_the_recipe_says_it_too(saved):
    with pytest.raises(StateError, match="resume='exact'"):
        started(CASES["lr"].recipe).load_state_dict(saved)
    run = started({**CASES["lr"].recipe, "resume": "adapt"})
    assert run.load_state_dict(saved).policy == "adapt"
    with pytest.raises(StateError, match="resume='exact'"):
        started({**CASES["lr"].recipe, "resume": "adapt"}).load_state_dict(saved, resume="exact")


def test_it_is_logged_once(saved, caplog):
    caplog.set_level("INFO", "optimplug")
    caplog.clear()
    found = started({**CASES["lr"].recipe}).load_state_dict(saved, resume="adapt")
    (record,) = [r for r in caplog.records if "resumed" in r.getMessage()]
    assert (record.levelname, record.getMessage()) == ("WARNING", str(found))
    caplog.clear()
    started(BASE).load_state_dict(saved)
    (record,) = [r for r in caplog.records if "resumed" in r.getMessage()]
    assert record.levelname == "INFO"


class TestPlateaus:
    FOLLOWING = {"name": "ReduceLROnPlateau", "monitor": "eval_loss", "patience": 1, "factor": 0.5}
    RECIPE = {**BASE, "schedule": [FOLLOWING]}

    @pytest.fixture
    def state(self):
        run = started(self.RECIPE)
        for t in range(3):
            gradients(run.model, t)
            run.step()
            run.validated({"eval_loss": float(t)})
        assert run.scheduler.get_last_lr() == [0.05, 0.05]
        return state_of(run)

    @pytest.mark.parametrize(
        "schedule",
        [
            [FOLLOWING],
            [{"name": "ConstantLR", "factor": 1.0, "for": 2}, FOLLOWING],
            [{**FOLLOWING, "for": 8}, {"name": "ConstantLR", "factor": 1.0}],
        ],
    )
    def test_what_is_remembered_is_kept_where_the_phase_is_still_there(self, state, schedule):
        run = started(
            {**self.RECIPE, "schedule": schedule, "optimizer": {"name": "AdamW", "lr": 0.2}}
        )
        found = run.load_state_dict(state, resume="adapt")
        assert run.scheduler.get_last_lr() == [0.1, 0.1]
        assert not found.notes
        run.validated({"eval_loss": 5.0})
        run.validated({"eval_loss": 5.0})
        assert run.scheduler.get_last_lr() == [0.05, 0.05]

    def test_a_plateau_of_a_rule_is_known_wherever_the_rule_stands(self):
        rule = {"match": "head.*", "schedule": [self.FOLLOWING]}
        first = started({**BASE, "groups": [rule]})
        gradients(first.model, 0)
        first.step()
        for loss in (1.0, 2.0, 3.0):
            first.validated({"eval_loss": loss})
        run = started({**BASE, "groups": [{"match": "*bias", "weight_decay": 0}, rule]})
        run.load_state_dict(state_of(first), resume="adapt")
        rates = dict(
            zip(
                [g["name"] for g in run.optimizer.param_groups],
                run.scheduler.get_last_lr(),
                strict=True,
            )
        )
        assert {rate for name, rate in rates.items() if "head" in name} == {0.05}

    def test_what_counts_updates_remembers_nothing(self):
        run = started(BASE)
        run.validated({"eval_loss": 1.0})
        found = started(CASES["phase"].recipe).load_state_dict(state_of(run), resume="adapt")
        assert not found.notes

    def test_where_it_is_gone_that_is_said(self, state):
        run = started({**self.RECIPE, "schedule": [{**self.FOLLOWING, "patience": 7}]})
        found = run.load_state_dict(state, resume="adapt")
        (note,) = found.notes
        assert note.startswith("what ReduceLROnPlateau(")
        assert note.endswith("remembered is left out: its phase is gone")
        assert run.scheduler.get_last_lr() == [0.1, 0.1]
        with pytest.raises(ArgumentError, match="eval_loss"):
            run.validated({"other": 1.0})  # a new one is asked for its metric at once


def test_progress_of_a_group_goes_with_its_parameters():
    free = {"name": "ScheduleFreeAdamW", "lr": 0.1}
    one = {"optimizer": free}
    two = {"optimizer": free, "groups": [{"match": "head.*", "weight_decay": 0.1}]}

    def go(run, updates):
        for t in updates:
            gradients(run.model, t)
            run.step()

    first = started(one)
    go(first, range(UPDATES))
    run = started(two)
    run.model.load_state_dict(first.model.state_dict())
    found = run.load_state_dict(state_of(first), resume="adapt")
    assert not found.notes
    for key in ("k", "weight_sum", "lr_max", "train_mode"):
        (there,) = {group[key] for group in first.optimizer.param_groups}
        assert {group[key] for group in run.optimizer.param_groups} == {there}
    go(run, range(UPDATES, 9))


@pytest.mark.parametrize("policy", ["exact", "adapt"])
def test_the_recipe_and_the_version_are_in_every_checkpoint(policy):
    import optimplug

    state = state_of(trained())
    provenance = state["scheduler"]["provenance"]
    assert provenance["optimplug"] == optimplug.__version__
    assert provenance["horizon"] == {"total_steps": 12, "steps_per_epoch": 4}
    assert Recipe(provenance["recipe"]).spec == Recipe(BASE).spec
    assert state["scheduler"]["last_epoch"] == UPDATES
    names = [n for g in state["optimizer"]["param_groups"] for n in g["param_names"]]
    assert names == [name for name, _ in Net().named_parameters()]
    # One of before they were noted goes on as well.
    del state["scheduler"]["provenance"]
    assert started(BASE).load_state_dict(through_file(state), resume=policy).is_exact


def test_moments_of_a_rule_that_changes_its_optimizer_are_those_of_the_others():
    run = started(CASES["optimizer of a rule"].recipe)
    found = run.load_state_dict(state_of(trained()), resume="adapt")
    assert found.dropped == dict.fromkeys(("head.weight", "head.bias"), "it is of AdamW, not Lion")
    assert {*moments(run.optimizer)} == {"body.weight", "body.bias"}


@pytest.mark.parametrize("policy", ["exactly", None, 3, ["adapt"]])
def test_a_recipe_with_another_policy_is_refused_with_its_key(policy):
    with pytest.raises(RecipeError, match=r"^resume: .*'exact', 'adapt' or 'weights'"):
        Recipe({**BASE, "resume": policy})


def test_editors_know_the_policies():
    form = Recipe.json_schema()["properties"]["resume"]
    short, long = form["oneOf"]
    assert (short["enum"], form["default"]) == (["exact", "adapt", "weights"], "exact")
    assert long == {"$ref": "#/$defs/ResumeSpec"}


@pytest.mark.parametrize(
    "text", ["1e-3", "010", "yes", "null", "0x1F", "1:30", "2020-01-01", ".5", "~"]
)
def test_a_recipe_as_text_is_the_same_recipe(text):
    recipe = Recipe(
        {**BASE, "groups": [*BASE["groups"], {"match": ["head.*", text], "lr_scale": 1e-5}]}
    )
    again = Recipe(recipe.to_yaml())
    assert again.spec == recipe.spec
    assert again.to_yaml() == recipe.to_yaml()
