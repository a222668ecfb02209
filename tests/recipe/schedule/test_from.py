"""Where a phase starts: at the rate that the one before it left, or at a rate of its own."""

import io
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from optimplug import Horizon, Recipe, RecipeError
from optimplug.recipe import build_scheduler
from optimplug.recipe.schedule.timeline import compile_schedule
from optimplug.recipe.text.form import validated
from optimplug.recipe.text.schema.phases import ScheduleSpec

RUN = Horizon(total_steps=12, steps_per_epoch=4)
WARM = {"name": "LinearLR", "start_factor": 0.1, "for": 4}
FALL = {"name": "CosineAnnealingLR", "floor": 0.1}
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 0, "factor": 0.5}
PREVIOUS = {"from": "previous"}


def recipe_of(*schedule, groups=()):
    return loaded(list(schedule), groups)


def loaded(schedule, groups=()):
    optimizer = {"name": "SGD", "lr": 2.0, "weight_decay": 0.1}
    return Recipe.load({"optimizer": optimizer, "groups": list(groups), "schedule": schedule})


def curve(*schedule, horizon=RUN):
    """The factor on lr after each update, as the plan has it."""
    plan = recipe_of(*schedule).plan(nn.Linear(2, 2), horizon)
    return [plan.lr(plan.groups[0], t) / 2.0 for t in range(13)]


def cosine(t, length, start, end):
    return end + (start - end) * (1 + math.cos(math.pi * t / length)) / 2


# The phases, and what the last of them must be, from the update where it starts.
STARTS = {
    "a plateau, of which nothing is known": (
        [WARM, {**FALL, "for": 4}, {**PLATEAU, **PREVIOUS}],
        [0.1] * 5,
    ),
    "the floor is a ratio of the group's own rate": (
        [WARM, {**FALL, "floor": 0.5, "for": 4}, {**FALL, **PREVIOUS}],
        [cosine(t, 4, 0.5, 0.1) for t in range(5)],
    ),
    "without a floor": (
        [WARM, {**FALL, "floor": 0.5, "for": 4}, {"name": "CosineAnnealingLR", **PREVIOUS}],
        [cosine(t, 4, 0.5, 0.0) for t in range(5)],
    ),
    "a floor above the start": (
        [WARM, {**FALL, "for": 4}, {**FALL, "floor": 0.3, **PREVIOUS}],
        [cosine(t, 4, 0.1, 0.3) for t in range(5)],
    ),
    "a line": (
        [WARM, {**FALL, "for": 4}, {"name": "LinearLR", "start_factor": 0.5, **PREVIOUS}],
        [0.1, 0.125, 0.15, 0.175, 0.2],
    ),
    "steps": (
        [WARM, {**FALL, "for": 4}, {"name": "StepLR", "step_size": 2, **PREVIOUS}],
        [0.1, 0.1, 0.01, 0.01, 0.001],
    ),
    "in epochs": (
        [WARM, {**FALL, "for": 4}, {"name": "ExponentialLR", "gamma": 0.5, "every": "epoch", **PREVIOUS}],
        [0.1] * 4 + [0.05],
    ),
    "a product": (
        [
            WARM,
            {**FALL, "for": 4},
            {"together": [{"name": "LinearLR", "start_factor": 0.5}, {"name": "ConstantLR", "factor": 0.5}], **PREVIOUS},
        ],
        [0.1, 0.125, 0.15, 0.175, 0.4],
    ),
    "a product with a floor, which moves as a whole": (
        [
            {"name": "ConstantLR", "factor": 0.5, "for": 8},
            {"together": [FALL, {"name": "ConstantLR", "factor": 1}], **PREVIOUS},
        ],
        [cosine(t, 4, 0.5, 0.05) for t in range(5)],
    ),
    "after a product": (
        [
            {"together": [{"name": "LinearLR", "start_factor": 0.1}, FALL], "for": 8},
            {"name": "ConstantLR", "factor": 1, **PREVIOUS},
        ],
        [0.1] * 5,
    ),
    "a rate that is held, until its end": (
        [{"name": "ConstantLR", "factor": 0.25, "for": 8}, {"preset": "linear", **PREVIOUS}],
        [0.25 * (4 - t) / 4 for t in range(5)],
    ),
    "one after the other": (
        [
            {"name": "ConstantLR", "factor": 0.5, "for": 4},
            {"name": "StepLR", "step_size": 2, "for": 4, **PREVIOUS},
            {"name": "ExponentialLR", "gamma": 0.5, **PREVIOUS},
        ],
        [0.005 * 0.5**t for t in range(5)],
    ),
    "a phase of no steps between": (
        [WARM, {**FALL, "for": 4}, {"name": "LinearLR", "for": 0}, {**PLATEAU, **PREVIOUS}],
        [0.1] * 5,
    ),
    "a preset": ([WARM, {**FALL, "for": 4}, {"preset": "cosine", **PREVIOUS}],
                 [cosine(t, 4, 0.1, 0.0) for t in range(5)]),
    "a preset down to a rate": (
        [WARM, {**FALL, "for": 4}, {"preset": "polynomial", "lr_end": 0.02, **PREVIOUS}],
        [0.1, 0.0775, 0.055, 0.0325, 0.01],
    ),
    "a preset down to a ratio": (
        [WARM, {**FALL, "for": 4}, {"preset": "cosine_with_min_lr", "min_lr_rate": 0.05, **PREVIOUS}],
        [cosine(t, 4, 0.1, 0.05) for t in range(5)],
    ),
    "a preset down to a rate, by a cosine": (
        [WARM, {**FALL, "for": 4}, {"preset": "cosine_with_min_lr", "min_lr": 0.1, **PREVIOUS}],
        [cosine(t, 4, 0.1, 0.05) for t in range(5)],
    ),
    "stable, then a decay to a ratio": (
        [
            WARM,
            {**FALL, "for": 4},
            {"preset": "warmup_stable_decay", "num_decay_steps": 2, "min_lr_ratio": 0.05, **PREVIOUS},
        ],
        [0.1, 0.1, 0.1, 0.075, 0.05],
    ),
    "a cycle, which moves as a whole": (
        [WARM, {**FALL, "for": 4}, {"name": "CyclicLR", "floor": 0.2, "step_size_up": 2, **PREVIOUS}],
        [0.1, 0.3, 0.5, 0.3, 0.1],
    ),
    "at the peak": ([WARM, {**FALL, "for": 4}, {**PLATEAU, "from": "peak"}], [1.0] * 5),
    "at the peak, unsaid": ([WARM, {**FALL, "for": 4}, PLATEAU], [1.0] * 5),
}  # fmt: skip


