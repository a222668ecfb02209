"""What all parts of a recipe have in common: strict models, and values of two forms."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["FORMS", "HAVE_FORMS", "PartError", "Spec", "Words", "form"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Words = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
"""One string, or a list of which any may apply."""


class Spec(BaseModel):
    """A mapping in a recipe: of these keys alone, unless a part allows others."""

    # strict: "1e-3" in quotes is a text, and so a mistake. frozen: what was checked stays so.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


FORMS = ("<value>", "<mapping>")
HAVE_FORMS = ("layer_decay", "freeze", "resume")
"""The keys whose value may be of either form; the errors told are of the one that was meant."""


def form(value: Any) -> str:
    """Return the form of a value.

    Without it, pydantic would try both and report what is wrong with each.
    """
    return FORMS[isinstance(value, dict | BaseModel)]


class PartError(ValueError):
    """Something is wrong with a part of what was looked at."""

    def __init__(self, message: str, *part: int | str) -> None:
        super().__init__(message)
        self.part = part
