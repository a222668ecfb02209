"""What a recipe freezes, the next recipe on the same model does not find frozen."""

import copy
import gc
import pickle

import pytest
import torch
from support.recipes import recipe_of
from torch import nn

from optimplug import ArgumentError, Horizon
from optimplug.recipe import Run
from optimplug.recipe.parameters import frozen

RUN = Horizon(total_steps=10)
FIRST = {"match": "0.*", "freeze": True}
LAST = {"match": "2.*", "freeze": True}
ALL = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]


def build():
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))


def trained(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


WAYS = {
    "build": lambda recipe, model: recipe.build(model, RUN)[0],
    "build_optimizer": lambda recipe, model: recipe.build_optimizer(model),
    "start": lambda recipe, model: recipe.start(model, RUN).optimizer,
    "start without a horizon": lambda recipe, model: Run(recipe, model).optimizer,
    "param_groups": lambda recipe, model: torch.optim.SGD(recipe.param_groups(model)),
}


@pytest.mark.parametrize("again", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("first", WAYS.values(), ids=WAYS)
def test_what_one_recipe_froze_the_next_one_trains(first, again):
    model = build()
    first(recipe_of(FIRST), model)
    assert trained(model) == ALL[2:]
    optimizer = again(recipe_of(), model)
    assert trained(model) == ALL
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6


def test_the_same_recipe_again_freezes_the_same_and_no_more():
    model, recipe = build(), recipe_of(FIRST)
    for _ in range(3):
        recipe.build(model, RUN)
        assert trained(model) == ALL[2:]
    recipe_of(LAST).build(model, RUN)
    assert trained(model) == ALL[:4]


def test_what_was_frozen_by_hand_stays_so_through_all_of_it():
    model = build()
    model[0].bias.requires_grad_(False)
    with recipe_of(FIRST).start(model, RUN):
        assert trained(model) == ALL[2:]
        with recipe_of(LAST).start(model, RUN):
            assert trained(model) == [ALL[0], *ALL[2:4]]
    assert trained(model) == [ALL[0], *ALL[2:]]


def test_what_was_frozen_by_hand_after_a_run_stays_so():
    model = build()
    recipe_of(FIRST).start(model, RUN).close()
    model[0].requires_grad_(False)
    recipe_of().build(model, RUN)
    assert trained(model) == ALL[2:]


@pytest.mark.parametrize("second", [FIRST, LAST, {"match": "*.bias", "freeze": True}])
@pytest.mark.parametrize("reverse", [False, True])
def test_closing_one_of_two_runs_does_not_disturb_the_other(second, reverse):
    model = build()
    runs = [recipe_of(FIRST).start(model, RUN), recipe_of(second).start(model, RUN)]
    held = trained(model)
    assert held == trained_by(runs[1])
    first, last = reversed(runs) if reverse else runs
    first.close()
    assert trained(model) == (ALL if reverse else held)
    last.close()
    assert trained(model) == ALL


def trained_by(run):
    """What its optimizer has, in the model's order."""
    names = {name for group in run.optimizer.param_groups for name in group["param_names"]}
    return [name for name in ALL if name in names]


def test_a_plan_shows_what_a_build_would_train_while_another_recipe_is_at_work():
    model = build()
    with recipe_of(FIRST).start(model, RUN):
        plan = recipe_of(LAST).plan(model, RUN)
        assert list(plan.grouping.frozen) == ALL[4:]
        assert plan.explain("0.bias").frozen_by is None
        assert trained(model) == ALL[2:]  # and the plan has changed nothing


def test_a_recipe_that_does_not_fit_leaves_frozen_what_is():
    model = build()
    recipe_of(FIRST).build(model, RUN)
    with pytest.raises(ValueError, match="matches no parameter"):
        recipe_of({"match": "nothing", "lr": 1.0}).build(model, RUN)
    assert trained(model) == ALL[2:]


def test_a_recipe_for_a_part_undoes_what_is_frozen_in_that_part_alone():
    model = build()
    recipe_of({"match": ["0.*", "1.weight"], "freeze": True}).build(model, RUN)
    recipe_of().build(model[1], RUN)
    assert trained(model) == ALL[2:]
    recipe_of({"match": "bias", "freeze": True}).build(model[0], RUN)
    assert trained(model) == [ALL[0], *ALL[2:]]
    recipe_of().build(model, RUN)
    assert trained(model) == ALL


def test_a_wrapped_model_is_the_same_model():
    model = build()
    recipe_of(FIRST).build(model, RUN)
    recipe_of().build(nn.DataParallel(model), RUN)
    assert trained(model) == ALL


def test_a_tied_parameter_is_given_back_under_either_name():
    model = build()
    model[2].weight = model[0].weight
    recipe_of({"match": "0.weight", "freeze": True}).build(model, RUN)
    assert not model[2].weight.requires_grad
    recipe_of().build(model[2], RUN)
    assert model[0].weight.requires_grad


def test_parameters_that_were_replaced_while_frozen_are_given_back():
    model, swap = build(), torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with recipe_of(FIRST).start(model, RUN):
            model.double()  # by swap_tensors, which refuses what is weakly referenced
            model[0].bias = nn.Parameter(torch.ones(2), requires_grad=False)
            model[0].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
            assert trained(model) == ALL[2:]
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
    assert trained(model) == ALL[1:]


def test_nothing_is_kept_of_a_model_that_is_gone():
    model = build()
    recipe_of(FIRST).build(model, RUN)
    assert trained(copy.deepcopy(model)) == ALL[2:]
    before = len(frozen._held)
    del model
    gc.collect()
    assert len(frozen._held) == before - 1


def test_a_copy_is_frozen_as_it_is_until_the_next_recipe_on_it():
    model = build()
    with recipe_of(FIRST).start(model, RUN):
        copied, again = copy.deepcopy(model), copy.deepcopy(copy.deepcopy(model))
        assert trained(copied) == ALL[2:]
        # The model of the run is none of theirs.
        with recipe_of(LAST).start(again, RUN) as run:
            assert trained(again) == trained_by(run) == ALL[:4]
            assert trained(model) == trained(copied) == ALL[2:]
    assert trained(model) == trained(again) == ALL
    assert trained(copied) == ALL[2:]
    assert trained_by(recipe_of().start(copied, RUN)) == ALL


def test_a_copy_of_what_is_frozen_by_hand_stays_so():
    model = build()
    model[0].bias.requires_grad_(False)
    with recipe_of({"match": "0.weight", "freeze": True}).start(model, RUN):
        copied = copy.deepcopy(model)
    recipe_of().build(copied, RUN)
    assert trained(copied) == [ALL[0], *ALL[2:]]


def test_nothing_of_a_copy_stays_on_it_and_nothing_of_ours_is_pickled():
    model = build()
    before = [set(vars(module)) for module in model.modules()]
    with recipe_of(FIRST).start(model, RUN):
        content = pickle.dumps(model)
        copied = copy.deepcopy(model)
    assert b"optimplug" not in content.replace(b"_optimplug_frozen", b"")
    recipe_of().build(copied, RUN)
    for each in (model, copied):
        assert [set(vars(module)) for module in each.modules()] == before
    assert trained(pickle.loads(content)) == ALL[2:]  # noqa: S301 # our own


def test_an_open_run_does_not_train_on_without_what_another_one_has_frozen():
    model = build()
    inputs = torch.ones(1, 2)
    first = recipe_of(FIRST).start(model, RUN)
    second = recipe_of(LAST).start(model, RUN)
    model(inputs).sum().backward()
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ArgumentError, match=r"has frozen what this run trains: 2\.weight, 2\.b"):
        first.step()
    assert all(map(torch.equal, weights, model.parameters()))
    assert first.scheduler.last_epoch == 0
    second.step()
    second.close()
    model(inputs).sum().backward()
    first.step()
    assert not torch.equal(weights[4], model[2].weight)


def test_runs_of_two_parts_do_not_disturb_each_other():
    model = build()
    bias = {"match": "bias", "freeze": True}
    runs = [recipe_of(bias).start(model[i], RUN) for i in (0, 2)]
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        for run in runs:
            run.step()
    assert trained(model) == [ALL[0], *ALL[2:5]]
