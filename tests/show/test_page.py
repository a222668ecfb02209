import itertools
import re
from html.parser import HTMLParser

import pytest
from support.bert import tiny_bert
from support.browser import CHROMIUM, page
from support.plans import few_groups, many_groups
from support.recipes import FULL, RUN, recipe_of
from torch import nn

from optimplug import Horizon, Recipe
from optimplug.show.page.chart import _corners

HOSTILE = "</script><img src=x onerror='window.pwned=1'><b>\"&"


class Elements(HTMLParser):
    """Every element of a page with its attributes, and whether each is closed in its turn."""

    _VOID = ("meta", "img", "br", "wbr", "input")

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
    assert rows == numbers
    assert curves == numbers * 2  # of rates, and of the weight decay
    assert abouts == [f"about-{number}" for number in numbers]
    for i, group in enumerate(plan.groups):
        about = re.search(rf'id="about-{i}">(.*?)</ul></div>', html)[1]
        assert re.findall("<li>(.*?)</li>", about) == list(group.parameters)
    assert "LinearLR" in elements.text
    assert "CosineAnnealingLR" in elements.text


def test_a_curve_starts_peaks_and_ends_where_the_plan_says():
    (phase, rest) = FULL["schedule"]
    recipe = recipe_of(schedule=[phase, rest])
    line = Elements(recipe.plan(nn.Linear(2, 2), RUN).html()).of("polyline", "curve")[0]
    heights = [float(point.split(",")[1]) for point in line["points"].split()]
    foot, top = 400, min(heights)
    share = [(foot - height) / (foot - top) for height in heights]
    assert share[0] == pytest.approx(0.1, abs=2e-3)
    assert share[-1] == pytest.approx(0.1, abs=2e-3)
    assert share.index(1) == share.index(max(share))
    assert line["points"].split()[0].startswith("0,")
    assert line["points"].split()[-1].startswith("1000,")


def test_rates_far_apart_are_drawn_on_a_logarithm():
    recipe = recipe_of({"match": "0.*", "lr_scale": 1e-4})
    html = recipe.plan(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), RUN).html()
    low, high = (
        {point.split(",")[1] for point in line["points"].split()}
        for line in Elements(html).of("polyline", "curve")[:2]
    )
    assert len(low) == len(high) == 1
    assert float(low.pop()) - float(high.pop()) > 200
    assert ">1e-05</span>" in html


@pytest.mark.parametrize("lr", [0.0, 1e-30, 1e30])
def test_any_rate_can_be_drawn(lr):
    elements = Elements(recipe_of(lr=lr).plan(nn.Linear(2, 2), RUN).html())
    line = elements.of("polyline", "curve")[0]
    assert all(0 <= float(y) <= 400 for y in re.findall(r",(\S+)", line["points"]))


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
            assert chromium.value(LIT) == [*[f"polyline{i}"] * 4, f"tr{i}"]
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


VISIBLE = "[...document.querySelectorAll('tbody tr')].filter((x) => x.offsetHeight)"
NAMES = f"{VISIBLE}.map((x) => x.cells[0].textContent)"
FIND = "find.value = {!r}; find.dispatchEvent(new Event('input'))"
DRAWN = "[...document.querySelectorAll('.chart')].filter((x) => x.offsetHeight)"
FOCUSED = "document.activeElement.dataset.group"


@needs_chromium
def test_groups_are_found_sorted_and_reached_with_the_keyboard(tmp_path):
    plan = many_groups()
    names = [group.name for group in plan.groups]
    with opened(plan, tmp_path) as chromium:
        assert chromium.value(NAMES) == names
        chromium.key("/")
        assert chromium.value("document.activeElement.id") == "find"
        chromium.value(FIND.format("LAYER.12 value"))
        found = [name for name in names if "layer.12." in name and "value" in name]
        assert chromium.value(NAMES) == found
        assert chromium.value("count.textContent") == "2 of 226 groups"
        shown = f"{DRAWN}[0].querySelectorAll('.curve:not(.out)').length"
        assert chromium.value(shown) == len(found)
        chromium.value(FIND.format("nothing has this"))
        assert chromium.value(NAMES) == []
        assert chromium.value("getComputedStyle(none).display") == "block"
        # A name of a parameter finds its group too.
        chromium.value(FIND.format("classifier.bias"))
        assert chromium.value(NAMES) == ["model/no_decay"]
        chromium.value(FIND.format(""))
        peaks = [max(trace) for trace in plan.traces(plan.sample(100))]
        order = sorted(range(len(names)), key=lambda i: peaks[i])
        head = "[...document.querySelectorAll('th')].find((x) => x.textContent === 'peak')"
        for sort, turned in (("ascending", False), ("descending", True)):
            chromium.value(f"{head}.querySelector('button').click()")
            sorted_ = [peaks[names.index(name)] for name in chromium.value(NAMES)]
            assert sorted_ == pytest.approx([peaks[i] for i in order][:: -1 if turned else 1])
            assert chromium.value(f"{head}.ariaSort") == sort
        chromium.value("document.querySelectorAll('th button')[7].click()")
        sizes = [plan.groups[names.index(name)].numel for name in chromium.value(NAMES)]
        assert sizes == sorted(sizes)
        # From the last head, Tab comes to the one row that is a stop, and arrows to the others.
        chromium.value("[...document.querySelectorAll('th button')].at(-1).focus()")
        chromium.key("Tab")
        assert chromium.value("document.querySelectorAll('tbody [tabindex=\"0\"]').length") == 1
        first = chromium.value(f"{VISIBLE}[0].dataset.group")
        second = chromium.value(f"{VISIBLE}[1].dataset.group")
        assert chromium.value(FOCUSED) == first
        chromium.key("ArrowDown")
        assert chromium.value(FOCUSED) == second
        assert chromium.value(TIP).startswith(f"block|{names[int(second)]}\n")
        chromium.key("Enter")
        chromium.hover(2, 2)
        assert chromium.value("tip.className") == "shown pinned"
        chromium.key("Escape")
        assert chromium.value(TIP).startswith("none|")
        chromium.key("End")
        assert chromium.value(FOCUSED) == chromium.value(f"{VISIBLE}.at(-1).dataset.group")
        assert chromium.complaints() == []


