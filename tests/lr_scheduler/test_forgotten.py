"""A scheduler that is built and never stepped: one warning where that is certain, none elsewhere."""

import gc
import warnings

import pytest
import torch
import torch.optim.lr_scheduler as torchs
from support.schedules import optimizer_of

import optimplug.optim.lr_scheduler as ours
from optimplug import Horizon, Recipe

LINEAR = {"name": "LinearLR", "start_factor": 0.01, "for": 10}


def recipes(*schedule, total=1000):
    recipe = {"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": list(schedule)}
    return Recipe.load(recipe).build(torch.nn.Linear(2, 2), Horizon(total_steps=total))


def plain(build):
    optimizer = optimizer_of()
    return optimizer, build(optimizer)


def said(optimizer, updates, then=lambda t: None):
    """What so many updates warn of, and where."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(updates):
            optimizer.step()
            then(t)
    assert {warning.filename for warning in caught} <= {__file__}
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("updates", [8, 300])
def test_a_recipes_schedule_is_known_to_take_a_step_per_update(updates):
    optimizer, scheduler = recipes(LINEAR, {"name": "CosineAnnealingLR"})
    found = said(optimizer, updates)
    assert len(found) == 1
    assert found[0].startswith("RecipeScheduler.step() has not been called in 8 updates")
    assert scheduler.get_last_lr() == [0.01]


@pytest.mark.parametrize("schedule", [[], [LINEAR]])
@pytest.mark.parametrize("updates", [1, 7])
def test_a_few_updates_may_be_a_warming_up(schedule, updates):
    optimizer, _scheduler = recipes(*schedule)
    assert said(optimizer, updates) == []


def test_a_recipe_whose_rates_never_change_may_be_forgotten():
    optimizer, _scheduler = recipes()
    assert said(optimizer, 100) == []


@pytest.mark.parametrize("every", [1, 3, 7])
def test_one_that_is_stepped_is_not_forgotten(every):
    optimizer, scheduler = recipes(LINEAR)
    assert said(optimizer, 100, lambda t: None if t % every else scheduler.step()) == []


@pytest.mark.parametrize(("skipped", "warned"), [(5, 1), (20, 0)])
def test_updates_that_amp_leaves_out_do_not_count(skipped, warned):
    optimizer, _scheduler = recipes(LINEAR)

    def scale(t):
        optimizer.found_inf = torch.full((1,), float(t < skipped))

    scale(-1)
    assert len(said(optimizer, 20, scale)) == warned


def test_a_closed_run_leaves_nothing_on_the_optimizer():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    before, hooks = {*vars(optimizer)}, len(optimizer._optimizer_step_post_hooks)
    recipe = Recipe.load({"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": [LINEAR]})
    scheduler = recipe.build_scheduler(optimizer, Horizon(total_steps=20))
    scheduler.close()
    assert {*vars(optimizer)} == before
    assert len(optimizer._optimizer_step_post_hooks) == hooks
    assert said(optimizer, 20) == []


def test_a_closed_run_leaves_what_another_scheduler_needs():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    other = ours.StepLR(optimizer, 3)
    recipe = Recipe.load({"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": [LINEAR]})
    recipe.build_scheduler(optimizer, Horizon(total_steps=20)).close()
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        other.step()


def test_one_that_is_let_go_is_not_missed():
    optimizer, scheduler = recipes(LINEAR)
    del scheduler
    gc.collect()
    assert said(optimizer, 100) == []


def test_where_somebody_else_sets_the_rates_nothing_is_missed():
    optimizer, _scheduler = recipes(LINEAR)
    optimizer.param_groups[0]["lr"] = 0.5
    assert said(optimizer, 20) == []


def test_the_last_one_that_is_built_is_watched():
    optimizer, first = recipes(LINEAR)
    ours.StepLR(optimizer, 3)
    assert said(optimizer, 20) == []
    first.step()


PER_EPOCH = {
    "warm-up": lambda o: ours.LinearLR(o, 0.01, 1.0, 5),
    "cosine": lambda o: ours.CosineAnnealingLR(o, 300),
    "steps": lambda o: ours.StepLR(o, 30),
    "milestones": lambda o: ours.MultiStepLR(o, [100, 200]),
    "restarts": lambda o: ours.CosineAnnealingWarmRestarts(o, 10, 2),
    "never": lambda o: ours.MultiStepLR(o, [10**10]),
    "for ever": lambda o: ours.ConstantLR(o, 0.5, 10**12),
    "lambda": lambda o: ours.LambdaLR(o, lambda epoch: 0.95**epoch),
    "product": lambda o: ours.MultiplicativeLR(o, lambda epoch: 0.95),
    "sequence": lambda o: ours.SequentialLR(
        o, [ours.LinearLR(o, 0.01, 1.0, 5), ours.CosineAnnealingLR(o, 295)], [5]
    ),
    "chain": lambda o: ours.ChainedScheduler([ours.LinearLR(o), ours.ExponentialLR(o, 0.9)]),
    "torch's in a chain": lambda o: ours.ChainedScheduler([torchs.LinearLR(o)]),
    "plateau": lambda o: ours.ReduceLROnPlateau(o),
}


@pytest.mark.parametrize("stepped", ["itself", "a plateau"])
def test_any_step_of_any_scheduler_shows_that_they_are_not_forgotten(stepped):
    def build(optimizer):
        return ours.ReduceLROnPlateau(optimizer), PER_UPDATE["restarts"](optimizer)

    optimizer, (plateau, restarts) = plain(build)
    restarts.step(0.5) if stepped == "itself" else plateau.step(1.0)
    assert said(optimizer, 2**13) == []


def test_a_rate_that_would_hardly_have_moved_is_as_good_as_stepped():
    optimizer, _scheduler = plain(lambda o: ours.LinearLR(o, 0.95, 1.0, 10**7))
    assert said(optimizer, 2_000) == []


# Each is thousands of updates: quick are those of which others are made, and one made of others.
QUICK = {"warm-up", "cosine", "steps", "sequence"}


def some_quick(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some_quick(PER_EPOCH))
def test_one_step_per_epoch_is_no_slip_however_long_the_first(name):
    optimizer, _scheduler = plain(PER_EPOCH[name])
    assert said(optimizer, 5_000) == []


PER_UPDATE = {  # read as epochs, each would be a run of more than 10^8 updates
    "warm-up": lambda o: ours.LinearLR(o, 0.01, 1.0, 3 * 10**4),
    "cosine": lambda o: ours.CosineAnnealingLR(o, 3 * 10**4),
    "polynomial": lambda o: ours.PolynomialLR(o, 3 * 10**4),
    "milestones": lambda o: ours.MultiStepLR(o, [10, 3 * 10**4]),
    "one cycle": lambda o: ours.OneCycleLR(o, 1.0, 3 * 10**4),
    "cycles": lambda o: ours.CyclicLR(o, 0.1, 1.0, 3 * 10**4),
    "restarts": lambda o: ours.CosineAnnealingWarmRestarts(o, 3 * 10**4),
    "sequence": lambda o: ours.SequentialLR(
        o, [ours.LinearLR(o, 0.01, 1.0, 100), ours.CosineAnnealingLR(o, 3 * 10**4)], [100]
    ),
    "sequence that ends in a rest": lambda o: ours.SequentialLR(
        o, [ours.LinearLR(o, 0.01, 1.0, 3 * 10**4), ours.ConstantLR(o, 1.0, 1)], [3 * 10**4]
    ),
    "chain": lambda o: ours.ChainedScheduler(
        [ours.LinearLR(o, 0.01, 1.0, 100), ours.CosineAnnealingLR(o, 3 * 10**4)]
    ),
}


@pytest.mark.parametrize("name", some_quick(PER_UPDATE))
def test_of_a_schedule_too_long_for_epochs_it_is_said_once_the_rate_should_have_moved(name):
    optimizer, scheduler = plain(PER_UPDATE[name])
    first = scheduler.get_last_lr()
    found = said(optimizer, 2**13)
    assert len(found) == 1
    assert f"{type(scheduler).__name__}.step() has not been called in" in found[0]
    assert scheduler.get_last_lr() == first


def test_under_torchs_wrapped_steps_it_is_said_as_well():
    optimizer = optimizer_of()
    torchs.ConstantLR(optimizer, 1.0)
    _scheduler = PER_UPDATE["warm-up"](optimizer)
    assert len(said(optimizer, 2**13)) == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda o: ours.LambdaLR(o, [1.0, 0.9].__getitem__),
        lambda o: ours.CyclicLR(o, 0.1, 1.0, 2, scale_fn={1: 1.0}.__getitem__),
    ],
    ids=["LambdaLR", "CyclicLR"],
)
def test_functions_of_the_users_are_asked_for_no_step_that_was_not_taken(build):
    optimizer = optimizer_of()
    long = ours.LinearLR(optimizer, start_factor=1.0, end_factor=1.0, total_iters=10**9)
    chain = ours.ChainedScheduler([build(optimizer), long])
    assert said(optimizer, 16) == []
    assert chain.last_epoch == 0
