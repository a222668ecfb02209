import pytest

from optimplug import RecipeError
from optimplug.recipe.text.problems import Problems
from optimplug.recipe.text.written import Written


@pytest.mark.parametrize(
    ("content", "path", "written"),
    [
        ({"schedule": "cosin"}, "schedule[0].preset", "schedule"),
        ({"schedule": {"preset": "cosin"}}, "schedule[0].preset", "schedule.preset"),
        ({"schedule": [{"preset": "cosin"}]}, "schedule[0].preset", "schedule[0].preset"),
        ({"groups": [{"match": "x"}]}, "groups[0].match.name[0]", "groups[0].match"),
        ({"groups": [{"match": ["x"]}]}, "groups[0].match.name[0]", "groups[0].match[0]"),
        ({"groups": [{"match": {"name": "x"}}]}, "groups[0].match.name[0]", "groups[0].match.name"),
        ({"groups": [{"no_decay": "x"}]}, "groups[0].no_decay[0]", "groups[0].no_decay"),
        ({"optimizer": {}}, "optimizer.name", "optimizer.name"),
        ({}, "schedule[0].name", "schedule[0].name"),
        ({"optimizer": None}, "", ""),
    ],
)
def test_a_path_has_the_parts_that_the_recipe_has(content, path, written):
    assert Written(content).path(path) == written


def test_an_error_names_the_file_and_keeps_its_cause():
    cause = KeyError("x")
    with (
        pytest.raises(RecipeError) as caught,
        Written({"schedule": "cosin"}, "a.yaml").located(),
    ):
        raise RecipeError.at("schedule[0].preset", "no preset") from cause
    assert str(caught.value) == "a.yaml: schedule: no preset"
    assert caught.value.source == "a.yaml"
    assert caught.value.__cause__ is cause


def test_a_plain_value_error_is_a_problem_only_where_a_path_is_given():
    wrong = Problems()
    with pytest.raises(ValueError, match="too long"), wrong.caught():
        raise ValueError("is too long")
    wrong.raise_if_any()
    with wrong.caught("schedule[0].for"):
        raise ValueError("is too long")
    with pytest.raises(RecipeError, match=r"^schedule\[0\]\.for: is too long$"):
        wrong.raise_if_any()
