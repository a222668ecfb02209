import re
from html.parser import HTMLParser

import pytest
from support.bert import tiny_bert
from support.browser import CHROMIUM, page
from support.recipes import FULL, RUN, recipe_of
from torch import nn

from optimplug import Horizon, Recipe

HOSTILE = "</script><img src=x onerror='window.pwned=1'><b>\"&"


class Elements(HTMLParser):
    """Every element of a page with its attributes, and whether each is closed in its turn."""

    _VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag, kind=None):
        return [a for t, a in self.found if t == tag and kind in (None, a.get("class"))]


def hostile_model():
    """A model whose names would break out of a page that does not escape them."""
    model = nn.Module()
    model.add_module(HOSTILE.replace(".", ""), nn.Linear(2, 2))
    return model


def test_every_group_has_a_row_a_curve_and_a_tooltip_with_its_parameters():
    plan = Recipe.load(FULL).plan(tiny_bert(), RUN)
    html = plan.html()
    elements = Elements(html)
    numbers = [str(i) for i in range(len(plan.groups))]
    rows = [row["data-group"] for row in elements.of("tr") if "data-group" in row]
    curves = [line["data-group"] for line in elements.of("polyline", "curve")]
    abouts = [about["id"] for about in elements.of("div", "about")]
    assert rows == curves == numbers
    assert abouts == [f"about-{number}" for number in numbers]
    for i, group in enumerate(plan.groups):
        about = re.search(rf'id="about-{i}">(.*?)</ul></div>', html)[1]
        assert re.findall("<li>(.*?)</li>", about) == list(group.parameters)
    assert "LinearLR" in elements.text
    assert "CosineAnnealingLR" in elements.text


def test_a_curve_starts_peaks_and_ends_where_the_plan_says():
    (phase, rest) = FULL["schedule"]
    recipe = recipe_of(schedule=[phase, rest])
    (line,) = Elements(recipe.plan(nn.Linear(2, 2), RUN).html()).of("polyline", "curve")
    heights = [float(point.split(",")[1]) for point in line["points"].split()]
    foot, top = 320, min(heights)
    share = [(foot - height) / (foot - top) for height in heights]
    assert share[0] == pytest.approx(0.1, abs=2e-3)
    assert share[-1] == pytest.approx(0.1, abs=2e-3)
    assert share.index(1) == share.index(max(share))
    assert line["points"].split()[0].startswith("70,")
    assert line["points"].split()[-1].startswith("930,")


def test_rates_far_apart_are_drawn_on_a_logarithm():
    recipe = recipe_of({"match": "0.*", "lr_scale": 1e-4})
    html = recipe.plan(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), RUN).html()
    low, high = (
        {point.split(",")[1] for point in line["points"].split()}
        for line in Elements(html).of("polyline", "curve")
    )
    assert len(low) == len(high) == 1
    assert float(low.pop()) - float(high.pop()) > 200
    assert ">1e-05</text>" in html


@pytest.mark.parametrize("lr", [0.0, 1e-30, 1e30])
def test_any_rate_can_be_drawn(lr):
    elements = Elements(recipe_of(lr=lr).plan(nn.Linear(2, 2), RUN).html())
    (line,) = elements.of("polyline", "curve")
    assert all(0 <= float(y) <= 360 for y in re.findall(r",(\S+)", line["points"]))


def test_without_a_length_there_is_a_table_alone():
    elements = Elements(recipe_of().plan(nn.Linear(2, 2), Horizon()).html())
    assert elements.of("svg") == []
    assert len([row for row in elements.of("tr") if "data-group" in row]) == 1


def test_frozen_tied_and_warnings_are_in_the_page():
    model = tiny_bert()
    model.bert.pooler.dense.bias = model.classifier.bias
    rules = [{"match": "*.bias", "freeze": True}, {"match": "*.bias", "lr_scale": 2}]
    text = "\n".join(Elements(recipe_of(*rules).plan(model, RUN).html()).text)
    assert "Frozen: " in text
    assert "bert.pooler.dense.bias = classifier.bias" in text
    assert "groups[1]: has no effect: all its parameters are frozen" in text


