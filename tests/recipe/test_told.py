"""What a plan warns of is said to those who never look at one."""

import logging

import pytest
import torch
from support.recipes import recipe_of
from torch import nn

from optimplug import Horizon, Recipe

OVERRIDDEN = {"match": "0.*", "weight_decay": 0.2}
ALL = {"weight_decay": 0.3}
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "accuracy"}
OF_RULES = "groups[0]: is overridden for all its parameters by groups[1]; remove it"
OF_SCHEDULE = (
    "schedule[0].monitor: 'accuracy' is better the higher it is, it seems, but mode is 'min'; "
    "say 'mode: max', or 'mode: min'"
)
RUN = Horizon(total_steps=10)


def model():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def faulty():
    return recipe_of(OVERRIDDEN, ALL, schedule=[PLATEAU])


def in_two_parts(recipe):
    recipe.build_scheduler(recipe.build_optimizer(model()), RUN)


BEGINNINGS = {
    "start": (lambda r: r.start(model(), RUN), [OF_RULES, OF_SCHEDULE]),
    "build": (lambda r: r.build(model(), RUN), [OF_RULES, OF_SCHEDULE]),
    "in two parts": (in_two_parts, [OF_RULES, OF_SCHEDULE]),
    "groups alone": (lambda r: r.param_groups(model()), [OF_RULES]),
    "a plan says it by itself": (lambda r: r.plan(model(), RUN), []),
    "an explanation begins nothing": (lambda r: r.explain(model(), "0.weight"), []),
}


@pytest.mark.parametrize(("begin", "said"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_run_that_begins_says_what_its_plan_warns_of(begin, said, caplog):
    begin(faulty())
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("optimplug", logging.WARNING)
    ] * len(said)
    assert caplog.messages == said


def test_all_that_the_plan_warns_of_is_said(caplog):
    recipe = faulty()
    recipe.start(model(), RUN)
    assert caplog.messages == list(map(str, recipe.plan(model(), RUN).warnings))


def test_a_recipe_says_it_once(caplog):
    recipe = faulty()
    for _ in range(2):
        with recipe.start(model(), RUN) as run:
            run.schedule_over(Horizon(total_steps=20))
    assert len(caplog.messages) == 2


def test_nothing_is_said_of_a_run_that_cannot_begin(caplog):
    recipe = recipe_of(OVERRIDDEN, ALL, schedule=[{**PLATEAU, "for": 1000}])
    with pytest.raises(ValueError, match="longer than the run"):
        recipe.start(model(), RUN)
    assert caplog.messages == []


def test_the_file_is_named(tmp_path, caplog):
    file = tmp_path / "recipe.yaml"
    file.write_text("optimizer: {name: SGD, lr: 1}\ngroups: [{lr_scale: 0}]\n")
    Recipe.load(file).start(model(), RUN)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{file}: groups: lr of group")


@pytest.mark.parametrize(("rank", "times"), [(0, 2), (1, 0)])
def test_of_several_processes_one_says_it(rank, times, caplog, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    faulty().start(model(), RUN)
    assert len(caplog.messages) == times
