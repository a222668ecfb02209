"""The command that gives a recipe to start from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from optimplug.cli.shared import app, bad_usage, show
from optimplug.errors import did_you_mean

__all__ = ["init", "starters"]


def starters() -> dict[str, str]:
    """Return the recipes to start from, by name: commented YAML; the first line says what for."""
    folder = files(__package__).joinpath("recipes")
    found = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    texts = {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in found}
    return dict(sorted(texts.items()))


@app.command()
def init(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which recipe; without it, show the list.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it into this file, not to stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Give a recipe to start from: short, commented, for a common case.

    Example: optimplug init

    Example: optimplug init bert-classify -o bert.yaml
    """
    known = starters()
    if name is None:
        if output is not None or force:
            option = "--force" if output is None else "--output"
            raise typer.BadParameter("is for a recipe: give its NAME too", param_hint=option)
        show(
            "\n".join(f"{each:<{max(map(len, known))}}  {_what_for(known[each])}" for each in known)
        )
        return
    if name not in known:
        message = f"no recipe {name!r}{did_you_mean(name, list(known))}"
        raise typer.BadParameter(message, param_hint="NAME")
    if output is None:
        if force:
            raise typer.BadParameter("is for a file: give --output too", param_hint="--force")
        show(known[name].rstrip())
        return
    _write(output, known[name], force)
    show(
        f"{output}: written; see what it does with: optimplug plan {output} --model ... --steps ..."
    )


def _what_for(text: str) -> str:
    return text.splitlines()[0].removeprefix("# ")


def _write(path: Path, text: str, force: bool) -> None:
    # "x" fails where there is a file, also one that has come a moment ago.
    with bad_usage("--output", OSError):
        try:
            with path.open("w" if force else "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise OSError(f"{path} is there already; --force overwrites it") from None
