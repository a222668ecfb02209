"""Groups that join in mid-run: Lightning's finetuning callbacks unfreeze a backbone so."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from optimplug.recipe import RecipeScheduler

__all__ = ["follow_added_groups"]


def follow_added_groups(model: nn.Module, scheduler: RecipeScheduler) -> None:
    """Take in groups without names, and let them follow the schedule from the rate they come with.

    torch refuses them in an optimizer whose parameters are named, as a recipe's are.

    Args:
        model: whose names the recipe is written in.
        scheduler: of the optimizer that they join.
    """
    optimizer = scheduler.optimizer
    add = optimizer.add_param_group
    named = any("param_names" in group for group in optimizer.param_groups)

    def add_named(group: dict[str, Any]) -> None:
        names = {id(p): name for name, p in model.named_parameters()}
        params = group["params"]
        found = [params] if isinstance(params, torch.Tensor) else list(params)
        if named and all(id(p) in names for p in found):
            group = {**group, "params": [(names[id(p)], p) for p in found]}
        add(group)
        scheduler.admit()

    optimizer.add_param_group = add_named  # type: ignore[assignment]
