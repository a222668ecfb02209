"""A parameter's state with its moments as numbers, as state dicts have it, and with codes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from optimplug._core.internals import in_dispatch_mode
from optimplug._core.optim.rule import Rule, coded_names
from optimplug._core.optim.shards import is_sharded, local, shard_like
from optimplug._core.optim.storage.codes import BLOCK, CODES, Code
from optimplug.errors import StateError

__all__ = ["gatherable", "with_codes", "with_numbers"]

_BY_TYPE = {code.dtype: code for code in CODES.values()}
_CODES, _SCALES = coded_names("")
_PART = 2**13 * BLOCK
"""As many numbers are turned at once: what that takes beside the result is small."""


def with_numbers(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state in which each moment in codes is a float32 tensor under its own name.

    Raises:
        StateError: codes and scales do not belong together.

    Example:
        >>> kept = {"exp_avg_codes": torch.tensor([127], dtype=torch.int8)}
        >>> with_numbers({**kept, "exp_avg_scales": torch.tensor([0.5])})
        {'exp_avg': tensor([0.5000])}
    """
    coded = _kept_in_codes(tuple(kept))
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


@lru_cache(maxsize=256)
def _kept_in_codes(keys: tuple[Any, ...]) -> frozenset[str]:
    """Return what is in codes in a state with these keys, which thousands of states share."""
    coded = {key.removesuffix(_CODES) for key in map(str, keys) if key.endswith(_CODES)}
    return frozenset(name for name in coded if coded_names(name)[1] in keys)


def gatherable(kept: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state whose shards can be gathered: no backend of torch's does so with int16."""
    narrow = {
        key: value.to(torch.int32)
        for key, value in kept.items()
        if isinstance(value, Tensor) and value.dtype == torch.int16 and is_sharded(value)
    }
    return {**kept, **narrow} if narrow else kept


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
        if rule.codes[key] == "unsigned" and _is_negative(local(value)):
            raise StateError(f"{key} must not be negative to be kept in 8 bits")
        codes, scales = _coded(CODES[rule.codes[key]], local(value))
        names = coded_names(key)
        found.update({names[0]: shard_like(codes, value), names[1]: scales})
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
    return shard_like(_decoded(code, local(codes).detach(), flat), codes)


def _coded(code: Code, numbers: Tensor) -> tuple[Tensor, Tensor]:
    found = [code.encode([part.float()]) for part in torch.split(numbers.reshape(-1), _PART)]
    codes = torch.cat([own for (own,), _ in found]).view(numbers.shape)
    return codes, torch.cat([scales for _, (scales,) in found])


def _decoded(code: Code, codes: Tensor, scales: Tensor) -> Tensor:
    found = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    wholes, own_codes = (torch.split(t.reshape(-1), _PART) for t in (found, codes))
    own_scales = torch.split(scales, _PART // BLOCK)
    for whole, own, of in zip(wholes, own_codes, own_scales, strict=True):
        whole.copy_(code.decode([own], [of])[0])
    return found


def _is_negative(value: Tensor) -> bool:
    """Tell whether some number is; no where there are none, but only their shape."""
    there = not (value.is_meta or in_dispatch_mode())
    return there and bool((value < 0).any())


def _form(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{value.dtype} with {value.numel()} elements"
