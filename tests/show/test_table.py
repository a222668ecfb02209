import io
import re

import pytest
import torch
from rich.console import Console
from support.bert import tiny_bert
from support.recipes import FULL, RUN, recipe_of
from torch import nn

from optimplug import Horizon, Recipe


def test_the_table_shows_every_group_whole():
    plan = Recipe.load(FULL).plan(tiny_bert(), RUN)
    text = str(plan)
    for group in plan.groups:
        (row,) = (line for line in text.splitlines() if line.split()[:1] == [group.name])
        assert re.search(rf"\b{group.numel:,}\b", row)
        assert f"{group.lr:.3g}" in row
    given = "lr=0.001, weight_decay=0.1, max_grad_norm=1.0, betas=(0.9, 0.98)"
    assert f"AdamW({given}), 100 steps" in text
    assert "steps 10 to 100: CosineAnnealingLR" in text
    assert "frozen: 1 tensors" in text


def test_rich_prints_what_the_text_says():
    plan = Recipe.load(FULL).plan(tiny_bert(), RUN)
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    console.print(plan)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert "\n".join(lines).strip("\n") == str(plan)


def test_an_unknown_number_of_steps_still_gives_a_table():
    recipe = recipe_of(schedule=[{"name": "LinearLR", "for": 5}])
    assert "unknown number of steps" in str(recipe.plan(nn.Linear(2, 2), Horizon()))


def test_long_names_do_not_cost_the_table_its_numbers():
    inner = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    for _ in range(6):
        inner = nn.ModuleDict({"a_very_long_name_of_a_part": inner})
    plan = recipe_of({"match": "*.0.*", "betas": [0.8, 0.99], "lr_scale": 0.123}, lr=1.0).plan(
        inner, RUN
    )
    for group in plan.groups:
        (row,) = (line for line in str(plan).splitlines() if line.split()[:1] == [group.name])
        assert f" {group.lr:.3g} " in row
    assert "(0.9, 0.999)" in str(plan)  # the default, where no rule says otherwise
    assert "…" not in str(plan)


@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/x]"])
def test_a_name_is_no_markup(name):
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2)})
    assert name in str(recipe_of().plan(model, RUN))
