"""Every scheduler has its picture, and the page that shows them shows them all."""

import sys
from pathlib import Path

import pytest

import optimplug.optim.lr_scheduler as schedulers

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import gallery

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "schedulers.md").read_text()
NAMES = [name for name in schedulers.__all__ if name != "LRScheduler"]


def test_every_scheduler_is_drawn():
    assert sorted(gallery.GALLERY) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_a_section_and_a_picture_of_it(name):
    assert f"### {name}\n" in PAGE
    assert f"](gallery/{name}.png)" in PAGE
    assert (DOCS / "gallery" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_pictures_are_small():
    assert sum(file.stat().st_size for file in (DOCS / "gallery").iterdir()) < 1_000_000


def test_drawing_again_gives_the_same_picture(tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        folder.mkdir()
        gallery.draw("CyclicLR", folder)
    assert (once / "CyclicLR.png").read_bytes() == (twice / "CyclicLR.png").read_bytes()


def test_the_script_draws_all(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(gallery, "draw", lambda name, folder: drawn.append((name, folder)))
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--out", str(tmp_path / "new")])
    gallery.main()
    assert drawn == [(name, tmp_path / "new") for name in gallery.GALLERY]


@pytest.mark.parametrize("name", NAMES)
def test_every_line_is_a_run(name):
    for build in gallery.GALLERY[name].values():
        rates = gallery.trace(build)
        assert len(rates) == gallery.STEPS
        assert all(0 <= rate <= 1 for rate in rates)
        assert len(set(rates)) > 1
