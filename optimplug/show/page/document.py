"""What every page has around its body: nothing is fetched, and no script runs but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from importlib.resources import files

__all__ = ["document"]


def document(title: str, body: Iterable[str], script: str | None = None) -> str:
    """Return a whole page.

    Args:
        title: as text.
        body: its parts as HTML, in which whatever somebody else has named is escaped.
        script: the file beside this one that is run in it; None for none.
    """
    code = _read(script) if script else ""
    # The browser runs the script of this hash alone: should a name ever get past the escaping, what
    # is in it is not run.
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    runs = f"'sha256-{digest}'" if script else "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {runs}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_read('page.css')}</style></head><body>",
            *body,
            f"<script>{code}</script></body></html>" if script else "</body></html>",
            "",
        ]
    )


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
