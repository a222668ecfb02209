"""A parameter's state with its moments as numbers, as state dicts have it, and with codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.codes import BLOCK, CODES
from optimplug._core.optim.rule import Rule, coded_names
from optimplug._core.optim.shards import is_sharded, local, shard_like
from optimplug.errors import StateError

__all__ = ["gatherable", "with_codes", "with_numbers"]

_BY_TYPE = {code.dtype: code for code in CODES.values()}
_CODES, _SCALES = coded_names("")


def with_numbers(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state in which each moment in codes is a float32 tensor under its own name.

    Raises:
        StateError: codes and scales do not belong together.

    Example:
        >>> kept = {"exp_avg_codes": torch.tensor([127], dtype=torch.int8)}
        >>> with_numbers({**kept, "exp_avg_scales": torch.tensor([0.5])})
        {'exp_avg': tensor([0.5000])}
    """
    coded = {key.removesuffix(_CODES) for key in map(str, kept) if key.endswith(_CODES)}
    coded = {name for name in coded if coded_names(name)[1] in kept}
    if not coded:
        return dict(kept)
    found = {}
    for key, value in kept.items():
        name = str(key).removesuffix(_CODES)
        if name != key and name in coded:
            found[name] = _numbers(name, value, kept[coded_names(name)[1]])
        elif str(key).removesuffix(_SCALES) not in coded and key not in coded:
            found[key] = value  # numbers beside codes are somebody's own: a step knows the codes
    return found


def gatherable(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state whose shards can be gathered: no backend of torch's does so with int16."""
    return {
        key: value.to(torch.int32)
        if isinstance(value, Tensor) and is_sharded(value) and value.dtype == torch.int16
        else value
        for key, value in kept.items()
    }


def with_codes(kept: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    """Return a state in which the moments that a rule keeps in codes are these.

    Raises:
        StateError: one that is never negative has a negative number.
    """
    found: dict[str, Any] = {}
    for key, value in kept.items():
        if key not in rule.codes or not isinstance(value, Tensor):
            found[key] = value
            continue
        if rule.codes[key] == "unsigned" and bool((local(value) < 0).any()):
            raise StateError(f"{key} must not be negative to be kept in 8 bits")
        numbers = local(value).to(torch.float32).contiguous()
        (codes,), (scales,) = CODES[rule.codes[key]].encode([numbers])
        names = coded_names(key)
        found.update({names[0]: shard_like(codes, value), names[1]: scales.clone()})
    return found


def _numbers(name: str, codes: Any, scales: Any) -> Tensor:
    fits = isinstance(codes, Tensor) and isinstance(scales, Tensor) and codes.dtype in _BY_TYPE
    if not fits or scales.numel() != -(-local(codes).numel() // BLOCK):
        raise StateError(
            f"{name} must be kept in codes, int8 or uint8, and a scale for each {BLOCK} of them "
            f"(got {_form(codes)} and {_form(scales)})"
        )
    code = _BY_TYPE[codes.dtype]
    flat = scales.detach().to(device=codes.device, dtype=torch.float32).reshape(-1)
    (found,) = code.decode([local(codes).detach()], [flat])
    return shard_like(found, codes)


def _form(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{value.dtype} with {value.numel()} elements"
