"""What a sweep's curve suggests, and why it may suggest nothing."""

import json
import math
import random

import pytest

from optimplug import ArgumentError, LRCurve
from optimplug.errors import MissingExtraError


def curve(loss_at, noise=0.0, points=100, end="whole", seed=0, start=2.0):
    """A sweep from 1e-3 to 1e2 whose loss is a function of the logarithm of the multiplier."""
    generator = random.Random(seed)  # noqa: S311
    logs = [5 * i / (points - 1) - 3 for i in range(points)]
    found = tuple((10**x, loss_at(x) + generator.gauss(0, noise)) for x in logs)
    return LRCurve(found, start, end, {"optimizer.lr": 1e-4, "groups[1].lr": 1e-2})


def fall(x, at=0.0, low=1.0):
    """Two flat parts with a fall between them, and a rise from 1.5 on."""
    rise = max(0.0, x - at - 1.5) * 10
    return low + (2 - low) / (1 + math.exp(6 * (x - at))) + rise


@pytest.mark.parametrize("at", [-1.0, 0.0, 0.4])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_middle_of_the_fall(at, noise, seed):
    found = curve(lambda x: fall(x, at), noise, seed=seed).suggestion
    assert math.log10(found.multiplier) == pytest.approx(at, abs=0.15)
    assert found.rates == {
        "optimizer.lr": pytest.approx(1e-4 * found.multiplier),
        "groups[1].lr": pytest.approx(1e-2 * found.multiplier),
    }


def test_smoothing_shifts_nothing_to_a_side():
    steep = curve(lambda x: 2.0 if x < 0 else 1.0, points=101)
    at = min(range(101), key=lambda i: abs(steep.smoothed[i] - 1.5))
    assert abs(math.log10(steep.multipliers[at])) <= 0.05
    assert curve(lambda x: 3.0).smoothed == pytest.approx([3.0] * 100)


NOTICES = {
    "no number at the start": (LRCurve((), math.nan, "not finite"), "the loss is nan before the first update"),
    "nothing after it": (LRCurve((), 2.0, "not finite"), "the loss is not finite at the first update already: begin lower"),
    "too early": (
        LRCurve(tuple((10.0**i, 2.0**i) for i in range(5)), 1.0, "not finite"),
        "the loss is not finite at 1e+04 times the recipe's rates already: begin lower",
    ),
    "flat": (curve(lambda x: 2.0, noise=0.1), "no rate stands out. Try higher rates"),
    "without noise": (curve(lambda x: 2.0), "the loss falls by 0 at the most, and its noise is 0"),
    "only noise before it diverges": (
        curve(lambda x: 2 + max(0, x) * 5, noise=0.3, end="diverged"),
        "no rate stands out. Try lower rates (lowest=...), more updates",
    ),
    "rising": (curve(lambda x: 2 + x, noise=0.01), "no rate stands out"),
    "still falling": (
        curve(lambda x: 2 - (x + 3) / 5, noise=0.02),
        "still falls at 100 times the recipe's rates, so nothing is known of its minimum: go on higher",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTICES)
def test_a_curve_without_a_minimum_says_what_to_do_and_gives_no_number(name):
    found, message = NOTICES[name]
    assert message in found.notice
    with pytest.raises(ArgumentError, match="no rate is suggested: "):
        _ = found.suggestion
    assert message in str(found)
    assert found.to_dict()["suggestion"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_abrupt_end_may_follow_the_minimum():
    short = LRCurve(curve(lambda x: fall(x, -1.0), points=100).points[:62], 2.0, "not finite", {})
    assert short.notice == ""
    assert math.log10(short.suggestion.multiplier) == pytest.approx(-1, abs=0.2)


def test_as_text_and_as_values():
    found = curve(fall, 0.05, end="diverged")
    lines = str(found).splitlines()
    assert (
        lines[0]
        == "100 updates at 0.001 to 100 times the recipe's rates, after which the loss diverged"
    )
    assert lines[1].startswith("half of the fall is done at ")
    assert lines[2].startswith("  optimizer.lr: ")
    assert lines[2].endswith("(now 0.0001)")
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["suggestion"]["multiplier"] == found.suggestion.multiplier
    assert values["notice"] == ""
    assert len(values["losses"]) == len(values["smoothed"]) == 100


SHOWN = {
    "found": curve(fall, 0.05),
    "flat": curve(lambda x: 2.0),
    "0": curve(lambda x: 0.0, start=0.0),
}


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
def test_it_is_drawn(tmp_path, shown):
    shown.plot(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    page = shown.html()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 1
    assert ("half of the fall is done" in page) != ("no rate is suggested" in page)
    assert ("suggested: optimizer.lr" in page) == (not shown.notice)
    assert "script-src 'none'" in page


def test_nothing_is_drawn_of_no_points(tmp_path):
    with pytest.raises(ArgumentError, match="there is no point to draw: the loss is nan"):
        LRCurve((), math.nan, "not finite").plot(tmp_path / "lr.png")


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"optimplug\[plot\]"):
        curve(fall).plot(tmp_path / "lr.png")
