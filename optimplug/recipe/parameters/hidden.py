"""Which parameters are hidden matrices, as optimizers for whole matrices are made for."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from optimplug.recipe.parameters.match import Place

__all__ = ["is_hidden_matrix"]

# These are looked up, or scale and shift what goes through a model.
_OTHERS = frozenset({"embedding", "norm", "bias"})
_MULTIPLY = frozenset({"linear", "conv"})
# What a module of one's own calls a matrix that it multiplies by. Tables and states have two axes
# as well (relative_position_bias_table, A_log), and what is made for all is right for either.
_CALLED = re.compile(r"(?i)(?!.*bias).*(weight|kernel|matrix|proj).*|w\w{0,3}")


def is_hidden_matrix(named: Sequence[Place], layers: Collection[str]) -> bool:
    """Tell whether a parameter multiplies what goes through the layers of a model.

    What comes before the first layer (embeddings, a stem) is none, nor what comes after the last
    (heads, poolers), nor what is tied to one of these. Of a convolution, (out, rest) is the matrix.
    A parameter with more axes that is no convolution, such as the experts of a mixture in one
    tensor, is several matrices, and so none. Of a module that is neither torch's linear layer nor
    a convolution, a matrix is what is called so: weight, kernel, in_proj, w1.

    Args:
        named: all places of the parameter.
        layers: the names of the parameters that are in layers, and not the model's output.
    """
    parameter = named[0].parameter
    families = frozenset[str]().union(*(place.families for place in named))
    is_matrix = parameter.ndim == 2 or (parameter.ndim > 2 and "conv" in families)
    is_hidden = all(place.name in layers for place in named)
    called = families & _MULTIPLY or all(_CALLED.fullmatch(place.own_name) for place in named)
    return bool(is_matrix and is_hidden and called and not families & _OTHERS)
