"""The names of parameters, whatever wrapped the model as they were saved."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from optimplug._core.internals import WRAPPED_AS

__all__ = ["bare_name", "match_names"]

# What PEFT puts around a model, around a layer with an adapter, and around one that is trained
# beside its original.
_ADAPTED = ("base_layer", "modules_to_save.default")
_AROUND = ("module", "base_model.model")
_INSIDE = re.compile(
    "|".join(rf"(?<![^.]){re.escape(name)}\." for name in (*WRAPPED_AS, *_ADAPTED))
)


def bare_name(name: str) -> str:
    """Return a parameter's name without those of wrappers.

    Example:
        >>> bare_name("module._orig_mod.head.weight")
        'head.weight'
        >>> bare_name("base_model.model.q_proj.base_layer.weight")
        'q_proj.weight'
    """
    found, before = name, ""
    while found != before:
        before = found
        found = _INSIDE.sub("", found)
        for around in _AROUND:
            found = found.removeprefix(f"{around}.")
    return found


def match_names(own: Collection[str], saved: Collection[str]) -> tuple[dict[str, str], str | None]:
    """Find each parameter's name in a checkpoint.

    The same name, or else the same without wrappers, if that is clear. Where no name is there,
    all may have moved into one module or out of it (``model.head.weight``, ``head.weight``).

    Returns:
        The saved name by each own one that is there, and what had to be taken off or added to all,
        in words; None for nothing.

    Example:
        >>> match_names(["head.weight"], ["module.head.weight"])
        ({'head.weight': 'module.head.weight'}, None)
        >>> match_names(["net.a.w", "net.b.w"], ["a.w", "b.w"])
        ({'net.a.w': 'a.w', 'net.b.w': 'b.w'}, "'net.' stands before every name now")
    """
    found = {name: name for name in own if name in set(saved)}
    ours = _by_bare_name(name for name in own if name not in found)
    theirs = _by_bare_name(name for name in saved if name not in found)
    found |= {ours[bare]: theirs[bare] for bare in ours if bare in theirs}
    if found or not own or not saved:
        return found, None
    for longer, shorter, words in ((ours, theirs, "now"), (theirs, ours, "there")):
        prefix = _prefix(longer, shorter)
        if prefix is not None:
            pairs = {n: s for s in shorter if (n := f"{prefix}{s}") in longer}
            by_own = pairs if words == "now" else {s: n for n, s in pairs.items()}
            moved = {ours[n]: theirs[s] for n, s in by_own.items()}
            return moved, f"{prefix!r} stands before every name {words}"
    return {}, None


def _by_bare_name(names: Iterable[str]) -> dict[str, str]:
    """Return names by what they are without wrappers; not those that are alike then."""
    found: dict[str, str] = {}
    alike = set()
    for name in names:
        bare = bare_name(name)
        alike |= {bare} if bare in found else set()
        found[bare] = name
    return {bare: name for bare, name in found.items() if bare not in alike}


def _prefix(longer: Mapping[str, str], shorter: Mapping[str, str]) -> str | None:
    """Return what stands before all of the shorter names, where they are among the longer."""
    first = next(iter(shorter), None)
    if first is None:
        return None
    ends = [name.removesuffix(first) for name in longer if name.endswith(f".{first}")]
    return next((p for p in ends if all(f"{p}{name}" in longer for name in shorter)), None)