def test_names_are_escaped_and_nothing_is_fetched():
    elements = Elements(recipe_of().plan(hostile_model(), RUN).html())
    assert {tag for tag, _ in elements.found}.isdisjoint({"img", "b", "link", "iframe"})
    assert len(elements.of("script")) == 1
    assert f"{HOSTILE.replace('.', '')}.weight" in "".join(elements.text)
    for _, attributes in elements.found:
        assert attributes.keys().isdisjoint({"src", "href"})
        assert not any(name.startswith("on") for name in attributes)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
CENTRE = """(() => {{
  const box = document.querySelector({!r}).getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
}})()"""
TIP = "getComputedStyle(document.getElementById('tip')).display + '|' + tip.innerText"
LIT = "[...document.querySelectorAll('.lit')].map((x) => x.localName + x.dataset.group).sort()"
# Where the curve of a group is, half way through the run.
ON_CURVE = """(() => {{
  const line = document.querySelector('.grab[data-group="{}"]');
  const points = line.points, at = points[Math.floor(points.length / 2)];
  const place = new DOMPoint(at.x, at.y).matrixTransform(line.getScreenCTM());
  return [place.x, place.y];
}})()"""


def opened(plan, tmp_path):
    file = tmp_path / "plan.html"
    file.write_text(plan.html(), encoding="utf-8")
    return page(file.as_uri(), tmp_path / "profile")


@needs_chromium
def test_a_group_that_is_hovered_shows_its_parameters_and_its_curve(tmp_path):
    plan = Recipe.load(FULL).plan(tiny_bert(), RUN)
    with opened(plan, tmp_path) as chromium:
        assert chromium.value(TIP) == "none|"
        for i in (0, len(plan.groups) - 1):
            chromium.value(f"document.querySelector('tr[data-group=\"{i}\"]').scrollIntoView()")
            chromium.hover(*chromium.value(CENTRE.format(f'tr[data-group="{i}"]')))
            display, _, text = chromium.value(TIP).partition("|")
            group = plan.groups[i]
            assert display == "block"
            assert text.splitlines()[0] == group.name
            assert text.splitlines()[-len(group.parameters) :] == list(group.parameters)
            assert chromium.value(LIT) == [f"polyline{i}", f"polyline{i}", f"tr{i}"]
        chromium.hover(2, 2)
        assert chromium.value(TIP).startswith("none|")
        assert chromium.value(LIT) == []
        assert chromium.complaints() == []
        assert chromium.requests() == [(tmp_path / "plan.html").as_uri()]


@needs_chromium
def test_a_curve_that_is_hovered_shows_its_group_and_a_click_keeps_it(tmp_path):
    plan = Recipe.load(FULL).plan(tiny_bert(), RUN)
    i = len(plan.groups) - 1
    with opened(plan, tmp_path) as chromium:
        at = chromium.value(ON_CURVE.format(i))
        chromium.hover(*at)
        assert chromium.value(TIP).startswith(f"block|{plan.groups[i].name}\n")
        width = (
            f"getComputedStyle(document.querySelector('.curve[data-group=\"{i}\"]')).strokeWidth"
        )
        assert chromium.value(width) == "3.2px"
        chromium.click(*at)
        chromium.hover(2, 2)
        assert chromium.value(TIP).startswith(f"block|{plan.groups[i].name}\n")
        chromium.click(2, 2)
        assert chromium.value(TIP).startswith("none|")
        assert chromium.complaints() == []


@needs_chromium
def test_hostile_names_run_nothing(tmp_path):
    with opened(recipe_of().plan(hostile_model(), RUN), tmp_path) as chromium:
        chromium.hover(*chromium.value(CENTRE.format('tr[data-group="0"]')))
        assert HOSTILE.replace(".", "") in chromium.value(TIP)
        assert chromium.value("typeof window.pwned") == "undefined"
        assert chromium.complaints() == []
        # And were one let through, the page's policy would stop it.
        chromium.value("document.body.insertAdjacentHTML('beforeend', `<p onclick='pwned = 1'>`)")
        chromium.value("document.body.lastChild.click()")
        assert chromium.value("typeof window.pwned") == "undefined"
        assert "Content Security Policy" in str(chromium.complaints())
