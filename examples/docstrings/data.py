"""Texts with labels: the docstrings of Python's standard library, or a CSV file of yours."""

from __future__ import annotations

import ast
import csv
import random
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = 8
# Other people's code, and tests: what is there differs from machine to machine.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}


class DataError(ValueError):
    """The data cannot be used; the message says which file and why."""


@dataclass(frozen=True)
class Example:
    """A text and the number of its label."""

    text: str
    label: int


@dataclass(frozen=True)
class Texts:
    """Labelled texts, shuffled and split."""

    labels: list[str]
    train: list[Example]
    held_out: list[Example]

    @property
    def majority(self) -> float:
        """Held-out accuracy of always guessing the label most frequent in training."""
        most, _ = Counter(example.label for example in self.train).most_common(1)[0]
        return sum(example.label == most for example in self.held_out) / len(self.held_out)


def load(csv_file: Path | None, train: int, held_out: int, seed: int = 0) -> Texts:
    """Return shuffled examples, at most ``train`` and ``held_out`` of them.

    Args:
        csv_file: a file with the columns ``text`` and ``label``; None for docstrings.
        train: number of examples to train on, at most.
        held_out: number of examples to judge by, at most, and at most a fifth of all.
        seed: of the shuffle.

    Raises:
        DataError: the file cannot be read, lacks a column, or holds too little.
    """
    pairs = read_csv(csv_file) if csv_file else largest(docstrings(), PACKAGES)
    labels = sorted({label for _, label in pairs})
    examples = [Example(text, labels.index(label)) for text, label in pairs]
    random.Random(seed).shuffle(examples)  # noqa: S311 (a shuffle, not a secret)
    held = min(held_out, max(1, len(examples) // 5))
    return Texts(labels, examples[held : held + train], examples[:held])


def docstrings() -> Iterator[tuple[str, str]]:
    """Walk the standard library: every docstring once, with the package that it comes from."""
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    for file in sorted(root.glob("*/**/*.py")):
        parts = file.relative_to(root).parts
        if SKIPPED.intersection(parts) or not (root / parts[0] / "__init__.py").exists():
            continue
        for text in docstrings_in(file.read_text(encoding="utf-8", errors="replace")):
            if text not in seen:
                seen.add(text)
                yield text, parts[0]


def docstrings_in(source: str) -> Iterator[str]:
    """Walk the docstrings of a module, its classes and functions; those of a few words at least."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # the library keeps templates and broken samples for its own tests
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text.split()) >= 3:
                yield text


def largest(pairs: Iterator[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Keep the ``count`` most frequent labels."""
    everything = list(pairs)
    kept = {name for name, _ in Counter(label for _, label in everything).most_common(count)}
    return [(text, label) for text, label in everything if label in kept]


def read_csv(file: Path) -> list[tuple[str, str]]:
    """Read the columns ``text`` and ``label``.

    Raises:
        DataError: see :func:`load`.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: is not CSV text in UTF-8: {error}") from None
    missing = [name for name in ("text", "label") if name not in columns]
    if missing:
        found = ", ".join(columns) or "none"
        raise DataError(
            f"{file}: must have the columns text,label (missing {missing[0]!r}; found: {found})"
        )
    pairs = []
    for number, row in enumerate(rows, 2):
        text, label = (row["text"] or "").strip(), (row["label"] or "").strip()
        if not text or not label:
            raise DataError(f"{file}: row {number} has no {'label' if text else 'text'}")
        pairs.append((text, label))
    if len(pairs) < 10 or len({label for _, label in pairs}) < 2:
        raise DataError(f"{file}: must hold at least 10 rows and 2 labels (got {len(pairs)} rows)")
    return pairs
