"""Kinds of modules and parameters: norms, biases, embeddings."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import nn

from optimplug._core.internals import EVERY_CONVOLUTION, EVERY_NORM_BY_BATCH
from optimplug.recipe.parameters.code.forward import calls, words

__all__ = [
    "FAMILIES",
    "families",
    "is_bias",
    "is_norm",
    "is_transposed",
    "is_vector",
    "unknown_kinds",
]

FAMILIES: dict[str, tuple[type[nn.Module], ...]] = {
    "norm": (
        nn.LayerNorm,
        nn.RMSNorm,
        nn.GroupNorm,
        EVERY_NORM_BY_BATCH,
    ),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "linear": (nn.Linear, nn.Bilinear),
    "conv": (EVERY_CONVOLUTION,),
}

# The words by which a norm is known that a model defines itself: torch's functions for it, or else
# a statistic of the input together with a root, as in x * rsqrt(mean(x^2) + eps).
_FUNCTIONS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm")
# It makes a norm, unless what it gives is multiplied and added up, as for a cosine.
_BY_LENGTH = frozenset({"normalize"})
_PRODUCTS = frozenset({"sum", "matmul", "bmm", "einsum", "linear"})
_STATISTICS = frozenset({"mean", "var", "std", "var_mean", "norm", "vector_norm", "running_var"})
_ROOTS = frozenset({"rsqrt", "sqrt", "std", "norm", "vector_norm", "0.5", "-0.5"})
# An attention has both too, a mean and the root of a width, and this besides.
_ATTENTION = frozenset({"softmax", "log_softmax", "logsumexp", "scaled_dot_product_attention"})


def families(module: nn.Module) -> Iterator[str]:
    """Give the families that a module is of: norm, embedding, linear, conv.

    Example:
        >>> list(families(nn.Embedding(2, 2)))
        ['embedding']
    """
    kind: object = type(module)
    if isinstance(module, torch.jit.ScriptModule):  # of torch's own class it keeps the name
        kind = getattr(nn, module.original_name, None)
    for family, types in FAMILIES.items():
        is_of_torch = isinstance(kind, type) and issubclass(kind, types)
        if is_of_torch or (family == "norm" and is_norm(module)):
            yield family


def is_norm(module: nn.Module) -> bool:
    r"""Tell whether a module normalises: one of torch's norms, or one that a model defines itself.

    The latter is known by what it does, not by its name. No module in it has parameters; its own
    parameters extend along one axis at most; and its ``forward`` divides by a root of a statistic,
    :math:`x / \sqrt{\mathrm{mean}(x^2) + \epsilon}`.

    Example:
        >>> is_norm(nn.BatchNorm1d(2)), is_norm(nn.PReLU())
        (True, False)
    """
    if isinstance(module, FAMILIES["norm"]):
        return True
    if not _has_vectors_alone(module):
        return False
    found = _words(module)
    if any(function in word for word in found for function in _FUNCTIONS):
        return True
    if found & _ATTENTION:
        return False
    is_by_length = bool(found & _BY_LENGTH) and not found & _PRODUCTS
    return is_by_length or (bool(found & _STATISTICS) and bool(found & _ROOTS))


def is_transposed(module: nn.Module) -> bool:
    """Tell whether the weight of a module is (in, out), where torch's linear layer has (out, in).

    So it is in the ``Conv1D`` of GPT-2, wherever its class is defined, which multiplies by the
    weight as it is: with ``addmm``.
    """
    kind = type(module)
    names = {base.__name__ for base in kind.__mro__}
    if isinstance(module, torch.jit.ScriptModule):
        names = {module.original_name}
    return "Conv1D" in names and "addmm" in _words(module)


def unknown_kinds(model: nn.Module) -> Iterator[str]:
    """Name the parameters of which it cannot be told whether they are a norm's, with their shapes.

    They look like a norm's, but the code of their module cannot be read, or what it does looks like
    a norm in part. They are taken for weights.
    """
    for path, module in model.named_modules():
        if not _may_be_norm(module):
            continue
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.numel() > 1 and not name.endswith("bias"):
                yield f"{name} ({', '.join(map(str, parameter.shape))})"


def _may_be_norm(module: nn.Module) -> bool:
    cls: type[nn.Module] = type(module)
    if cls.__module__.partition(".")[0] == "torch" or is_norm(module):
        return False
    if next(module.parameters(recurse=False), None) is None or not _has_vectors_alone(module):
        return False
    found = _words(module)
    looks = bool(found & _STATISTICS) and bool(found & _ROOTS)
    # A module that is called a norm, and calls what cannot be read.
    is_called_so = "norm" in cls.__name__.lower() and calls(cls)  # type: ignore[arg-type]
    return not found or looks or is_called_so


def _has_vectors_alone(module: nn.Module) -> bool:
    """Tell whether no module in it has parameters, and its own extend along one axis at most."""
    if any(True for child in module.children() for _ in child.parameters()):
        return False
    return all(is_vector(parameter) for parameter in module.parameters())


def _words(module: nn.Module) -> frozenset[str]:
    """Return the names and numbers in a module's code, without the marks of in-place operations."""
    if isinstance(module, torch.jit.ScriptModule):
        graph = str(module.inlined_graph) if hasattr(module, "forward") else ""
        found = frozenset(re.findall(r"[A-Za-z_]\w*|-?\d+\.\d+", graph))
    else:
        found = words(type(module))  # type: ignore[arg-type]  # a class is hashable
    return found | {word.rstrip("_") for word in found}


def is_bias(name: str, parameter: nn.Parameter, owner: nn.Module) -> bool:
    """Tell whether a parameter is a bias: one number for each output, added by its owner.

    A table of biases, such as T5's ``relative_attention_bias``, is an embedding and no bias.

    Args:
        name: its name in its owner.
        parameter: the parameter itself.
        owner: the module that it belongs to.
    """
    if parameter.ndim > 1 or isinstance(owner, FAMILIES["embedding"]):
        return False
    # torch's recurrent modules number theirs: bias_ih_l0.
    return name.endswith("bias") or (isinstance(owner, nn.RNNBase) and name.startswith("bias_"))


def is_vector(parameter: nn.Parameter) -> bool:
    """Tell whether a parameter extends along one axis at most: (n,), or (1, n, 1, 1).

    A matrix of one row is no vector: it is the weight of a layer with one output.
    """
    return sum(size > 1 for size in parameter.shape) <= 1 and parameter.ndim != 2
