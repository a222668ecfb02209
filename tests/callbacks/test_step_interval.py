import pytest
import torch

from optimplug import ArgumentError, Horizon, Recipe
from optimplug.callbacks.step_interval import StepInterval
from optimplug.optim import lr_scheduler as ours


def optimizer_of(lr=1.0):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def of_recipe():
    recipe = Recipe.load({"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": "constant"})
    return recipe.build(torch.nn.Linear(2, 2), Horizon(total_steps=4))[1]


def chained(optimizer):
    return ours.ChainedScheduler([ours.ReduceLROnPlateau(optimizer)])


TORCHS = torch.optim.lr_scheduler
VALIDATIONS = {"interval": "validation", "monitor": "loss"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"interval": "batch"}, r"interval must be one of step, epoch, validation \(got 'batch'"),
        ({"interval": ["epoch"]}, r"interval must be one of"),
        ({"frequency": 0}, r"frequency must be an int >= 1 \(got 0\)"),
        ({"frequency": True}, r"frequency must be an int >= 1"),
        ({"frequency": 1.5}, r"frequency must be an int >= 1"),
        ({"interval": "validation", "monitor": ""}, r"monitor must be the name of a metric"),
        ({"interval": "validation", "monitor": 3}, r"monitor must be the name of a metric"),
        ({"monitor": "loss"}, r"interval must be 'validation' where .*got 'step', monitor='loss'"),
        ({"interval": "epoch", "monitor": "loss"}, r"interval must be 'validation' where"),
    ],
)
def test_bad_arguments_are_refused(given, message):
    with pytest.raises(ArgumentError, match=message):
        StepInterval(**given)


@pytest.mark.parametrize(
    ("given", "build", "message"),
    [
        ({}, TORCHS.ReduceLROnPlateau, "monitor must name the metric that ReduceLROnPlateau"),
        ({}, ours.ReduceLROnPlateau, "monitor must name the metric that ReduceLROnPlateau"),
        ({"interval": "validation"}, chained, "monitor must name the metric that ChainedScheduler"),
        (VALIDATIONS, TORCHS.LinearLR, "monitor must be left out: LinearLR takes no metric"),
        (VALIDATIONS, ours.LinearLR, "monitor must be left out: LinearLR takes no metric"),
        ({}, lambda optimizer: optimizer, r"must be a scheduler of torch or optimplug \(got SGD\)"),
        ({}, lambda _: of_recipe(), "must not be a recipe's: .* MetricCallback"),
    ],
)
def test_a_scheduler_that_cannot_be_stepped_so_is_refused(given, build, message):
    with pytest.raises(ArgumentError, match=message):
        StepInterval(**given).check(build(optimizer_of()))


def test_it_is_due_each_time_that_the_frequency_divides_the_count():
    assert [n for n in range(1, 10) if StepInterval(frequency=3).due(n)] == [3, 6, 9]
    assert all(StepInterval().due(n) for n in range(1, 10))


@pytest.mark.parametrize("build", [TORCHS.ReduceLROnPlateau, ours.ReduceLROnPlateau])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_plateau_is_given_its_metric_as_a_number(build, kind):
    optimizer = optimizer_of()
    plateau = build(optimizer, patience=0, factor=0.5)
    step_interval = StepInterval(**VALIDATIONS)
    step_interval.check(plateau)
    for loss in (1.0, 2.0):
        step_interval.step(plateau, {"loss": kind(loss), "f1": "none"})
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert type(plateau.best) is float


@pytest.mark.parametrize("build", [TORCHS.StepLR, ours.StepLR])
def test_any_other_is_stepped_without_metrics(build):
    optimizer = optimizer_of()
    scheduler = build(optimizer, step_size=1)
    optimizer.step()
    step_interval = StepInterval("validation")
    step_interval.check(scheduler)
    step_interval.step(scheduler, {"loss": 1.0})
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"f1": 1.0, "acc": 0.5}, "the metric 'loss' is missing; there are: acc, f1"),
        (None, "the metric 'loss' is missing; there are: none"),
        ({"loss": "low"}, "must be a number"),
    ],
)
def test_a_metric_that_is_missing_changes_nothing(metrics, message):
    plateau = TORCHS.ReduceLROnPlateau(optimizer_of())
    before = plateau.state_dict()
    with pytest.raises(ArgumentError, match=message):
        StepInterval(**VALIDATIONS).step(plateau, metrics)
    assert plateau.state_dict() == before
