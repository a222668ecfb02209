"""Every private part of torch that the core uses, each with the reason.

Nothing here is promised by torch: ``tests/test_internals.py`` tries each one, and names the release
that took it away.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.hooks import RemovableHandle

from optimplug._core.tested import warn_if_untested

__all__ = [
    "EVERY_CONVOLUTION",
    "EVERY_NORM_BY_BATCH",
    "WRAPPED_AS",
    "buffers_by_name",
    "children_by_name",
    "first_after_step",
    "foreach_operator",
    "fused_adagrad",
    "fused_adam",
    "fused_adamw",
    "fused_sgd",
    "hook_step_of",
    "hooked_step",
    "in_dispatch_mode",
    "inside_wrapper",
    "is_flattened",
    "load_post_hooks",
    "load_pre_hooks",
    "outside_graphs",
    "parameters_by_name",
    "remembered_forms",
    "shard_start",
    "unhooked_step",
    "with_children",
]

warn_if_untested("torch")

# One call that runs a whole rule over many tensors. The public optimizers use these operators for
# ``fused=True`` and give no other way to reach them.
fused_adagrad: Callable[..., None] = torch._fused_adagrad_
fused_adam: Callable[..., None] = torch._fused_adam_
fused_adamw: Callable[..., None] = torch._fused_adamw_
fused_sgd: Callable[..., None] = torch._fused_sgd_

# What wrappers call the module that they wrap, in names that are nobody else's: torch.compile,
# FSDP's first version, activation checkpointing, Fabric.
WRAPPED_AS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")

# The bases of every convolution (transposed ones too) and of every batch and instance norm. torch
# exports only the classes that derive from them, a dozen each, and adds some now and then.
EVERY_CONVOLUTION: type[nn.Module] = nn.modules.conv._ConvNd
EVERY_NORM_BY_BATCH: type[nn.Module] = nn.modules.batchnorm._NormBase


def children_by_name(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the modules that a module holds itself, under every name.

    ``named_children`` leaves out a module that it has listed under another name.
    """
    return module._modules


def with_children(module: nn.Module, children: Mapping[str, nn.Module | None]) -> nn.Module:
    """Return a module of the same class with other children, and all else as it is there.

    It is no copy: parameters and children are the same objects. ``add_module`` would change the
    module itself, and ``copy.copy``, which a class may have made its own, shares its children.
    """
    other = object.__new__(type(module))
    vars(other).update({**vars(module), "_modules": dict(children)})
    return other


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters that a module holds itself, under every name, in their order."""
    return module._parameters


def buffers_by_name(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the buffers that a module holds itself: the dict in which it keeps them."""
    return module._buffers


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


def remembered_forms(tensors: Sequence[torch.Tensor]) -> Callable[..., bool] | None:
    """Return what tells whether tensors are of the kinds, types, shapes and strides of these.

    It holds none of them, and takes for each a part of what their attributes take one by one.
    None where torch has it no longer: then there is only the longer way.
    """
    guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    made: Any = getattr(guards, "TensorGuards", None)
    if made is None:
        return None
    made = made(
        *tensors,
        dynamic_dims_sizes=[list(t.shape) for t in tensors],
        dynamic_dims_strides=[list(t.stride()) for t in tensors],
    )
    check: Callable[..., bool] = made.check
    return check


def is_flattened(p: torch.Tensor) -> bool:
    """Tell whether a parameter is a flat one of FSDP's first version, or a part of one.

    It is a plain tensor that holds this process's shard; only this mark of FSDP's says so.
    """
    return getattr(p, "_fsdp_flattened", False)


def first_after_step(optimizer: torch.optim.Optimizer, hook: Callable[..., Any]) -> RemovableHandle:
    """Have a hook called after each step before all others, which may clear the gradients.

    A step hook can only be added at the end: unlike those of modules, it takes no ``prepend``.
    """
    handle = optimizer.register_step_post_hook(hook)
    hooks: Any = optimizer._optimizer_step_post_hooks  # an OrderedDict, whatever its annotation
    hooks.move_to_end(handle.id, last=False)
    return handle


def load_pre_hooks(optimizer: torch.optim.Optimizer) -> list[Callable[..., Any]]:
    """Return the hooks of ``register_load_state_dict_pre_hook``.

    Whoever replaces ``load_state_dict`` has to call them, and torch shows them nowhere.
    """
    return list(optimizer._optimizer_load_state_dict_pre_hooks.values())


def load_post_hooks(optimizer: torch.optim.Optimizer) -> list[Callable[..., Any]]:
    """Return the hooks of ``register_load_state_dict_post_hook``; see :func:`load_pre_hooks`."""
    return list(optimizer._optimizer_load_state_dict_post_hooks.values())


def hooked_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``step`` that calls the hooks, marked so that torch adds no second call of them.

    torch does the same with every class as its first optimizer is made, or is unpickled.
    """
    hooked: Any = torch.optim.Optimizer.profile_hook_step(step)
    hooked.hooked = True
    return hooked  # type: ignore[no-any-return]


def hook_step_of(optimizer_class: type[torch.optim.Optimizer]) -> None:
    """Let the ``step`` of a class call the hooks, and go past them where nobody listens.

    As :func:`hooked_step`, which torch puts there otherwise. But where there is no hook, of one
    optimizer or of all, and no profiler, what it does for them takes as long as to step a small
    tensor.
    """
    step: Any = optimizer_class.step
    if getattr(step, "hooked", False):
        return
    slow = hooked_step(step)

    @functools.wraps(step)
    def quick(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard = (
            torch.compiler.is_compiling()
            or _profiled()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _before_all
            or _after_all
        )
        return (slow if heard else step)(self, *args, **kwargs)

    quick.hooked = True  # type: ignore[attr-defined]
    optimizer_class.step = quick  # type: ignore[method-assign]


_before_all: Mapping[int, Any] = _global_optimizer_pre_hooks
_after_all: Mapping[int, Any] = _global_optimizer_post_hooks
_profiled: Callable[[], bool] = torch._C._autograd._profiler_enabled


def unhooked_step(optimizer_class: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """Return the ``step`` of a class as it was written; see :func:`hooked_step`."""
    step: Any = optimizer_class.step
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[no-any-return]


# Keeps a function out of the graphs of torch.compile: it runs as it is between two of them. The
# public form of this imports the compiler at once, which takes longer than to import torch.
outside_graphs: Callable[[Callable[..., Any]], Callable[..., Any]] = torch._disable_dynamo  # type: ignore[attr-defined]


# Wrappers of an optimizer that hide who owns its groups and have no hooks of their own, by their
# modules. Fabric's is told of nowhere, but it is what its ``setup`` returns.
_WRAPPERS = {
    "accelerate.optimizer": "AcceleratedOptimizer",
    "lightning.fabric.wrappers": "_FabricOptimizer",
    "lightning_fabric.wrappers": "_FabricOptimizer",
}


def inside_wrapper(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer in the wrapper of accelerate or Fabric, or the same one if in none."""
    for module, name in _WRAPPERS.items():
        if isinstance(optimizer, getattr(sys.modules.get(module), name, ())):
            return optimizer.optimizer  # type: ignore[attr-defined, no-any-return]
    return optimizer


def shard_start(
    shape: Sequence[int], mesh: Any, placements: Sequence[Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of the shard of a DTensor that is here, and where it starts on each axis.

    Nothing public says where a shard starts.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sizes, offsets = compute_local_shape_and_global_offset(tuple(shape), mesh, placements)
    return tuple(sizes), tuple(offsets)