PLACES = """(() => {
  const box = (what) => document.querySelector(what).getBoundingClientRect();
  const chart = document.querySelector(".chart:not([hidden])").getBoundingClientRect();
  return [chart.top, chart.bottom - box("#pane").top, box("th").top - box("#pane").top,
    box("tbody tr td").left, window.scrollX, window.scrollY];
})()"""
COLOURS = """["body", ".note", "th button", ".tools", ".plot .y"].map((what) => {
  const style = getComputedStyle(document.querySelector(what));
  return [style.color, getComputedStyle(document.body).backgroundColor];
})"""


def contrast(pair):
    """How much brighter one of two colours is, as WCAG has it."""
    light = []
    for colour in pair:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        light.append(sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(light) + 0.05) / (min(light) + 0.05)


@needs_chromium
@pytest.mark.parametrize("plan", [few_groups, many_groups])
def test_it_is_read_at_any_width_on_light_and_on_dark(tmp_path, plan):
    with opened(plan(), tmp_path) as chromium:
        for width, height in ((1440, 900), (420, 860), (420, 400)):
            for scheme in ("light", "dark"):
                chromium.resize(width, height, scheme)
                assert chromium.value("document.documentElement.scrollWidth") <= width
                assert min(map(contrast, chromium.value(COLOURS))) >= 4.5
            size = chromium.value("getComputedStyle(document.querySelector('.plot .y')).fontSize")
            assert float(size.removesuffix("px")) >= 10
            # What is below the curves scrolls; they, the heads and the names stay.
            before = chromium.value(PLACES)
            chromium.value("pane.scrollTo(pane.scrollWidth, pane.scrollHeight / 2)")
            assert chromium.value("pane.scrollTop") > 0
            after = chromium.value(PLACES)
            assert after[:3] == before[:3]
            assert after[3:] == [before[3], 0, 0]
            assert before[1] <= 0
            chromium.value("pane.scrollTo(0, 0)")
        grounds = {chromium.value(COLOURS)[0][1]}
        chromium.resize(420, 860, "light")
        assert chromium.value(COLOURS)[0][1] not in grounds
        assert chromium.value(f"{DRAWN}.map((x) => x.dataset.picture)") == ["lr"]
        chromium.value("document.querySelector('input[value=weight_decay]').click()")
        assert chromium.value(f"{DRAWN}.map((x) => x.dataset.picture)") == ["weight_decay"]
        assert chromium.complaints() == []


def test_a_page_of_226_groups_is_no_burden():
    assert len(many_groups().html()) < 500_000


def test_a_line_leaves_out_no_point_that_an_eye_would_miss():
    plan = many_groups()
    steps = plan.sample(240)
    for trace in plan.traces(steps)[::40]:
        places = [
            (float(t), 400 * value / max(trace)) for t, value in zip(steps, trace, strict=True)
        ]
        kept = [0, *_corners(places), len(places) - 1]
        assert len(kept) < len(places) / 4
        for low, high in itertools.pairwise(kept):
            (x1, y1), (x2, y2) = places[low], places[high]
            for x, y in places[low:high]:
                assert abs(y1 + (y2 - y1) * (x - x1) / (x2 - x1) - y) < 0.61


def test_a_group_that_is_frozen_for_a_time_is_dotted_until_then():
    elements = Elements(many_groups().html())
    held = {line["data-group"]: line["points"] for line in elements.of("polyline", "held")}
    assert {int(i) for i in held} == {i for i, g in enumerate(many_groups().groups) if g.freeze}
    for points in held.values():
        assert points.split()[-1].startswith("300,")


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
