"""What the project's own recipes say: nothing in them is warned of."""

from pathlib import Path

import pytest
import yaml
from support import pages
from support.bert import tiny_bert
from torch import nn

from optimplug import Horizon, Recipe

ROOT = Path(__file__).parents[2]
TEXTS = {
    **{f"{page}[{i}]": block.text for page in pages.pages() for i, block in enumerate(pages.blocks(page, "yaml"))},
    **{str(file.relative_to(ROOT)): file.read_text() for file in (ROOT / "examples").rglob("*.yaml")},
}  # fmt: skip
SCHEDULES = {
    name: content["schedule"]
    for name, text in TEXTS.items()
    if isinstance(content := yaml.safe_load(text), dict) and "schedule" in content
}


def test_recipes_were_found():
    assert {
        "README.md[0]",
        "docs/recipe.md[0]",
        "examples/docstrings/plateau.yaml",
    } <= SCHEDULES.keys()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("epochs", [3, 10])
def test_no_schedule_is_warned_of(name, epochs):
    recipe = Recipe.load({"optimizer": {"name": "AdamW"}, "schedule": SCHEDULES[name]})
    plan = recipe.plan(nn.Linear(2, 2), Horizon(total_steps=40 * epochs, steps_per_epoch=40))
    assert plan.warnings == ()


RECIPES = [
    file
    for file in sorted((ROOT / "examples").rglob("*.yaml"))
    if isinstance(yaml.safe_load(file.read_text()).get("optimizer"), dict)
]


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_an_examples_recipe_is_right(file):
    recipe = Recipe.load(file)
    if file.parent.name == "docstrings":
        plan = recipe.plan(tiny_bert(), Horizon(total_steps=375, steps_per_epoch=125))
        assert plan.warnings == ()
