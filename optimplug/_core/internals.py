"""Every private part of torch that the core uses, each with the reason.

Nothing here is promised by torch: ``tests/test_internals.py`` tries each one, and names the release
that took it away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = [
    "EVERY_CONVOLUTION",
    "EVERY_NORM_BY_BATCH",
    "children_by_name",
    "foreach_operator",
    "forget_steps",
    "fused_adam",
    "fused_adamw",
    "fused_sgd",
    "in_dispatch_mode",
    "is_flattened",
    "load_post_hooks",
    "load_pre_hooks",
    "note_steps",
    "outside_graphs",
    "parameters_by_name",
    "was_stepped",
]

# One call that runs a whole rule over many tensors. The public optimizers use these operators for
# ``fused=True`` and give no other way to reach them.
fused_adam: Callable[..., None] = torch._fused_adam_
fused_adamw: Callable[..., None] = torch._fused_adamw_
fused_sgd: Callable[..., None] = torch._fused_sgd_

# The bases of every convolution (transposed ones too) and of every batch and instance norm. torch
# exports only the classes that derive from them, a dozen each, and adds some now and then.
EVERY_CONVOLUTION: type[nn.Module] = nn.modules.conv._ConvNd
EVERY_NORM_BY_BATCH: type[nn.Module] = nn.modules.batchnorm._NormBase


def children_by_name(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the modules that a module holds itself, under every name.

    ``named_children`` leaves out a module that it has listed under another name.
    """
    return module._modules


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters that a module holds itself, under every name, in their order."""
    return module._parameters


def foreach_operator(name: str) -> Callable[..., Any]:
    """Return the form of an operation that works on a list of tensors: ``torch._foreach_mul_``.

    torch has no public name for these.
    """
    found: Callable[..., Any] = getattr(torch, f"_foreach_{name}")
    return found


def in_dispatch_mode() -> bool:
    """Tell whether something sees every operation, or does another in its place: a trace, fakes.

    What works on memory past torch's operators would not be seen. torch shows no mode publicly.
    """
    return bool(torch._C._len_torch_dispatch_stack())


def is_flattened(p: torch.Tensor) -> bool:
    """Tell whether a parameter is a flat one of FSDP's first version, or a part of one.

    It is a plain tensor that holds this process's shard; only this mark of FSDP's says so.
    """
    return getattr(p, "_fsdp_flattened", False)


def load_pre_hooks(optimizer: torch.optim.Optimizer) -> list[Callable[..., Any]]:
    """Return the hooks of ``register_load_state_dict_pre_hook``.

    Whoever replaces ``load_state_dict`` has to call them, and torch shows them nowhere.
    """
    return list(optimizer._optimizer_load_state_dict_pre_hooks.values())


def load_post_hooks(optimizer: torch.optim.Optimizer) -> list[Callable[..., Any]]:
    """Return the hooks of ``register_load_state_dict_post_hook``; see :func:`load_pre_hooks`."""
    return list(optimizer._optimizer_load_state_dict_post_hooks.values())


# Keeps a function out of the graphs of torch.compile: it runs as it is between two of them. The
# public form of this imports the compiler at once, which takes longer than to import torch.
outside_graphs: Callable[[Callable[..., Any]], Callable[..., Any]] = torch._disable_dynamo  # type: ignore[attr-defined]


def note_steps(optimizer: torch.optim.Optimizer) -> RemovableHandle | None:
    """Let an optimizer note that it has been stepped, under the name where torch looks for it.

    torch's own schedulers wrap ``step`` for this; two kinds of schedulers on one optimizer must
    agree, so the name is torch's.

    Returns:
        What :func:`forget_steps` takes; None where somebody else has the steps noted.
    """
    if hasattr(optimizer, "_opt_called"):
        return None
    optimizer._opt_called = False  # type: ignore[attr-defined]
    return optimizer.register_step_post_hook(_note_step)


def forget_steps(optimizer: torch.optim.Optimizer, noted: RemovableHandle | None) -> None:
    """Leave an optimizer as it was before :func:`note_steps`, whose result this takes."""
    if noted is not None:
        noted.remove()
        vars(optimizer).pop("_opt_called", None)


def was_stepped(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer has noted a step; where nobody has it noted, that is not known."""
    return getattr(optimizer, "_opt_called", True)


def _note_step(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    optimizer._opt_called = True  # type: ignore[attr-defined]
