import io
import re

import pytest
import torch
from rich.console import Console
from support.bert import tiny_bert
from support.plans import few_groups, many_groups
from support.recipes import ADAMW, FULL, RUN, recipe_of
from torch import nn

from optimplug import Horizon, Recipe
from optimplug.show.rows import rows_of


def test_unfolded_the_table_shows_every_group_whole():
    plan = Recipe.load(FULL).plan(tiny_bert(), RUN)
    text = str(plan.table(unfold=True))
    for group in plan.groups:
        (row,) = (line for line in text.splitlines() if line.split()[:1] == [group.name])
        assert re.search(rf"\b{group.numel:,}\b", row)
        assert f"{group.lr:.3g}" in row
        assert row.endswith(", ".join(map(str, group.rules)))
    given = "lr=0.001, weight_decay=0.1, max_grad_norm=1.0, betas=(0.9, 0.98)"
    assert f"AdamW({given}), 100 steps" in text
    assert "steps 10 to 100: CosineAnnealingLR" in text
    assert "frozen: 1 tensors" in text
    assert "frozen: bert.embeddings.position_embeddings.weight" in text


@pytest.mark.parametrize("unfold", [False, True])
def test_rich_prints_what_the_text_says(unfold):
    table = Recipe.load(FULL).plan(tiny_bert(), RUN).table(unfold)
    console = Console(file=io.StringIO(), width=200 if unfold else 80, color_system=None)
    console.print(table, soft_wrap=True)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert "\n".join(lines).strip("\n") == str(table)


@pytest.mark.parametrize("plan", [few_groups, many_groups])
def test_the_rows_are_the_groups_and_nothing_is_lost_or_counted_twice(plan):
    plan = plan()
    rows = rows_of(plan)
    assert len(rows) < len(plan.groups) / 2
    members = sorted(member.index for row in rows for member in row.members)
    assert members == list(range(len(plan.groups)))
    assert sum(row.numel for row in rows) == sum(group.numel for group in plan.groups)
    assert sum(row.tensors for row in rows) == sum(len(g.parameters) for g in plan.groups)
    taken = zip(*(row.memory for row in rows), strict=True)
    assert tuple(map(sum, taken)) == tuple(plan.total_memory)
    for row in rows:
        assert len({repr(m.settings) for m in row.members}) == 1
        assert len({m.group.freeze for m in row.members}) == 1
        peaks = [m.rates.peak for m in row.members]
        assert peaks == sorted(peaks)


def test_at_226_groups_the_text_is_80_columns_wide_and_short():
    plan = many_groups()
    assert len(plan.groups) == 226
    lines = str(plan).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 120
    assert "bert.encoder.layer.0 - layer.2 are frozen until step 300, by groups[5]" in lines
    assert "frozen: 5 tensors, 960 parameters: bert.embeddings" in lines
    assert not any("\n" in text for text in (repr(plan), repr(few_groups())))


def test_in_a_narrow_terminal_numbers_stay_whole():
    console = Console(file=io.StringIO(), width=64, color_system=None)
    console.print(many_groups().table())
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 64
    for row in rows_of(many_groups()):
        for rate in (*row.first.rates, *row.last.rates):
            assert f" {rate:.3g}" in text
    assert "…" not in text


def test_a_row_of_layers_has_the_rates_of_the_first_and_of_the_last():
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(12)])
    plan = recipe_of({"layer_decay": 0.5}).plan(model, RUN)
    first, last = str(plan).split("─\n", 1)[1].splitlines()[:2]
    low, high = (f"{plan.groups[i].lr:.3g}" for i in (0, -1))
    assert first.split() == ["0", "-", "11", "24", "24", low, low, low, "0.01"]
    assert last.split() == ["...", high, high, high]


def sizes(*widths):
    return nn.ModuleList([nn.Linear(1, width, bias=False) for width in widths])


FOLDED = [
    ([], ["model"], "one group is one row"),
    ([("*", {"layer_decay": 0.5})], ["0 - 5.weight"], "rates that rise"),
    (
        [("*", {"layer_decay": 0.5}), ("2.*", {"betas": [0.8, 0.9]})],
        ["0.weight", "1.weight", "2.weight", "3 - 5.weight"],
        "another setting",
    ),
    (
        [("*", {"layer_decay": 0.5}), ("2.*", {"weight_decay": 0.01})],
        ["0.weight", "1.weight", "2.weight", "3 - 5.weight"],
        "another rule, though it sets nothing new",
    ),
    (
        [("*", {"layer_decay": 0.5}), ("5.*", {"freeze": {"until": 5}})],
        ["0 - 4.weight", "5.weight"],
        "frozen for a time",
    ),
    (
        [("*", {"layer_decay": 0.5}), ("5.*", {"schedule": "linear"})],
        ["0 - 4.weight", "5.weight"],
        "another schedule",
    ),
    (
        [("*", {"layer_decay": 0.5}), ("2.*", {"freeze": True})],
        ["0.weight", "1.weight", "3 - 5.weight"],
        "a layer is missing",
    ),
]


@pytest.mark.parametrize(("rules", "names", "why"), FOLDED, ids=[case[2] for case in FOLDED])
def test_layers_become_one_row_where_they_differ_in_a_rate_that_goes_one_way(rules, names, why):
    model = nn.Sequential(*sizes(*[1] * 6))
    rules = [{"match": match, **said} for match, said in rules]
    plan = recipe_of(*rules).plan(model, RUN)
    assert [row.name for row in rows_of(plan)] == names
    assert [row.name for row in rows_of(plan, unfold=True)] == [g.name for g in plan.groups]


def test_a_rate_that_falls_begins_another_row_and_two_layers_are_none():
    order = {"layers": ["0", "1", "2", "5", "4", "3"]}
    recipe = Recipe.load({"optimizer": ADAMW, "groups": [{"layer_decay": 0.5}], **order})
    plan = recipe.plan(nn.Sequential(*sizes(*[1] * 6)), RUN)
    assert [row.name for row in rows_of(plan)] == ["0 - 3.weight", "4.weight", "5.weight"]


def test_layers_of_another_size_are_another_row():
    plan = recipe_of({"layer_decay": 0.5}).plan(nn.Sequential(*sizes(1, 1, 1, 2, 2, 2)), RUN)
    assert [row.name for row in rows_of(plan)] == ["0 - 2.weight", "3 - 5.weight"]


def test_the_layers_number_may_be_the_second_one_in_a_name():
    model = nn.Sequential(nn.Sequential(*sizes(*[1] * 4)))
    rules = {"optimizer": ADAMW, "groups": [{"layer_decay": 0.5}], "layers": ["0.*"]}
    plan = Recipe.load(rules).plan(model, RUN)
    assert [row.name for row in rows_of(plan)] == ["0.0 - 0.3.weight"]


def test_a_notebook_shows_the_rows_and_runs_no_name():
    plan = many_groups()
    html = plan._repr_html_()
    assert html.count("<tr>") == 1 + len(rows_of(plan))
    assert "226 groups, 452 tensors" in html
    model = torch.nn.ModuleDict({"<b>x</b>": torch.nn.Linear(2, 2)})
    assert "<b>" not in recipe_of().plan(model, RUN)._repr_html_()


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
    text = str(plan)
    for group in plan.groups:
        assert f" {group.lr:.3g} " in text
    assert max(map(len, text.splitlines())) <= 80
    assert "(0.9, 0.999)" in str(plan.table(unfold=True))  # where no rule says otherwise
    assert "…" not in text


@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/x]"])
def test_a_name_is_no_markup(name):
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2)})
    assert name in str(recipe_of().plan(model, RUN))
