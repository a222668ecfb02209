"""Groups that join in mid-run: Lightning's finetuning callbacks unfreeze a backbone so."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from optimplug.recipe import RecipeScheduler

__all__ = ["let_groups_join"]


def let_groups_join(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: RecipeScheduler
) -> None:
    """Take in groups without names, and let them follow the schedule from the rate they come with.

    torch refuses them in an optimizer whose parameters are named, as a recipe's are.

    Args:
        model: whose names the recipe is written in.
        optimizer: the recipe's.
        scheduler: the recipe's.
    """
    add = optimizer.add_param_group

    def add_named(group: dict[str, Any]) -> None:
        names = {id(p): name for name, p in model.named_parameters()}
        params = group["params"]
        found = [params] if isinstance(params, torch.Tensor) else list(params)
        if all(id(p) in names for p in found):
            group = {**group, "params": [(names[id(p)], p) for p in found]}
        add(group)
        scheduler.admit()

    optimizer.add_param_group = add_named  # type: ignore[assignment]