@pytest.mark.parametrize(("schedule", "expected"), STARTS.values(), ids=STARTS)
def test_where_a_phase_starts(schedule, expected):
    assert curve(*schedule)[8:] == pytest.approx(expected, rel=1e-12)


def trained(schedule, metrics, horizon=RUN, resume_at=None, groups=()):
    """The rates of a loop that validates after every update."""
    recipe = recipe_of(*schedule, groups=groups)
    model = nn.Linear(2, 2)
    run, rates = recipe.start(model, horizon), []
    for t, metric in enumerate(metrics):
        if t == resume_at:
            file = io.BytesIO()
            torch.save(run.state_dict(), file)
            run = recipe.start(model, horizon)
            run.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        rates.append(run.scheduler.get_last_lr()[0] / 2.0)
        model(torch.ones(1, 2)).sum().backward()
        run.step()
        run.validated({"loss": metric})
    return rates


WORSE = [float(t) for t in range(12)]
LATE = [WARM, {**FALL, "for": 4}, {**PLATEAU, "floor": 0.02, **PREVIOUS}]
EARLY = [
    {"name": "ConstantLR", "factor": 1, "for": 2},
    {**PLATEAU, "for": 4},
    {**FALL, "floor": 0.01, "for": 3, **PREVIOUS},
    {**PLATEAU, **PREVIOUS},
]


def test_a_late_plateau_goes_down_from_where_it_starts_to_its_floor():
    rates = trained([*LATE[:2], {**LATE[2], "factor": 0.3}], WORSE)
    # The first validation of the phase comes before its first update, and is the best of all.
    assert rates[8:] == pytest.approx([0.1, 0.03, 0.02, 0.02])
    assert trained(LATE, [1.0] * 8 + [0.9, 0.8, 0.7, 0.6])[8:] == [pytest.approx(0.1)] * 4


def test_a_plateau_never_goes_up_to_its_floor():
    assert trained([*LATE[:2], {**LATE[2], "floor": 0.3}], WORSE)[8:] == pytest.approx([0.1] * 4)


def test_what_follows_validations_may_begin_at_0():
    cycle = {"name": "CyclicLR", "floor": 0, "step_size_up": 4, "every": "validation", "for": 6}
    held = {"name": "ConstantLR", "factor": 1, **PREVIOUS}
    rates = trained([cycle, held], WORSE)
    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0] + [0.75] * 7)


