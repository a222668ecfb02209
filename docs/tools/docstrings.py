"""Docstrings as Markdown: formulas as MathML, which needs no script, and roles as links."""

from __future__ import annotations

import html
import inspect
import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

from optimplug import optim
from optimplug.recipe.json_schema import argument_descriptions
from tools.public import identifiers

# Markdown would read these inside of a formula.
_SPECIAL = str.maketrans({c: f"&#{ord(c)};" for c in "*_`[]\\"})


class Markdown(griffe.Extension):
    """Turns what is written for Sphinx into Markdown, before mkdocstrings reads it."""

    def __init__(self) -> None:
        super().__init__()
        self._links = {name.rpartition(".")[2]: name for name in reversed(identifiers())}

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change an object's docstring where it stands."""
        if obj.docstring is not None:
            text = spelt_out(obj.name, obj.docstring.value)
            obj.docstring.value = as_markdown(text, self._links)


def spelt_out(owner: str, text: str) -> str:
    """Return a docstring with the description of each argument that is "as in" another class.

    Args:
        owner: the name of the class that it belongs to.
        text: the docstring.
    """
    other: dict[str, str] = {}
    lines = []
    for line in text.splitlines():
        found = _AS_IN.fullmatch(line)
        if found is None:
            lines.append(line)
            continue
        indent, key, name, rest = found.groups()
        if name:
            other = argument_descriptions(getattr(optim, name))
        lines.append(f"{indent}{key}: {other[key]}" if key in other else line)
        if rest == ", like all that is not listed here.":
            listed = re.findall(rf"^{indent}(\w+): ", text, re.MULTILINE)
            takes = inspect.signature(getattr(optim, owner)).parameters
            missing = [k for k in other if k in takes and k not in listed]
            lines += [f"{indent}{k}: {other[k]}" for k in missing]
    return "\n".join(lines)


_AS_IN = re.compile(
    r"( +)(\w+): "
    r"(?:as in :class:`[~.\w]*?(\w+)`(\.|, with the next two\.|, like all .*)|likewise\.)"
)


def as_markdown(text: str, links: dict[str, str]) -> str:
    """Return a docstring as Markdown.

    Args:
        text: the docstring.
        links: where the documentation of a public name is, by its last part.
    """
    text = re.sub(
        r"^( *)\.\. math::\n((?:\n|\1 +.*\n?)+)",
        lambda found: f"{found[1]}{_block(found[2])}\n\n",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(r":math:`([^`]+)`", _inline, text)
    text = re.sub(
        r":(?:class|meth|func|attr|data|mod):`([^`]+)`",
        lambda found: _reference(found[1], links),
        text,
    )
    # What Sphinx takes for an example, griffe takes for a note.
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    text = re.sub(r"^( *)Example::$", r"\1For example::", text, flags=re.MULTILINE)
    return re.sub(r"^( *)(.*)::\n\n((?:\n|\1 +.*(?:\n|\Z))+)", _literal, text, flags=re.MULTILINE)


def _literal(found: re.Match[str]) -> str:
    """Return a block that is to be shown as it is."""
    indent, before, block = found.groups()
    code = textwrap.dedent(block).strip("\n")
    language = "text" if "──" in code else "python"
    fenced = textwrap.indent(f"```{language}\n{code}\n```", indent)
    return f"{indent}{before}:\n\n{fenced}\n\n" if before else f"{fenced}\n\n"


def mathml(latex: str, display: str = "inline") -> str:
    """Return a formula as MathML that Markdown leaves as it is."""
    return convert(" ".join(latex.split()), display=display).translate(_SPECIAL)


def _inline(found: re.Match[str]) -> str:
    # At the start of a line, Markdown would take a bare formula for a paragraph of its own.
    return f'<span class="formula-inline">{mathml(found[1])}</span>'


def _block(latex: str) -> str:
    body = textwrap.dedent(latex).strip()
    if "&" in body or r"\\" in body:
        body = rf"\begin{{align*}}{body}\end{{align*}}"
    return f'<div class="formula">{mathml(body, "block")}</div>'


def _reference(target: str, links: dict[str, str]) -> str:
    *path, last = target.lstrip("~.").split(".")
    if last in links:
        return f"[`{last}`][{links[last]}]"
    if path and path[-1] in links:
        return f"[`{path[-1]}.{last}`][{links[path[-1]]}]"
    return f"`{html.escape(target.lstrip('~.'))}`"
