"""What is a plateau's own: metrics of every kind, NaN, and what the optimizer makes of momentum."""

import math

import pytest
import torch
import torch.optim.lr_scheduler as torchs
from support.schedules import optimizer_of, rates
from support.tensors import descend, parameters

import optimplug.optim.lr_scheduler as ours
from optimplug import ArgumentError
from optimplug.optim import SGD, Adam

NAN = float("nan")


def fed(module, metrics, **arguments):
    """The rates of the first group after each metric."""
    optimizer = optimizer_of()
    scheduler = module.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, **arguments)
    found = []
    for value in metrics:
        optimizer.step()
        scheduler.step(value)
        found.append(rates(optimizer)[0])
    return found


class TestNan:
    METRICS = (1.0, NAN, NAN, 0.5, NAN, 0.7, 0.6, 0.6)

    def test_is_bad_by_default_as_in_torch(self):
        found = fed(ours, self.METRICS)
        assert found == fed(torchs, self.METRICS) == fed(ours, self.METRICS, nan_policy="bad")
        assert found[2] == 0.5

    def test_is_as_if_it_had_not_been_given_when_ignored(self):
        kept = [i for i, value in enumerate(self.METRICS) if not math.isnan(value)]
        found = fed(ours, self.METRICS, nan_policy="ignore")
        assert [found[i] for i in kept] == fed(torchs, [self.METRICS[i] for i in kept])

    def test_does_not_count_against_a_cooldown_when_ignored(self):
        metrics = (1.0, 1.0, 1.0, NAN, NAN, 1.0, 1.0, 1.0)
        kept = [value for value in metrics if not math.isnan(value)]
        found = fed(ours, metrics, nan_policy="ignore", cooldown=2)
        assert found[-1] == fed(torchs, kept, cooldown=2)[-1]

    def test_is_an_error_when_it_is_to_be(self):
        with pytest.raises(ArgumentError, match="must not be NaN"):
            fed(ours, (1.0, NAN), nan_policy="raise")

    def test_is_an_error_inside_a_composite_before_anything_has_moved(self):
        optimizer = optimizer_of()
        plateau = ours.ReduceLROnPlateau(optimizer, nan_policy="raise")
        scheduler = ours.ChainedScheduler([ours.ExponentialLR(optimizer, 0.5), plateau])
        before = scheduler.state_dict()
        optimizer.step()
        with pytest.raises(ArgumentError, match="must not be NaN"):
            scheduler.step(NAN)
        assert scheduler.state_dict() == before


@pytest.mark.parametrize(
    "of",
    [float, int, torch.tensor, lambda v: torch.tensor([v]), lambda v: torch.tensor(v).double()],
)
def test_a_metric_may_be_any_number(of):
    metrics = (3, 3, 3, 2, 2, 2)
    assert fed(ours, [of(value) for value in metrics]) == fed(torchs, metrics)


def test_infinities_are_judged_as_in_torch():
    metrics = (math.inf, math.inf, -math.inf, -math.inf, -math.inf, 0.0)
    assert fed(ours, metrics) == fed(torchs, metrics)


def test_an_epoch_is_taken_as_torch_does():
    found = []
    for module in (ours, torchs):
        optimizer = optimizer_of()
        scheduler = module.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        optimizer.step()
        scheduler.step(1.0)
        with pytest.warns(UserWarning, match="epoch"):
            scheduler.step(1.0, 7)
        found.append((scheduler.last_epoch, rates(optimizer)))
    assert found[0] == found[1]


def test_the_last_of_the_lowest_rates_serves_a_new_group():
    optimizer = optimizer_of()
    scheduler = ours.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, min_lr=[0.5, 0.2])
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.9})
    optimizer.step()
    for _ in range(3):
        scheduler.step(1.0)
    assert rates(optimizer) == [0.5, 0.2, 0.2]


def test_a_metric_goes_through_every_nesting_to_the_plateau_that_is_active():
    optimizer = optimizer_of()
    plateaus = [ours.ReduceLROnPlateau(optimizer, factor=0.5, patience=0) for _ in range(2)]
    inner = ours.SequentialLR(optimizer, [plateaus[0], ours.ConstantLR(optimizer, 1.0)], [3])
    chain = ours.ChainedScheduler([inner, ours.ExponentialLR(optimizer, 1.0)])
    scheduler = ours.SequentialLR(optimizer, [chain, plateaus[1]], [6])
    found = []
    for metrics in (1.0, 1.0, 1.0, None, None, None, 1.0, 1.0):
        optimizer.step()
        scheduler.step(metrics)
        found.append(rates(optimizer)[0])
    assert found == [1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    assert [plateau.best for plateau in plateaus] == [1.0, 1.0]


@pytest.mark.parametrize("scheduler", ["CyclicLR", "OneCycleLR"])
@pytest.mark.parametrize(
    ("cls", "theirs", "arguments"),
    [(SGD, torch.optim.SGD, {"momentum": 0.9}), (Adam, torch.optim.Adam, {})],
)
def test_an_optimizer_of_ours_steps_with_the_momentum_that_is_cycled(
    scheduler, cls, theirs, arguments
):
    weights = []
    for optimizer_class, module in ((cls, ours), (theirs, torchs)):
        params = parameters(dtype=torch.float64)
        optimizer = optimizer_class(
            [{"params": params[:2]}, {"params": params[2:]}], 0.1, **arguments
        )
        bounds = {"CyclicLR": (0.01, 0.1, 3), "OneCycleLR": (0.1, 50)}[scheduler]
        built = getattr(module, scheduler)(optimizer, *bounds)
        for step in range(8):
            descend(optimizer, 1, skip=False, seed=step)
            built.step()
        weights.append(params)
    for mine, other in zip(*weights, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)
