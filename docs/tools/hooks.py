"""What mkdocs calls while it builds the site; see mkdocs.yml."""

from __future__ import annotations

import re
import sys
import zlib
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools import pages, public


def on_config(config: Any) -> Any:
    """List the pages that are made from the code below Reference."""
    made: dict[str, list[Any]] = {}
    for path in pages.generated():
        folder, _, name = path.rpartition("/")
        if folder:
            made.setdefault(folder, []).append({name.removesuffix(".md"): path})
    (reference,) = (part["Reference"] for part in config["nav"] if "Reference" in part)
    titles = {"optimizers": "Optimizers", "api": "Python", "examples": "Examples"}
    reference += [{title: made[folder]} for folder, title in titles.items()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from the code; stop where something public has no docstring."""
    missing = public.undocumented()
    if missing:
        raise PluginError(f"these are public and have no docstring: {', '.join(missing)}")
    for path, text in pages.generated().items():
        files.append(File.generated(config, path, content=text))
    for path, source in pages.PICTURES.items():
        files.append(File.generated(config, path, abs_src_path=str(pages.ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to the repository's files lead to their pages."""
    path = page.file.src_uri
    if path == "optimizers.md":
        page.meta["hide"] = ["toc"]  # its tables need the width
        markdown = re.sub(
            r"^\| `(\w+)` \|", r"| [`\1`](optimizers/\1.md) |", markdown, flags=re.MULTILINE
        )
    return pages.rewritten(path, markdown)


def on_post_build(config: Any) -> None:
    """Stop where something public is on no page."""
    inventory = (Path(config["site_dir"]) / "objects.inv").read_bytes()
    body = zlib.decompress(inventory.split(b"\n", 4)[4]).decode()
    there = {line.split(" ")[0] for line in body.splitlines()}
    missing = sorted(set(public.identifiers()) - there)
    if missing:
        raise PluginError(f"these are public and on no page: {', '.join(missing)}")
