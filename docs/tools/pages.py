"""Pages made from the code: an optimizer each, the API, the command line, examples, and more."""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import click
import typer

from optimplug import errors
from optimplug._core.optim.profile import Profile, profile_of
from optimplug.cli import app
from optimplug.optim import MultiOptimizer, Optimizer
from optimplug.show.optimizers import rate, state
from tools import public
from tools.arguments import as_cell, page_of_arguments

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LANGUAGES = {".py": "python", ".yaml": "yaml"}
WHOLE = {
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages of the repository that the site has too: where they are there, and on the site."""

PICTURES = {"optimizers.png": "benchmarks/optimizers.png"}
"""Pictures on those pages: where they are on the site, and in the repository."""


def generated() -> dict[str, str]:
    """Return every generated page: its path under docs, and its text."""
    return {
        **{f"optimizers/{cls.__name__}.md": optimizer(cls) for cls in optimizers()},
        **{f"api/{module}.md": api(module) for module in public.MODULES},
        "arguments.md": page_of_arguments(),
        "command-line.md": command_line(),
        **{f"examples/{one.name}.md": example(one) for one in examples()},
        **{page: (ROOT / source).read_text(encoding="utf-8") for source, page in WHOLE.items()},
    }


def optimizers() -> list[type[Optimizer]]:
    """Return the optimizers that have a page."""
    from optimplug import optim

    found = [getattr(optim, name) for name in public.names("optimplug.optim")]
    return [
        cls
        for cls in found
        if issubclass(cls, Optimizer) and cls not in (Optimizer, MultiOptimizer)
    ]


def optimizer(cls: type[Optimizer]) -> str:
    """Return the page of an optimizer: what it is for, a recipe with it, and its docstring."""
    profile = profile_of(cls)
    own = profile.facts
    facts = {
        "For": own.purpose,
        "Not for": own.not_for,
        "Usual `lr`, as a multiple of AdamW's (or what it is instead)": rate(profile),
        "Bytes of state for each parameter": state(profile),
        "Ways to run a step": ", ".join(profile.executions),
        "Sharding": ", ".join(profile.sharding) or "none",
        "Paper": f"[{own.paper}]({own.link})",
    }
    lines = "\n".join(f"- **{key}:** {value}" for key, value in facts.items() if value)
    return (
        f"# {cls.__name__}\n\n{lines}\n\nIn a recipe:\n\n```yaml\n{recipe(profile)}```\n\n"
        "[Which one?](../optimizers.md) compares all of them.\n\n"
        f"::: optimplug.optim.{cls.__name__}\n    options:\n      heading_level: 2\n"
        "      show_root_full_path: true\n      members: false\n"
    )


def recipe(profile: Profile) -> str:
    """Return the shortest recipe with an optimizer that is right for any model."""
    from optimplug import optim

    cls = getattr(optim, profile.name)
    parameters = inspect.signature(cls).parameters
    default = parameters["lr"].default
    rated = f", lr: {default!r}" if isinstance(default, float) else ""
    if "relative_step" in parameters:  # beside which a recipe asks for a rate
        rated = ", lr: 0.001, relative_step: false"
    fallback = ", fallback: {name: AdamW, lr: 0.001}" if cls.made_for is not None else ""
    return f"optimizer: {{name: {profile.name}{rated}{fallback}}}\n"


def api(module: str) -> str:
    """Return the page of a public module: all that can be imported from it."""
    about = inspect.getdoc(importlib.import_module(module)) or ""
    first = about.split("\n\n")[0].replace("``", "`")
    text = f"# {module}\n\n{first}\n\n"
    if module == "optimplug.optim":
        links = ", ".join(
            f"[`{cls.__name__}`](../optimizers/{cls.__name__}.md)" for cls in optimizers()
        )
        text += f"Each optimizer has a page of its own: {links}.\n\n"
    others = public.elsewhere(module)
    if others:
        links = ", ".join(f"[`{name}`][{target}]" for name, target in others.items())
        text += f"Also from here: {links}.\n\n"
    with_page = {cls.__name__ for cls in optimizers()} if module == "optimplug.optim" else set()
    for name in public.names(module):
        if name not in with_page:
            text += f"::: {module}.{name}\n    options:\n      inherited_members: true\n\n"
    if module == "optimplug":
        tree = (inspect.getdoc(errors) or "").split("\n\n")
        drawn = textwrap.dedent(tree[2])
        text += f"## How errors are related\n\n```text\n{drawn}\n```\n\n{tree[3]}\n"
    return text


def command_line() -> str:
    """Return the page of the command ``optimplug``, from the texts of its ``--help``."""
    command = typer.main.get_command(app)
    assert isinstance(command, click.Group) or hasattr(command, "commands")
    text = "# Command line\n\n" + _help(command.help)
    for name, one in command.commands.items():
        text += f"\n## optimplug {name}\n\n{_help(one.help)}"
        context = click.Context(one, info_name=f"optimplug {name}")
        found = [parameter.get_help_record(context) for parameter in one.get_params(context)]
        rows = [_option(*record) for record in found if record and record[0] != "--help"]
        if rows:
            text += "\n| argument | meaning |\n|---|---|\n" + "".join(rows)
    return text


def _option(name: str, meaning: str) -> str:
    written = html.escape(name).replace("|", "&#124;")  # in backticks nothing escapes a bar
    return f"| <code>{written}</code> | {as_cell(meaning)} |\n"


def _help(text: str | None) -> str:
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n")]
    as_code = [re.sub("^Example: (.+)$", r"Example: `\1`", part) for part in paragraphs]
    return "".join(f"{part}\n\n" for part in as_code)


def examples() -> list[Path]:
    """Return the folders of examples."""
    return sorted(one for one in EXAMPLES.iterdir() if any(one.glob("*.py")))


def example(folder: Path) -> str:
    """Return the page of an example: all its files, those that train first."""
    files = sorted(
        (file for file in folder.iterdir() if file.suffix in LANGUAGES),
        key=lambda file: (file.suffix != ".yaml", not file.stem.startswith("train"), file.name),
    )
    text = f"# {folder.name}\n\nThe files of `examples/{folder.name}`.\n"
    for file in files:
        source = file.read_text(encoding="utf-8")
        about = ast.get_docstring(ast.parse(source)) if file.suffix == ".py" else None
        text += f"\n## {file.name}\n\n"
        text += f"{about.replace('``', '`')}\n\n" if about else ""
        text += f"```{LANGUAGES[file.suffix]}\n{source.rstrip()}\n```\n"
    return text


def rewritten(page: str, text: str) -> str:
    """Return a page whose links to files of the repository lead to their pages on the site."""
    up = "../" * page.count("/")

    def link(found: re.Match[str]) -> str:
        target, anchor = found[1].partition("#")[::2]
        source = _in_repository(page, target)
        if source in WHOLE:
            return f"]({up}{WHOLE[source]}{'#' + anchor if anchor else ''})"
        if source.startswith("examples/"):
            return f"]({up}examples/{source.split('/')[1]}.md)"
        if source.startswith("docs/") and page in WHOLE.values():
            return f"]({up}{source.removeprefix('docs/')}{'#' + anchor if anchor else ''})"
        return found[0]

    return re.sub(r"\]\(((?!https?:|#|mailto:)[^)\s]+)\)", link, text)


def _in_repository(page: str, target: str) -> str:
    """Return where a link leads, from the root of the repository."""
    origin = {there: source for source, there in WHOLE.items()}.get(page, f"docs/{page}")
    found = (ROOT / origin).parent / target
    parts: list[str] = []
    for part in found.relative_to(ROOT).parts:
        if part == "..":
            del parts[-1:]
        else:
            parts.append(part)
    return "/".join(parts)
