"""Presets: the traces of transformers.get_scheduler, which is where their names come from."""

import pytest
import torch
from support.labels import label
from transformers import get_scheduler

from optimplug import Horizon, Recipe
from optimplug.recipe.schedule.presets import PRESETS

CASES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}),
    ("polynomial", {"lr_end": 1e-4, "power": 2.0}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 50}),
    ("cosine_with_min_lr", {"min_lr": 1e-4}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.2, "num_cycles": 0.75}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr": 1e-4, "warmup_lr_rate": 0.3}),
    ("warmup_stable_decay", {"num_decay_steps": 7}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "linear", "min_lr_ratio": 0.1}),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 5, "warmup_type": "cosine", "decay_type": "1-sqrt"},
    ),
    ("warmup_stable_decay", {"num_decay_steps": 6, "num_stable_steps": 2, "warmup_type": "1-sqrt"}),
]
LR = 1e-3


def recipe(schedule):
    second = {"match": "1.*", "lr_scale": 10.0}
    return Recipe.load(
        {"optimizer": {"name": "SGD", "lr": LR}, "groups": [second], "schedule": schedule}
    )


def model():
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))


def trace(optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def test_every_name_is_tried():
    assert {name for name, _ in CASES} == PRESETS.keys()


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
@pytest.mark.parametrize(("total", "warmup"), [(20, 0), (100, 6), (1000, 100)])
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=label)
def test_the_trace_is_that_of_transformers(name, arguments, total, warmup):
    schedule = {"preset": name, **arguments, **({"warmup": warmup} if warmup else {})}
    optimizer, scheduler = recipe(schedule).build(model(), Horizon(total_steps=total))
    theirs = torch.optim.SGD(
        [{"params": [torch.zeros(1)], "lr": lr} for lr in (LR, 10 * LR)], lr=LR
    )
    reference = get_scheduler(
        name,
        theirs,
        num_warmup_steps=warmup,
        num_training_steps=total,
        scheduler_specific_kwargs=arguments,
    )
    ours, expected = trace(optimizer, scheduler, total), trace(theirs, reference, total)
    torch.testing.assert_close(
        torch.tensor(ours, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-12,
        atol=1e-18,
    )


def test_a_plateau_by_its_preset_is_the_scheduler():
    schedule = {"preset": "reduce_lr_on_plateau", "monitor": "loss", "patience": 1, "factor": 0.5}
    optimizer, scheduler = recipe(schedule).build(model(), Horizon(total_steps=100))
    theirs = torch.optim.SGD([torch.zeros(1)], lr=LR)
    reference = get_scheduler(
        "reduce_lr_on_plateau", theirs, scheduler_specific_kwargs={"patience": 1, "factor": 0.5}
    )
    for loss in (1.0, 0.9, 0.95, 0.96, 0.97, 0.8, 0.9, 0.9, 0.9):
        scheduler.step_metric({"loss": loss})
        reference.step(loss)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])


@pytest.mark.parametrize("written", ["linear", {"preset": "linear"}, [{"preset": "linear"}]])
def test_it_may_be_written_in_three_ways(written):
    optimizer, scheduler = recipe(written).build(model(), Horizon(total_steps=4))
    assert [rate for rate, _ in trace(optimizer, scheduler, 4)] == pytest.approx(
        [LR, 0.75 * LR, 0.5 * LR, 0.25 * LR]
    )


def test_a_warmup_may_be_a_part_of_the_run():
    optimizer, scheduler = recipe({"preset": "constant_with_warmup", "warmup": "50%"}).build(
        model(), Horizon(total_steps=8)
    )
    rates = [rate / LR for rate, _ in trace(optimizer, scheduler, 8)]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
