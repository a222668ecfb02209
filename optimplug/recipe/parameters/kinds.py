"""Kinds of modules and parameters: norms, biases, embeddings."""

from __future__ import annotations

from torch import nn

from optimplug._core.internals import EVERY_CONVOLUTION, EVERY_NORM_BY_BATCH
from optimplug.recipe.parameters.forward import words

__all__ = ["FAMILIES", "is_bias", "is_norm", "is_vector"]

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
_STATISTICS = frozenset({"mean", "var", "std", "var_mean", "norm", "vector_norm", "running_var"})
_ROOTS = frozenset({"rsqrt", "sqrt", "std", "norm", "vector_norm", "0.5", "-0.5"})


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
    if any(True for child in module.children() for _ in child.parameters()):
        return False
    if not all(is_vector(parameter) for parameter in module.parameters()):
        return False
    found = words(type(module))  # type: ignore[arg-type]  # a class is hashable
    if any(function in word for word in found for function in _FUNCTIONS):
        return True
    return bool(found & _STATISTICS) and bool(found & _ROOTS)


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
