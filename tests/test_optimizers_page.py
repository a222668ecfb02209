"""The tables of the page on optimizers are what the classes and the laws say now."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
# By its file: "optimizers" is too common a name to import.
SPEC = importlib.util.spec_from_file_location("docs_optimizers", DOCS / "optimizers.py")
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)


def test_the_tables_are_up_to_date():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.written(text) == text, "run `make optimizers`"


@pytest.mark.parametrize("name", page.TABLES)
def test_every_optimizer_is_in_each_table(name):
    table = page.TABLES[name]()
    assert all(cls.__name__ in table for cls in page.public())


def test_a_page_without_a_place_for_a_table_is_an_error():
    with pytest.raises(SystemExit, match="laws"):
        page.written("<!-- facts -->\n<!-- end of facts -->")
