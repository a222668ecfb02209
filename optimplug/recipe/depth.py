"""Which layer a parameter belongs to, found in the model's own lists of layers."""

from __future__ import annotations

from torch import nn

__all__ = ["depths"]


def depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter by its full name, tied names included.

    Depth 0 is what comes before the layers (embeddings), 1 to n are the layers, n + 1 is what comes
    after them (pooler, head), in the order in which the model registers them.

    Raises:
        ValueError: the model has no list of layers, or several that do not follow each other.

    Example:
        >>> depths(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
        {'0.weight': 1, '0.bias': 1, '2.weight': 2, '2.bias': 2}
    """
    layers = _layers(model)
    found: dict[str, int] = {}
    entered = False
    for name, _ in model.named_parameters(remove_duplicate=False):
        inside = next((i for i, prefix in enumerate(layers, 1) if name.startswith(prefix)), None)
        entered = entered or inside is not None
        found[name] = inside if inside is not None else (len(layers) + 1 if entered else 0)
    return found


def _layers(model: nn.Module) -> list[str]:
    """Return the name prefixes of the layers, lowest first."""
    stacks = _outermost({n: m for n, m in model.named_modules() if _is_stack(m)})
    # Lists of whole blocks are the tower; a list of bare layers beside them is a part (heads, ...).
    stacks = {n: m for n, m in stacks.items() if _holds_blocks(m)} or stacks
    if not stacks:
        stacks = _outermost({n: m for n, m in model.named_modules() if _is_single_block(m)})
    if not stacks:
        if isinstance(model, nn.Sequential):
            return [f"{n}." for n, child in model.named_children() if _has_parameters(child)]
        raise ValueError(
            f"no list of layers (nn.ModuleList or nn.Sequential of equal modules) was found in "
            f"{type(model).__name__}; write one rule per part instead, each with its own lr_scale"
        )
    parents = {name.rpartition(".")[0] for name in stacks}
    if len(parents) > 1:
        raise ValueError(
            f"{type(model).__name__} has {len(stacks)} lists of layers that are not one tower "
            f"({', '.join(stacks)}); write one rule per part instead, each with its own lr_scale"
        )
    return [
        f"{stack}.{child}." if stack else f"{child}."
        for stack, module in stacks.items()
        for child, layer in module.named_children()
        if _has_parameters(layer)
    ]


def _is_stack(module: nn.Module) -> bool:
    layers = [child for child in module.children() if _has_parameters(child)]
    return (
        isinstance(module, nn.ModuleList | nn.Sequential)
        and len(layers) >= 2
        and len({type(layer) for layer in layers}) == 1
    )


def _is_single_block(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) == 1 and _holds_blocks(module)


def _holds_blocks(stack: nn.Module) -> bool:
    return any(True for layer in stack.children() for _ in layer.children())


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _outermost(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in modules.items()
        if not any(o != name and name.startswith(f"{o}." if o else "") for o in modules)
    }
