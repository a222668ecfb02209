"""Recipes that go on from others, and the user's own keys."""

from pathlib import Path

import pytest
import yaml

from optimplug import Recipe, RecipeError
from optimplug.recipe.text.reader import read

BASE = """\
x-peak: &peak 3e-4
optimizer: {name: AdamW, lr: *peak, betas: [0.9, 0.95]}
groups:
  - {no_decay: [norm, bias]}
schedule: {preset: linear, warmup: 6%}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/base.yaml").write_text(BASE)


def write(text, name="recipes/own.yaml"):
    Path(name).write_text(text)
    return name


@pytest.mark.parametrize(
    ("own", "changed"),
    [
        ("", {}),
        ("optimizer: {lr: 1e-3}", {"optimizer": {"name": "AdamW", "lr": 1e-3, "betas": [0.9, 0.95]}}),
        ("optimizer: {betas: [0.8, 0.9]}", {"optimizer": {"name": "AdamW", "lr": 3e-4, "betas": [0.8, 0.9]}}),
        ("groups: [{match: '*.bias', lr: 1}]", {"groups": [{"no_decay": ["norm", "bias"]}, {"match": "*.bias", "lr": 1}]}),
        ("groups: {layer_decay: 0.9}", {"groups": [{"no_decay": ["norm", "bias"]}, {"layer_decay": 0.9}]}),
        ("schedule: {preset: cosine}", {"schedule": {"preset": "cosine"}}),
        ("resume: adapt\nx-mine: 3", {"resume": "adapt"}),
    ],
)  # fmt: skip
def test_maps_merge_groups_are_appended_and_a_schedule_is_replaced(own, changed):
    whole = read(write(f"extends: base.yaml\n{own}\n"))
    base = read("recipes/base.yaml")[0]
    assert whole == ({**base, **changed}, "recipes/own.yaml")


def test_own_keys_are_for_anchors_and_are_gone():
    content = read("recipes/base.yaml")[0]
    assert [*content] == ["optimizer", "groups", "schedule"]
    assert content["optimizer"]["lr"] == 3e-4
    Recipe.load("recipes/base.yaml")


def test_several_follow_each_other_from_folder_to_folder():
    write("extends: recipes/base.yaml\ngroups: [{layer_decay: 0.9}]\n", "middle.yaml")
    content, _ = read(write("extends: ../middle.yaml\ngroups: [{layer_decay: 0.8}]\n"))
    assert content["groups"][1:] == [{"layer_decay": 0.9}, {"layer_decay": 0.8}]


def test_behind_a_link_to_a_folder_the_path_begins_where_that_leads_to():
    Path("far/deep").mkdir(parents=True)
    Path("linked").symlink_to("far/deep")
    write(BASE, "base.yaml")  # which is above the link, and not what is meant
    write(BASE.replace("3e-4", "5e-4"), "far/base.yaml")
    recipe = Recipe.load(write("extends: ../base.yaml\n", "linked/own.yaml"))
    assert recipe.hyperparameters["lr"] == 5e-4


@pytest.mark.parametrize(
    "source", ["extends: recipes/base.yaml\nresume: adapt\n", {"extends": "recipes/base.yaml"}]
)
def test_without_a_file_the_path_begins_at_the_working_directory(source):  # fmt: skip
    assert Recipe.load(source).hyperparameters["lr"] == 3e-4


def test_the_whole_recipe_is_written_out_and_pickled():
    recipe = Recipe.load(write("extends: base.yaml\noptimizer: {lr: 1e-3}\n"))
    again = Recipe.load(recipe.to_yaml())
    assert again.spec == recipe.spec
    assert "extends" not in yaml.safe_load(recipe.to_yaml())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("extends: other.yaml", r"extends: recipes/other\.yaml: cannot read the recipe: No such file"),
        ("extends: 3", r"extends: must be the path of a recipe, from the folder of this one \(got 3\)"),
        ("extends: [base.yaml]", r"extends: must be the path of a recipe"),
        ('extends: "a\\0b"', r"extends: must be the path of a recipe"),
        ("extends: own.yaml", r"extends: own\.yaml extends this recipe in turn"),
        ("extends: bad.yaml", r"extends: recipes/bad\.yaml: line 2: duplicate key 'a', first given on line 1"),
        ("extends: turn.yaml", r"extends: recipes/turn\.yaml: extends: own\.yaml extends this recipe in turn"),
        ("extend: base.yaml", r"extend: unknown key; did you mean 'extends'\?"),
        ("extends: base.yaml\noptimizer: {lrr: 1}", r"optimizer\.lrr: unknown key; did you mean 'lr'\?$"),
        ("extends: base.yaml\ngroups: [{lr_scal: 1}]", r"groups\[0\]\.lr_scal: unknown key"),
        ("extends: wrong.yaml\ngroups: [{lr: 1}]", r"groups\[1\]\.lr_scal: unknown key; .*\(in recipes/wrong\.yaml\)"),
        ("extends: wrong.yaml\nschedule: cosin", r"schedule: no preset 'cosin'; did you mean 'cosine'"),
        ("extends: deep.yaml", r"groups\[1\]\.lr_scal: unknown key; .*\(in recipes/wrong\.yaml\)"),
        ("extends: deep.yaml", r"groups\[0\]\.matsh: unknown key; .*\(in recipes/deep\.yaml\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_the_file_where_it_stands(own, message):
    write("a: 1\na: 2\n", "recipes/bad.yaml")
    write("extends: own.yaml\n", "recipes/turn.yaml")
    write("extends: base.yaml\ngroups: [{layer_decay: 0.9}, {lr_scal: 1}]\n", "recipes/wrong.yaml")
    write("extends: wrong.yaml\ngroups: [{matsh: 1}]\n", "recipes/deep.yaml")
    with pytest.raises(RecipeError, match=rf"(?m)^recipes/own\.yaml: {message}"):
        Recipe.load(write(own))
