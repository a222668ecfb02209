"""What is written, as plain values; and what is too large to be meant."""

import enum
import time
from collections import UserDict

import numpy as np
import pytest

from optimplug import Recipe, RecipeError
from optimplug.recipe.text.override import override
from optimplug.recipe.text.plain import plain
from optimplug.recipe.text.reader import read


class Word(str, enum.Enum):
    ADAM = "Adam"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, [2.5, "x"], None, True), [1, [2.5, "x"], None, True]),
        (UserDict(a=UserDict(b=(1,))), {"a": {"b": [1]}}),
        (np.float64(0.5), 0.5),
        (Word.ADAM, "Adam"),
        ({Word.ADAM: 1}, {"Adam": 1}),
        (b"bytes", b"bytes"),
    ],
)
def test_values_are_of_the_builtin_classes(value, expected):
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert [type(key) for key in found] == [str] * len(found)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"optimizer": {1: 2}}, "optimizer: a key must be text (got 1); put it in quotes"),
        ({"groups": [{}, {None: 1}]}, "groups[1]: a key must be text (got None); put it in quotes"),
        ({("a",): 1}, "a key must be text (got ('a',)); put it in quotes"),
        (
            {"optimizer": {"lr": 2**1024}},
            "optimizer.lr: must be a finite number (got one of 1025 bits)",
        ),
        ({"a": [-(2**20000)]}, "a[0]: must be a finite number (got one of 20001 bits)"),
    ],
)
def test_what_cannot_be_is_one_line(value, line):
    with pytest.raises(RecipeError) as error:
        plain(value)
    assert str(error.value) == line


def nested(depth, wrap=lambda inner: [inner]):
    value = []
    for _ in range(depth - 1):
        value = wrap(value)
    return value


def laughs(levels, width=10):
    """A list of the same list of the same list ..., as aliases make them."""
    return nested(levels, lambda inner: [inner] * width)


def cycle():
    value = {}
    value["optimizer"] = value
    return value


MOST = "a recipe cannot have more than 100,000 values"
DEEPEST = "a recipe cannot be nested deeper than 60 levels"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (laughs(50), MOST),
        ([0] * 100_000, MOST),
        ([[0] * 50_000] * 2, MOST),
        (nested(62), DEEPEST),
        ([nested(30), nested(31, lambda inner: {"x": inner}), nested(62)], DEEPEST),
        (cycle(), DEEPEST),
    ],
    ids=["shared", "wide", "shared and wide", "deep", "deep beside others", "cycle"],
)
def test_what_is_too_large_is_refused_at_once(value, line):
    with pytest.raises(RecipeError) as error:
        plain(value)
    assert str(error.value) == line


def test_a_shared_part_counts_wherever_it_is_and_however_deep():
    inner = nested(40)
    assert plain([inner, inner]) == [nested(40)] * 2
    with pytest.raises(RecipeError, match="deeper"):
        plain([inner, nested(25, lambda _: [_] if _ else inner)])


def test_what_is_large_but_can_be_meant_is_taken():
    assert plain([0] * 99_000) == [0] * 99_000
    assert plain(nested(60)) == nested(60)
    assert plain(2**1000) == 2**1000


ALIASES = "x-0: &a0 [x, x]\n" + "".join(
    f"x-{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
)
MERGES = "x-0: &a0 {x: 1}\n" + "".join(
    f"x-{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
)
HOSTILE = {
    "aliases": (ALIASES, MOST),
    "merges": (MERGES, "line 15: more than 10,000 keys in one mapping"),
    "nesting": ("a: " + "[" * 90 + "]" * 90 + "\n", DEEPEST),
    "an alias of itself": ("optimizer: &o {name: *o}\n", DEEPEST),
    "a number": (
        "optimizer: {name: AdamW, lr: 0x" + "f" * 6000 + "}\n",
        "optimizer.lr: must be a finite number (got one of 24000 bits)",
    ),
    "a number with a power": (
        "optimizer: {name: AdamW, lr: 1e999}\n",
        "optimizer.lr: must be a finite number (got inf)",
    ),
}


@pytest.mark.parametrize(("text", "line"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_one_line_at_once(tmp_path, text, line):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    begun = time.process_time()
    for source, start in ((file, f"{file}: "), (text, "")):
        with pytest.raises(RecipeError) as error:
            Recipe.load(source)
        assert str(error.value) == start + line
    assert time.process_time() - begun < 5  # written out, they would take hours


def test_a_part_that_is_shared_by_an_alias_is_changed_in_one_place_alone():
    content, _ = read("optimizer: {name: AdamW}\ngroups: [&r {lr_scale: 2, match: a}, *r]\n")
    changed = override(content, {"groups[0].match": "b"})
    assert [rule["match"] for rule in changed["groups"]] == ["b", "a"]


def test_a_value_of_a_command_line_is_bounded_too():
    with pytest.raises(RecipeError) as error:
        override({}, {"optimizer.lr": "0x" + "f" * 6000})
    assert str(error.value) == "optimizer.lr: must be a finite number (got one of 24000 bits)"


@pytest.mark.parametrize("source", [None, 3, 1.5, [{"optimizer": {}}], b"a: b", Recipe])
def test_what_is_no_source_is_told_what_one_is(source):
    for attempt in (Recipe, Recipe.load):
        with pytest.raises(RecipeError) as error:
            attempt(source)
        (line,) = str(error.value).splitlines()
        assert line.startswith(
            "a recipe must be a path to a YAML file, YAML itself, or a mapping (got "
        )


@pytest.mark.parametrize("path", ["", ".", "\0", "no/such.yaml", "x" * 5000])
def test_a_path_that_is_none_is_one_line(path):
    with pytest.raises(RecipeError, match="cannot read the recipe: ") as error:
        Recipe.load(path)
    assert len(str(error.value).splitlines()) == 1
