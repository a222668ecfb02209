import sys
import types
from collections import UserDict
from pathlib import Path

import pytest

from optimplug import RecipeError
from optimplug.recipe.text.reader import read


def write(folder, text):
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", "0.1e-2", ".1e-2", "+1e-3", "0.001"])
def test_a_number_in_scientific_notation_is_one(tmp_path, number):
    content, _ = read(write(tmp_path, f"lr: {number}"))
    assert content == {"lr": 1e-3}


@pytest.mark.parametrize("text", ["1e", "e-3", "1e-3x", "v1e3", "6%", "2 epochs"])
def test_what_only_looks_like_a_number_stays_text(tmp_path, text):
    assert read(write(tmp_path, f"x: {text}"))[0] == {"x": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-3", -3), ("010", 10), ("0x1F", 31), ("0o17", 15), ("1:30", "1:30"), ("1_000", "1_000"),
        (".inf", float("inf")), ("2020-13-45", "2020-13-45"), ("yes", True), ("null", None), ("0x_", "0x_"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(tmp_path, text, value):
    assert read(write(tmp_path, f"x: {text}"))[0] == {"x": value}


def test_merged_keys_may_be_said_again(tmp_path):
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n"
    assert read(write(tmp_path, text))[0]["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yes: 1\n", "line 1: a key must be text .got True.; put it in quotes"),
        ("a: !!int foo\n", "not valid YAML"),
        ("a: !!bool foo\n", "not valid YAML"),
        ("a: " + 3000 * "[" + 3000 * "]", "not valid YAML: RecursionError"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: duplicate key 'c', first given on line 3"),
        ("a:\n\t- 1\n", "line 2: found character '\\\\t' that cannot start any token"),
        ("a: [1\n", "line 2: "),
        ("", "must be a mapping .*got nothing"),
        ("- 1\n", "must be a mapping .*got a list"),
        (
            "a: !!python/object/apply:os.system ['true']\n",
            "line 1: could not determine a constructor",
        ),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(RecipeError, match=message) as error:
        read(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot read the recipe: No such file"):
        read(tmp_path / "none.yaml")


def test_bytes_that_are_no_text_are_named(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        read(file)


def test_a_mapping_is_copied_into_plain_values():
    inner = UserDict({"name": "AdamW", "betas": (0.9, 0.99)})
    content, source = read({"optimizer": inner})
    assert content == {"optimizer": {"name": "AdamW", "betas": [0.9, 0.99]}}
    assert type(content["optimizer"]) is dict
    assert source is None


def test_reading_runs_no_code(tmp_path):
    sys.modules["trap"] = trap = types.ModuleType("trap")
    trap.sprung = []
    trap.spring = lambda: trap.sprung.append(1)
    with pytest.raises(RecipeError):
        read(write(tmp_path, "a: !!python/object/apply:trap.spring []\n"))
    del sys.modules["trap"]
    assert not trap.sprung


def test_a_glob_without_quotes_is_told_what_it_lacks(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("optimizer: {name: SGD, lr: 1.0}\ngroups:\n  - match: *.bias\n    lr: 0.5\n")
    with pytest.raises(RecipeError, match=r"line 3: what begins with \* must be in quotes"):
        read(file)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("{optimizer: {name: SGD, lr: 1e-3}}", {"optimizer": {"name": "SGD", "lr": 1e-3}}),
        (' {"lr": 010}', {"lr": 10}),
        ("{lr: 1}", {"lr": 1}),
        ("lr: 1e-3", {"lr": 1e-3}),
        ("optimizer:\n  lr: 1e-3\n", {"optimizer": {"lr": 1e-3}}),
        ("\nlr: 1", {"lr": 1}),
    ],
)  # fmt: skip
def test_yaml_itself_is_read_as_a_file_of_it_would_be(text, content):
    assert read(text) == (content, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{lr: 1, lr: 2}", "^line 1: duplicate key 'lr', first given on line 1$"),
        ("a: 1\nb: [\n", "^line 3: "),
        ("{1, 2", "^line 1: "),
        ("- a: 1", r"^a recipe must be a mapping .*got a list"),
        ("  \n", "^a recipe must be a mapping .*got nothing"),
    ],
)
def test_bad_yaml_itself_is_named_by_its_line_alone(text, message):
    with pytest.raises(RecipeError, match=message) as error:
        read(text)
    assert error.value.source is None


@pytest.mark.parametrize("path", ["recipe", "a:b.yaml", "C:\\recipes\\a.yaml", "./{a}.yaml", ""])
def test_any_other_string_is_a_path(path):
    with pytest.raises(RecipeError, match="cannot read the recipe") as error:
        read(path)
    assert error.value.source == path


@pytest.mark.parametrize("name", ["a: b.yaml", "{a}.yaml"])
def test_a_path_that_looks_like_yaml_is_given_as_one(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("lr: 1")
    monkeypatch.chdir(tmp_path)
    assert read(Path(name)) == ({"lr": 1}, name)