def test_where_a_phase_starts_by_itself_is_known_before_any_validation():
    plateau = {"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 0, "factor": 0.5}
    (curve,) = compile_schedule(
        validated(ScheduleSpec, {"schedule": [WARM, plateau]}).schedule, RUN, {"lr": 1.0}
    ).values()
    first, second = curve.phases
    moved = replace(second, before=first)
    for loss in (1.0, 2.0):
        second.factors[0].told({"loss": loss})
    assert moved(moved.start) == pytest.approx(0.5)


def test_what_follows_a_plateau_starts_where_that_has_come_to():
    rates = trained(EARLY, WORSE)
    assert rates[2:6] == [1.0, 0.5, 0.25, 0.125]
    assert rates[6:9] == pytest.approx([cosine(t, 3, 0.125, 0.01) for t in range(3)])
    assert rates[9:] == pytest.approx([0.01, 0.005, 0.0025])
    steady = trained(EARLY, [1.0 / (t + 1) for t in range(12)])
    assert steady[6:9] == pytest.approx([cosine(t, 3, 1.0, 0.01) for t in range(3)])


@pytest.mark.parametrize("at", range(1, 12))
@pytest.mark.parametrize("schedule", [LATE, EARLY], ids=["late", "early"])
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(schedule, at):
    assert trained(schedule, WORSE, resume_at=at) == trained(schedule, WORSE)


def test_groups_keep_their_ratios():
    rules = [{"match": "bias", "lr_scale": 10}]
    plan = recipe_of(*LATE, groups=rules).plan(nn.Linear(2, 2), RUN)
    weight, bias = plan.groups
    assert all(plan.lr(bias, t) == pytest.approx(10 * plan.lr(weight, t)) for t in range(13))


def test_other_hyperparameters_and_rules_have_phases_of_their_own():
    decay = [
        {"name": "ConstantLR", "factor": 0.5, "for": 8, "of": "weight_decay"},
        {"name": "LinearLR", "start_factor": 1, "end_factor": 0, "of": "weight_decay", **PREVIOUS},
    ]
    rule = {"match": "bias", "schedule": [{**FALL, "for": 8}, {**PLATEAU, **PREVIOUS}]}
    optimizer, scheduler = recipe_of(WARM, *decay, FALL, groups=[rule]).build(nn.Linear(2, 2), RUN)
    decays, biases = [], []
    for _ in range(12):
        decays.append(optimizer.param_groups[0]["weight_decay"])
        biases.append(optimizer.param_groups[1]["lr"])
        optimizer.step()
        scheduler.step()
    assert decays == pytest.approx([0.05] * 8 + [0.05, 0.0375, 0.025, 0.0125])
    assert biases[8:] == pytest.approx([0.2] * 4)


def test_the_schedule_alone_has_it_too():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = build_scheduler(LATE, optimizer, RUN)
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0] / 2.0)
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(curve(*LATE)[:12])


BAD = {
    "no phase before": (
        [{**FALL, **PREVIOUS}],
        "schedule[0].from: no phase of lr comes before it; leave it out",
    ),
    "no phase before, of a single one": (
        {**FALL, **PREVIOUS},
        "schedule.from: no phase of lr comes before it; leave it out",
    ),
    "none of the same hyperparameter": (
        [WARM, {**FALL, "of": "weight_decay", **PREVIOUS}],
        "schedule[1].from: no phase of weight_decay comes before it; leave it out",
    ),
    "another word": (
        [WARM, {**FALL, "from": "before"}],
        "schedule[1].from: input should be 'previous' or 'peak' (got 'before')",
    ),
    "a warmup": (
        [WARM, {"preset": "cosine", "warmup": 2, **PREVIOUS}],
        "schedule[1].warmup: rises from 0, but 'from: previous' starts at the rate before",
    ),
    "in a part": (
        [WARM, {"together": [FALL, {**FALL, **PREVIOUS}]}],
        "schedule[1].together[1].from: cannot stand in a phase under together; say it once, beside together",
    ),
    "after 0": (
        [{"preset": "linear", "for": 4}, {**FALL, **PREVIOUS}],
        "schedule[1].from: linear before it ends at 0, from which no rate can go on",
    ),
    "from 0": (
        [WARM, {"name": "CyclicLR", "floor": 0, "step_size_up": 2, **PREVIOUS}],
        "schedule[1].from: CyclicLR starts at 0, from which no rate can go on",
    ),
}


@pytest.mark.parametrize(("schedule", "line"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_one_line(schedule, line):
    with pytest.raises(RecipeError) as error:
        loaded(schedule).plan(nn.Linear(2, 2), RUN)
    assert str(error.value) == line


def test_a_phase_that_has_come_to_nothing_leaves_the_next_to_start_by_itself():
    assert curve({**WARM, "for": 0}, {**FALL, **PREVIOUS}) == curve(FALL)


def test_a_plan_says_so():
    shown = str(recipe_of(*LATE).plan(nn.Linear(2, 2), RUN))
    assert "steps 4 to 8: CosineAnnealingLR\n" in shown
    assert "steps 8 to 12: ReduceLROnPlateau, from the rate before it\n" in shown + "\n"


def test_another_start_is_another_schedule():
    texts = {
        str(
            recipe_of(WARM, FALL | {"for": 4}, PLATEAU | more)
            .plan(nn.Linear(2, 2), RUN)
            .run_schedule
        )
        for more in ({}, {"from": "peak"}, PREVIOUS, {"floor": 0.01}, {"floor": 0.01, **PREVIOUS})
    }
    assert len(texts) == 4  # where it is unsaid, it is the peak
