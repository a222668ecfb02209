"""Plain dicts and lists -> YAML, such that reading it gives the same again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import yaml

from optimplug.recipe.text.reader import YAML_FORMS

__all__ = ["as_yaml"]


def as_yaml(content: Mapping[str, Any]) -> str:
    """Return a recipe's content as YAML text.

    Example:
        >>> print(as_yaml({"optimizer": {"name": "AdamW", "lr": 1e-3}, "schedule": "1e-3"}), end="")
        optimizer: {name: AdamW, lr: 0.001}
        schedule: '1e-3'
    """
    return yaml.dump(
        content,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,  # what holds values alone in a line, the rest in blocks
        width=100,
    )


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what a recipe's reader would take for something else than text."""

    yaml_implicit_resolvers: ClassVar = YAML_FORMS  # type: ignore[misc] # as in the reader

    def ignore_aliases(self, data: Any) -> bool:
        """Write out what stands in several places: nobody wants to read anchors."""
        return True
