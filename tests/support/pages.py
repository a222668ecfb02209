"""The README and the pages under docs, as the blocks of code and commands in them."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from optimplug.recipe.text.reader import read

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    file: str | None
    """What it is to be saved as, if the page says so."""
    text: str


@cache
def pages():
    """Every page, by its path in the repository."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in found}


def blocks(page, *languages):
    """The blocks of a page, in order."""
    found = [Block(*match) for match in FENCE.findall(pages()[page])]
    return [
        block._replace(file=block.file or None)
        for block in found
        if not languages or block.language in languages
    ]


def read_block(page, text, folder):
    """What a recipe's YAML on a page says, with the files that the page gives beside it."""
    for block in blocks(page, "yaml"):
        if block.file:
            (folder / block.file).write_text(block.text)
    (folder / "block.yaml").write_text(text)
    return read(folder / "block.yaml")[0]


def commands(page):
    """The commands of a page, in order."""
    lines = [line for block in blocks(page, "console") for line in block.text.splitlines()]
    return [line.removeprefix("$ ") for line in lines]


def sections(page):
    """Each heading of a page, with the text up to the next heading of any level."""
    parts = re.split(r"^#+ (.+)$", pages()[page], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text):
    """The cells of each row of the tables in a text, without their headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    bars = [i for i, row in enumerate(cells) if all(set(cell) <= set("-: ") for cell in row)]
    return [row for i, row in enumerate(cells) if i not in bars and i + 1 not in bars]
