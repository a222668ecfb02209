"""What an execution that works on tensors lends to a rule: numbers of one type.

Memory may hold them in several types, and in codes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimplug._core.optim.rule import Rule, coded_names
from optimplug._core.optim.storage.codes import CODES

__all__ = ["CODING", "Columns", "lent"]

Columns: TypeAlias = Sequence[Sequence[Tensor]]
"""Parameters, gradients, then the states; of each one tensor for a parameter."""

CODING = 24
"""The bytes that it takes to make a code of a number."""


@contextmanager
def lent(rule: Rule, columns: Columns, k: Mapping[str, Any]) -> Iterator[list[list[Tensor]]]:
    """Lend a rule's operands, and write back what it has made of them, but for the gradients.

    Args:
        rule: whose operands they are.
        columns: as they are kept.
        k: the scalars of the update, each a number, or one for each tensor of a column.
    """
    if not rule.codes:
        with _in_one_type(columns, rule.widens) as operands:
            yield operands
        return
    names = ("p", "g", *rule.state_names)
    kept = dict(zip(names, columns, strict=True))
    operands_of = {name: kept[name] for name in ("p", "g")}
    for spec in rule.saved:
        if spec.name in rule.codes:
            codes, scales = (kept[name] for name in coded_names(spec.name))
            operands_of[spec.name] = CODES[rule.codes[spec.name]].decode(codes, scales)
        else:
            operands_of[spec.name] = kept[spec.name]
    with _in_one_type(list(operands_of.values()), rule.widens) as operands:
        yield operands
    for name, code in rule.codes.items():
        found = CODES[code].encode(operands_of[name], k["offset"])
        for own, new in zip(coded_names(name), found, strict=True):
            for tensor, value in zip(kept[own], new, strict=True):
                tensor.copy_(value)


@contextmanager
def _in_one_type(columns: Columns, widens: bool) -> Iterator[list[list[Tensor]]]:
    """Lend copies of the widest type where the types differ, and write them back after.

    Args:
        columns: of operands; gradients are not written back.
        widens: whether the type is float32 at least.
    """
    types = {tensor.dtype for column in columns for tensor in column}
    types |= {torch.float32} if widens else set()
    if len(types) == 1:
        yield [list(column) for column in columns]
        return
    wide = functools.reduce(torch.promote_types, types)
    copies = [[tensor.to(wide) for tensor in column] for column in columns]
    yield copies
    for i, (lent, own) in enumerate(zip(copies, columns, strict=True)):
        for copy, tensor in zip(lent, own, strict=True) if i != 1 else ():
            tensor.copy_(copy)  # nothing where they are one tensor
