"""What phases do over a run: units, products, metrics, other hyperparameters, groups of their own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.labels import label

from optimplug import ArgumentError, Horizon, Recipe, RecipeError
from optimplug.errors import StateError

HORIZON = Horizon(total_steps=12, steps_per_epoch=4)
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 0, "factor": 0.5}
HALVE = {"name": "ExponentialLR", "gamma": 0.5}


def build(schedule=(), groups=(), optimizer=(), horizon=HORIZON):
    recipe = Recipe.load(
        {
            "optimizer": {"name": "SGD", "lr": 1.0, **dict(optimizer)},
            "groups": list(groups),
            "schedule": schedule if isinstance(schedule, dict | str) else list(schedule),
        }
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    return (model, *recipe.build(model, horizon))


def trace(optimizer, scheduler, steps=12, key="lr", metrics=lambda t: None):
    values = []
    for t in range(steps):
        values.append([group[key] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
        told = metrics(t + 1)
        if told is not None:
            scheduler.step_metric({"loss": told})
    return values


def first(rows):
    return [row[0] for row in rows]


class TestUnits:
    def test_an_epoch_is_counted_by_the_scheduler_itself(self):
        _, *built = build([{**HALVE, "every": "epoch"}])
        assert first(trace(*built)) == [1.0] * 4 + [0.5] * 4 + [0.25] * 4

    def test_a_phase_that_begins_within_an_epoch_counts_those_that_end_in_it(self):
        _, *built = build(
            [{"name": "ConstantLR", "factor": 1, "for": 2}, {**HALVE, "every": "epoch"}]
        )
        assert first(trace(*built)) == [1.0] * 4 + [0.5] * 4 + [0.25] * 4

    def test_counts_are_in_the_unit_of_the_phase(self):
        _, *built = build([{"name": "StepLR", "step_size": 2, "gamma": 0.1, "every": "epoch"}])
        assert first(trace(*built)) == pytest.approx([1.0] * 8 + [0.1] * 4)

    @pytest.mark.parametrize("milestones", [[1, 2], ["1 epoch", "8 steps"], ["1", "2"]], ids=label)
    def test_each_of_a_list_is_too(self, milestones):
        phase = {"name": "MultiStepLR", "milestones": milestones, "gamma": 0.5, "every": "epoch"}
        _, *built = build([phase])
        assert first(trace(*built)) == [1.0] * 4 + [0.5] * 4 + [0.25] * 4

    @pytest.mark.parametrize("warmup", [2, "2", "2 epochs", "8 steps"])
    def test_a_warmup_is_too(self, warmup):
        _, *built = build({"preset": "constant_with_warmup", "warmup": warmup, "every": "epoch"})
        assert first(trace(*built)) == [0.0] * 4 + [0.5] * 4 + [1.0] * 4

    def test_a_length_is_rounded_up_to_whole_epochs(self):
        _, *built = build(
            [{"name": "LinearLR", "start_factor": 0.5, "every": "epoch", "for": "75%"}, {**HALVE}]
        )
        assert first(trace(*built)) == pytest.approx(
            [0.5] * 4 + [2 / 3] * 4 + [2 / 3 + 1 / 6] * 1 + [1, 0.5, 0.25]
        )

    def test_a_validation_is_one_that_has_been_told(self):
        _, *built = build([{**HALVE, "every": "validation"}])
        told = trace(*built, metrics=lambda t: 0.0 if t in (3, 4, 9) else None)
        assert first(told) == [1.0] * 3 + [0.5] + [0.25] * 5 + [0.125] * 3

    @pytest.mark.parametrize(
        ("phase", "message"),
        [
            ({**HALVE, "every": "epoch", "for": 4}, None),
            (
                {"name": "LinearLR", "every": "epoch", "for": 4},
                "schedule.*every: epoch.*steps_per_epoch",
            ),
            ({**HALVE, "for": "rest"}, r"schedule\[0\].for: the rest .* Horizon.total_steps"),
            ({**HALVE, "for": "6%"}, r"schedule\[0\].for: a percentage needs .*total_steps"),
        ],
        ids=label,
    )
    def test_what_the_horizon_lacks_is_said(self, phase, message):
        unknown = Horizon()
        if message is None:
            with pytest.raises(RecipeError, match="steps_per_epoch"):
                build([phase], horizon=unknown)
            return
        with pytest.raises(RecipeError, match=message):
            build([phase], horizon=unknown)


class TestTogether:
    def test_factors_are_multiplied(self):
        line = {"name": "LinearLR", "start_factor": 0.5}
        _, *built = build([{"together": [line, HALVE], "for": "rest"}])
        expected = [(0.5 + 0.5 * t / 12) * 0.5**t for t in range(12)]
        assert first(trace(*built)) == pytest.approx(expected)

    def test_each_counts_in_its_own_unit(self):
        _, *built = build([{"together": [HALVE, {**HALVE, "every": "epoch"}]}])
        assert first(trace(*built)) == pytest.approx([0.5 ** (t + t // 4) for t in range(12)])

    def test_a_plateau_may_be_among_them(self):
        _, *built = build([{"together": [HALVE, PLATEAU]}])
        told = trace(*built, metrics=lambda t: 1.0 if t in (2, 5) else None)
        assert first(told) == pytest.approx([0.5**t * (0.5 if t >= 5 else 1) for t in range(12)])

    @pytest.mark.parametrize(
        ("phase", "message"),
        [
            ({"together": [HALVE]}, "at least 2"),
            (
                {"together": [HALVE, {**HALVE, "for": 2}]},
                r"\[0\]\.together\[1\]\.for: cannot stand in a phase",
            ),
            ({"together": [HALVE, HALVE], "gamma": 1}, "gamma belongs to one of the phases"),
            ({"together": [HALVE, HALVE], "name": "StepLR"}, "one of name, preset and together"),
            (
                {"together": [HALVE, {"name": "Step"}]},
                r"schedule\[0\].together\[1\].name: no scheduler",
            ),
        ],
        ids=label,
    )
    def test_what_cannot_be(self, phase, message):
        with pytest.raises(RecipeError, match=message):
            build([phase])


class TestPlateau:
    def test_it_follows_the_metric_after_a_warmup_that_needs_none(self):
        warmup = {"name": "LinearLR", "start_factor": 0.5, "for": 4}
        _, optimizer, scheduler = build([warmup, PLATEAU])
        scheduler.step_metric({"loss": 9.0})  # nobody follows it yet
        scheduler.step_metric({"other": 1.0})
        told = trace(optimizer, scheduler, metrics=lambda t: 1.0 if t in (2, 6, 8, 10) else None)
        assert first(told)[4:] == [1.0] * 4 + [0.5] * 2 + [0.25] * 2

    def test_a_floor_is_a_ratio(self):
        second = {"match": "1.*", "lr_scale": 10.0}
        _, *built = build([{**PLATEAU, "floor": 0.4}], [second])
        rates = trace(*built, metrics=lambda t: 1.0)
        assert rates[-1] == pytest.approx([0.4, 4.0])

    def test_a_missing_metric_changes_nothing_and_lists_what_there_is(self):
        _, _, scheduler = build([PLATEAU])
        before = scheduler.state_dict()
        with pytest.raises(
            ArgumentError, match="'loss' is missing; there are: eval_los, accuracy, zero"
        ):
            scheduler.step_metric({"eval_los": 1.0, "zero": 0.0, "accuracy": 0.5})
        assert scheduler.state_dict() == before

    def test_the_first_validation_must_have_what_any_phase_follows(self):
        late = {**PLATEAU, "monitor": "f1", "mode": "max"}
        phases = [{"name": "LinearLR", "for": 2}, {**PLATEAU, "for": 4}, late]
        _, _, scheduler = build(phases)
        before = scheduler.state_dict()
        with pytest.raises(ArgumentError, match="'f1' is missing; there are: f2, loss"):
            scheduler.step_metric({"loss": 1.0, "f2": 0.5})
        assert scheduler.state_dict() == before
        assert scheduler.awaited == {"loss", "f1"}
        scheduler.step_metric({"eval_loss": 1.0, "eval_f1": 0.5})
        assert scheduler.awaited == set()  # a later one may lack what no phase follows then
        scheduler.step_metric({})
        _, _, resumed = build(phases)
        resumed.load_state_dict(scheduler.state_dict())
        resumed.step_metric({})
        older = {k: v for k, v in scheduler.state_dict().items() if k != "_was_told"}
        resumed.load_state_dict(older)
        assert resumed.awaited == {"loss", "f1"}

    @pytest.mark.parametrize("monitor", ["loss", "eval_loss", "val_loss"])
    @pytest.mark.parametrize("name", ["loss", "eval_loss", "val_loss"])
    def test_a_metric_has_one_name_in_every_runtime(self, monitor, name):
        _, optimizer, scheduler = build([{**PLATEAU, "monitor": monitor}])
        for value in (1.0, 2.0):
            scheduler.step_metric({name: value, "other": 0.0, "train_loss": 0.0})
        assert optimizer.param_groups[0]["lr"] == 0.5

    def test_which_metrics_are_followed_is_known(self):
        _, _, scheduler = build(
            [{**PLATEAU, "for": 4}, {**PLATEAU, "monitor": "f1", "mode": "max"}]
        )
        assert scheduler.monitors == {"loss", "f1"}

    @pytest.mark.parametrize(
        ("phase", "message"),
        [
            ({"name": "ReduceLROnPlateau"}, r"schedule\[0\].monitor: is required"),
            (
                {**HALVE, "monitor": "loss"},
                r"schedule\[0\].monitor: ExponentialLR follows no metric",
            ),
            (
                {**PLATEAU, "every": "epoch"},
                r"schedule\[0\].every: a plateau steps every validation",
            ),
            ({**PLATEAU, "min_lr": 0.1}, r"schedule\[0\].min_lr: is absolute; use 'floor'"),
            ({**PLATEAU, "mode": "least"}, r"schedule\[0\].mode: "),
            (
                {"name": "LinearLR", "every": "validation"},
                r"schedule\[0\].every: how many validations",
            ),
        ],
        ids=label,
    )
    def test_what_cannot_be(self, phase, message):
        with pytest.raises(RecipeError, match=message):
            build([phase])


class TestOtherHyperparameters:
    OPTIMIZER = {"name": "AdamW", "weight_decay": 0.1}

    def test_each_has_phases_of_its_own(self):
        lines = [
            {"name": "LinearLR", "start_factor": 0.5, "for": 2},
            {
                "name": "LinearLR",
                "start_factor": 1,
                "end_factor": 0,
                "of": "weight_decay",
                "for": 4,
            },
            {"name": "CosineAnnealingLR"},
        ]
        second = {"match": "1.*", "weight_decay": 0.2}
        _, *built = build(lines, [second], self.OPTIMIZER)
        decays = trace(*built, key="weight_decay")
        assert decays[0] == [0.1, 0.2]
        assert decays[2] == pytest.approx([0.05, 0.1])
        assert decays[-1] == [0.0, 0.0]
        _, *built = build(lines, [second], self.OPTIMIZER)
        assert first(trace(*built))[:3] == pytest.approx([0.5, 0.75, 1.0])

    def test_of_several_numbers_each_is_scaled(self):
        _, *built = build(
            [{"name": "ConstantLR", "factor": 0.5, "of": "betas", "for": 2}], (), {"name": "AdamW"}
        )
        found = first(trace(*built, key="betas"))
        assert found[0] == pytest.approx((0.45, 0.4995))
        assert found[2] == (0.9, 0.999)

    @pytest.mark.parametrize("name", ["weigth_decay", "maximize", "max_grad_norm", "betas"])
    def test_there_must_be_such_a_number(self, name):
        with pytest.raises(RecipeError, match=r"schedule\[0\].of: SGD has no number"):
            build([{**HALVE, "of": name}])


class TestGroupsOfTheirOwn:
    def test_a_rule_may_give_a_schedule(self):
        own = {"match": "1.*", "schedule": [{"name": "LinearLR", "start_factor": 0.1, "for": 2}]}
        _, *built = build([HALVE], [own])
        rates = trace(*built)
        assert first(rates) == [0.5**t for t in range(12)]
        assert [row[1] for row in rates] == pytest.approx([0.1, 0.55] + [1.0] * 10)

    def test_what_it_says_nothing_of_goes_on(self):
        own = {"match": "1.*", "schedule": [{"name": "LinearLR", "of": "momentum"}]}
        _, *built = build([HALVE], [own], {"momentum": 0.9})
        assert all(row[0] == row[1] for row in trace(*built))
        _, *built = build([HALVE], [own], {"momentum": 0.9})
        momenta = trace(*built, key="momentum")
        assert momenta[0] == pytest.approx([0.9, 0.3])

    def test_a_name_will_do(self):
        _, *built = build("constant", [{"match": "1.*", "schedule": "linear"}])
        assert [row[1] for row in trace(*built)] == pytest.approx([1 - t / 12 for t in range(12)])

    def test_a_later_rule_wins(self):
        rules = [{"schedule": "linear"}, {"match": "0.*", "schedule": "constant"}]
        _, *built = build([HALVE], rules)
        rates = trace(*built)
        assert first(rates) == [1.0] * 12
        assert rates[6][1] == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("written", "path"),
        [
            ([{"name": "Linear"}], r"groups\[0\].schedule\[0\].name"),
            ({"preset": "linaer"}, r"groups\[0\].schedule.preset"),
            ("linaer", r"groups\[0\].schedule"),
            ([{**HALVE, "for": 13}], r"groups\[0\].schedule\[0\].for"),
            ({**HALVE, "for": 13}, r"groups\[0\].schedule.for"),
        ],
        ids=label,
    )
    def test_an_error_says_where(self, written, path):
        with pytest.raises(RecipeError, match=f"^{path}: "):
            build([], [{"schedule": written}])


PHASES = st.sampled_from(
    [
        {"name": "LinearLR", "start_factor": 0.25},
        {"name": "CosineAnnealingLR", "floor": 0.1},
        {"name": "PolynomialLR", "power": 2.0},
        {"name": "OneCycleLR"},
        {"name": "CyclicLR", "floor": 0.1, "step_size_up": 2},
        {"name": "CosineAnnealingWarmRestarts", "T_0": 2},
        {"name": "MultiStepLR", "milestones": ["10%", 3]},
        {**HALVE, "every": "epoch"},
        {**HALVE, "every": "validation"},
        {**PLATEAU},
        {"preset": "cosine", "warmup": 2},
        {"preset": "warmup_stable_decay", "num_decay_steps": 1},
        {"together": [HALVE, PLATEAU]},
        {"name": "LinearLR", "of": "momentum"},
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PHASES, min_size=1, max_size=3), st.integers(0, 12), st.booleans(), st.randoms())
def test_a_run_saved_anywhere_goes_on_exactly(phases, stop, optimizer_first, random):
    phases = [{**phase, "for": 4} for phase in phases]
    losses = [random.random() for _ in range(13)]
    own = {"match": "1.*", "schedule": [{**PLATEAU, "factor": 0.9}]}
    momentum = {"momentum": 0.5}

    def go(optimizer, scheduler, start, stop):
        rows = []
        for t in range(start, stop):
            rows.append([(g["lr"], g["momentum"]) for g in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
            if t % 3 == 1:
                scheduler.step_metric({"loss": losses[t]})
        return rows

    _, *whole = build(phases, [own], momentum)
    expected = go(*whole, 0, 12)
    _, *begun = build(phases, [own], momentum)
    go(*begun, 0, stop)
    states = [part.state_dict() for part in begun]
    _, optimizer, scheduler = build(phases, [own], momentum)
    parts = [(optimizer, states[0]), (scheduler, states[1])]
    for part, state in parts if optimizer_first else parts[::-1]:
        part.load_state_dict(state)
    assert go(optimizer, scheduler, stop, 12) == expected[stop:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["_remembered"].pop(), "_remembered must hold 1 states"),
        (lambda s: s["_remembered"][0].pop("plateau"), "must have .'plateau', 'validations'."),
        (lambda s: s["_remembered"][0].update(validations=-1), "validations must be an int >= 0"),
        (lambda s: s["_remembered"][0]["plateau"].update(best="x"), "best must be of the kind"),
        (lambda s: s["_remembered"][0].update(plateau={}), "not of a ReduceLROnPlateau"),
    ],
)
def test_a_malformed_state_changes_nothing(change, message):
    _, _, scheduler = build([PLATEAU])
    scheduler.step_metric({"loss": 1.0})
    before, bad = scheduler.state_dict(), scheduler.state_dict()
    change(bad)
    with pytest.raises(StateError, match=message):
        scheduler.load_state_dict(bad)
    assert scheduler.state_dict() == before


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"name": "ExponentialLR", "gamma": 1.5}, "grows beyond all numbers"),
        ({"name": "MultiStepLR", "milestones": [1, 2], "gamma": 1e200}, "grows beyond all numbers"),
        ({"together": [{"name": "ExponentialLR", "gamma": 2}] * 2}, "grows beyond all numbers"),
        ({"preset": "cosine", "warmup": "6000 steps"}, "a warmup of 6000 is longer than the phase"),
        ({"preset": "cosine", "every": "validation"}, "every: .* a preset needs it"),
        (
            {"name": "StepLR", "step_size": "1 epoch", "every": "validation"},
            "step_size: must be a number of validations",
        ),
    ],
    ids=label,
)
def test_what_no_run_can_do_is_refused(phase, message):
    with pytest.raises(RecipeError, match=message):
        build([phase], horizon=Horizon(total_steps=5000, steps_per_epoch=100))


def test_the_state_of_another_length_of_epochs_is_refused():
    _, _, scheduler = build([{**HALVE, "every": "epoch"}])
    other = Horizon(total_steps=12, steps_per_epoch=3)
    _, _, shorter = build([{**HALVE, "every": "epoch"}], horizon=other)
    with pytest.raises(StateError, match="in epochs of 4"):
        shorter.load_state_dict(scheduler.state_dict())


def test_the_state_of_another_schedule_changes_nothing():
    _, _, scheduler = build([PLATEAU])
    _, _, other = build([{**PLATEAU, "patience": 3}])
    before = scheduler.state_dict()
    with pytest.raises(StateError, match="saved under another schedule"):
        scheduler.load_state_dict(other.state_dict())
    assert scheduler.state_dict() == before


MANY = (
    [
        {"name": "LinearLR", "start_factor": 0.25, "for": 4},
        {"together": [{**HALVE, "every": "epoch"}, {"name": "CosineAnnealingLR", "floor": 0.1}]},
        {"name": "LinearLR", "start_factor": 0.5, "of": "weight_decay"},
    ],
    [{"match": "0.*", "freeze": {"until": 3}}, {"match": "1.bias", "schedule": "linear"}],
    {"weight_decay": 0.1},
)


@pytest.mark.parametrize("t", [0, 2, 3, 4, 7, 12, 20])
def test_going_to_an_update_is_being_there(t):
    """In the rates, the other hyperparameters, and all that comes later."""
    _, optimizer, scheduler = build(*MANY)
    _, w_optimizer, w_scheduler = build(*MANY)
    trace(w_optimizer, w_scheduler, t)
    trace(optimizer, scheduler, 5)  # wherever it was before
    scheduler.go_to(t)
    assert scheduler.state_dict() == w_scheduler.state_dict()
    for key in ("lr", "weight_decay"):
        assert trace(optimizer, scheduler, 4, key) == trace(w_optimizer, w_scheduler, 4, key)
        assert scheduler.last_epoch == w_scheduler.last_epoch


@pytest.mark.parametrize("t", [-1, 1.5, None, True])
def test_there_is_no_going_to_what_is_no_update(t):
    _, _, scheduler = build(*MANY)
    scheduler.go_to(3)
    state = scheduler.state_dict()
    with pytest.raises(ArgumentError, match="t must be an int >= 0"):
        scheduler.go_to(t)
    assert scheduler.state_dict() == state
