import sys

import matplotlib
import pytest
from support.bert import tiny_bert
from support.recipes import FULL, RUN, recipe_of
from torch import nn

from optimplug import Horizon, MissingExtraError, Recipe


def words_of(plan, file):
    """The text of a picture, which is words in it and not outlines of letters."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plan.plot(file)
    return file.read_text()


@pytest.mark.parametrize(
    ("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_plot_is_a_picture_of_that_kind(tmp_path, ending, magic):
    file = tmp_path / f"lr.{ending}"
    Recipe.load(FULL).plan(tiny_bert(), RUN).plot(file)
    assert file.read_bytes().startswith(magic)


def test_a_plot_has_a_line_for_every_group_and_names_the_phases(tmp_path):
    plan = Recipe.load(FULL).plan(tiny_bert(), RUN)
    text = words_of(plan, tmp_path / "lr.svg")
    for lr in {group.lr for group in plan.groups}:
        first = next(group.name for group in plan.groups if group.lr == lr)
        others = sum(group.lr == lr for group in plan.groups) - 1
        assert (f"{first} (and {others} more)" if others else first) in text
    assert "LinearLR" in text
    assert "CosineAnnealingLR" in text


def test_a_plot_of_many_groups_says_how_many_it_does_not_name(tmp_path):
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(40)])
    plan = recipe_of({"layer_decay": 0.9}).plan(model, RUN)
    assert "and 16 more" in words_of(plan, tmp_path / "lr.svg")


def test_without_a_length_there_is_nothing_to_draw(tmp_path):
    plan = recipe_of(schedule=[{"name": "LinearLR", "for": 5}]).plan(nn.Linear(2, 2), Horizon())
    with pytest.raises(ValueError, match="total_steps"):
        plan.plot(tmp_path / "lr.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "optimplug\[plot\]"'):
        recipe_of().plan(nn.Linear(2, 2), RUN).plot(tmp_path / "lr.png")
