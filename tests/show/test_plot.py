import itertools
import sys

import matplotlib
import pytest
from support.bert import tiny_bert
from support.plans import many_groups
from support.recipes import FULL, RUN, recipe_of
from torch import nn

from optimplug import Horizon, MissingExtraError, Recipe
from optimplug.show.difference import PlanDifference
from optimplug.show.difference.pictures import draw, page
from optimplug.show.pictures import log_range, pictures
from optimplug.show.spread import spread


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


def test_a_plot_names_every_line_beside_it_and_the_phases(tmp_path):
    plan = Recipe.load(FULL).plan(tiny_bert(), RUN)
    text = words_of(plan, tmp_path / "lr.svg")
    names = ["embeddings", "encoder.layer.0", "encoder.layer.1", "pooler.dense"]
    for name in [*(f"bert.{name}" for name in names), "classifier"]:
        assert f">{name} (2 groups)<" in text
    assert "LinearLR" in text
    assert "CosineAnnealingLR" in text
    assert ">bert.embeddings.position_embeddings<" in text  # what is frozen
    assert "legend" not in text


@pytest.mark.parametrize("name", ["_fc", "a$b^{$", "$x$"])
def test_names_stand_in_pictures_as_they_are(tmp_path, name):
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), name: nn.Linear(2, 2)})
    first, second = (
        recipe_of({"match": f"{name}.*", "lr": lr}).plan(model, RUN) for lr in (0.1, 0.2)
    )
    assert f">{name}<" in words_of(first, tmp_path / "lr.svg")
    assert f">{name}<" in page(PlanDifference(first, second), [], ("a", "b")).partition("<svg")[2]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(PlanDifference(first, second), (f"{name}.yaml", "b"), tmp_path / "both.svg")
    assert f">{name}.yaml<" in (tmp_path / "both.svg").read_text()


def test_at_226_groups_it_has_a_band_for_each_layer_from_the_bottom_to_the_top(tmp_path):
    text = words_of(many_groups(), tmp_path / "lr.svg")
    at = [text.index(f">bert.encoder.layer.{i} (8 groups)<") for i in range(28)]
    assert at == sorted(at)
    assert text.index(">model (2 groups)<") > at[-1]
    assert "10^{-4}" in text  # rates that differ by more than ten
    assert ">weight_decay<" in text
    assert ">frozen<" in text
    assert ">bert.encoder.layer.0 - layer.2<" in text
    assert "betas" not in text  # which nothing changes


@pytest.mark.parametrize("of", ["betas", "weight_decay"])
def test_what_else_is_scheduled_is_drawn_too(tmp_path, of):
    phase = {"name": "LinearLR", "end_factor": 0.5, "of": of}
    plan = recipe_of(schedule=[phase], weight_decay=0.1).plan(nn.Linear(2, 2), RUN)
    name = {"betas": "betas[0]"}.get(of, of)
    assert f">{name}<" in words_of(plan, tmp_path / "lr.svg")
    (_, other) = pictures(plan, [0, 100])[:1] + [
        p for p in pictures(plan, [0, 100]) if p.name == name
    ]
    start = plan.setting(plan.groups[0], of)
    start = start[0] if of == "betas" else start
    assert other.traces == [[pytest.approx(start / 3), pytest.approx(start / 2)]]


@pytest.mark.parametrize(("scale", "logarithm"), [(9.9, False), (10.1, True)])
def test_the_axis_is_a_logarithm_where_rates_differ_by_more_than_ten(tmp_path, scale, logarithm):
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    plan = recipe_of({"match": "0.*", "lr_scale": scale}).plan(model, RUN)
    assert (log_range(plan.traces([0, 50])) is not None) == logarithm
    assert ("10^{-" in words_of(plan, tmp_path / "lr.svg")) == logarithm


def test_rates_of_0_are_drawn_at_the_foot_of_a_logarithm(tmp_path):
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(3)])
    rules = [{"match": "0.*", "lr": 0.0}, {"match": "1.*", "lr_scale": 1e-3}]
    assert ">0: 0<" in words_of(recipe_of(*rules).plan(model, RUN), tmp_path / "lr.svg")


def test_optimizers_of_one_layer_are_bands_of_their_own(tmp_path):
    optimizer = {"name": "Muon", "lr": 0.02, "fallback": {"name": "AdamW", "lr": 3e-4}}
    rules = [{"layer_decay": 0.9}, {"match": "*.bias", "lr_scale": 0.5}]
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(16)])
    plan = Recipe.load({"optimizer": optimizer, "groups": rules}).plan(model, RUN)
    text = words_of(plan, tmp_path / "lr.svg")
    assert len(plan.groups) == 32
    assert ">0.weight<" in text
    assert ">0.bias<" in text


def test_a_plot_of_many_layers_says_how_many_it_names(tmp_path):
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(40)])
    plan = recipe_of({"layer_decay": 0.9}).plan(model, RUN)
    assert "20 of 40 are named" in words_of(plan, tmp_path / "lr.svg")


@pytest.mark.parametrize("wanted", [[0.5], [0.1, 0.1, 0.1], [0, 1, 1, 0], [0.3, 0.31, 0.9, 0.32]])
def test_names_do_not_overlap_and_keep_their_order(wanted):
    places = spread(wanted, 0.1)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    gaps = [places[b] - places[a] for a, b in itertools.pairwise(order)]
    assert all(gap >= 0.1 - 1e-9 for gap in gaps)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    assert len(wanted) > 1 or places == pytest.approx(wanted)


def test_without_a_length_there_is_nothing_to_draw(tmp_path):
    plan = recipe_of(schedule=[{"name": "LinearLR", "for": 5}]).plan(nn.Linear(2, 2), Horizon())
    with pytest.raises(ValueError, match="total_steps"):
        plan.plot(tmp_path / "lr.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "optimplug\[plot\]"'):
        recipe_of().plan(nn.Linear(2, 2), RUN).plot(tmp_path / "lr.png")
