"""Optimizers that see a weight as a matrix: Muon."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.arguments import as_number
from optimplug._core.optim.executions.numbers import Numbers
from optimplug._core.optim.facts import Facts, Rates
from optimplug._core.optim.hyperparameters import check_each, check_one_element, passed_on
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.errors import ArgumentError

__all__ = ["Muon", "MuonRule", "newton_schulz"]

_SCALES: Mapping[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
    "rms_to_rms": lambda rows, columns: (rows / columns) ** 0.5,
}
"""What a rate is multiplied by for a matrix of these sides."""


def newton_schulz(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    r"""Return matrices with the same singular vectors, and singular values near 1, in bfloat16.

    :math:`X \leftarrow a X + (b A + c A^2) X` with :math:`A = X X^T`, from
    :math:`X = G / \max(\lVert G \rVert, \epsilon)` on; wide matrices are taken as they are, high
    ones on their side.

    Args:
        matrices: of shape (count, rows, columns).
        coefficients: a, b and c.
        steps: how often.
        eps: the smallest norm divided by.

    Example:
        >>> x = newton_schulz(torch.eye(2)[None] * 9, (3.4445, -4.7750, 2.0315), 5, 1e-7)
        >>> bool(((x[0].diag() > 0.6) & (x[0].diag() < 1.3)).all())
        True

    Source: https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = coefficients
    high = matrices.size(-2) > matrices.size(-1)
    x = matrices.to(torch.bfloat16)
    x = x.mT if high else x
    if len(x) == 1:  # as torch computes it, bit for bit
        x = x[0] / x[0].norm().clamp(min=eps)
        for _ in range(steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        x = x[None]
    else:
        x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=eps)
        for _ in range(steps):
            gram = torch.bmm(x, x.mT)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if high else x


@dataclass(frozen=True)
class MuonRule(Rule):
    """The math of :class:`Muon`, with its variants."""

    nesterov: bool
    coefficients_of_ns: tuple[float, float, float]
    eps: float
    ns_steps: int
    scale: str
    split: int | tuple[int, ...] | None
    flatten: bool
    transposed: bool

    scope: ClassVar = "matrix"
    counts_steps: ClassVar = False
    takes_complex: ClassVar = False
    temporaries: ClassVar = 5
    state: ClassVar = (StateSpec("momentum_buffer"),)

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        lr, momentum = float(hyper["lr"]), hyper["momentum"]
        return {
            "minus_lr": -lr,
            "decay": 1 - lr * hyper["weight_decay"],
            "momentum": momentum,
            "one_minus_momentum": 1 - momentum,
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        m = state["momentum_buffer"]
        m.lerp_(g, k["one_minus_momentum"])
        direction = g.lerp(m, k["momentum"]) if self.nesterov else m
        update = direction.map_matrices(self._orthogonal, self.split, self.transposed)
        p.mul_(k["decay"])
        p.add_(update, alpha=self._scales(p) * k["minus_lr"])

    def _orthogonal(self, matrices: Tensor) -> Tensor:
        found = newton_schulz(matrices, self.coefficients_of_ns, self.ns_steps, self.eps)
        # Blocks of one parameter may have other sides than it.
        return found if self.split is None else found.float() * self._scale(*found.shape[1:])

    def _scales(self, p: Operand) -> Numbers:
        sides = p.sides(self.transposed)
        scales = [1.0 if self.split else self._scale(*each) for each in sides]
        return Numbers(torch.tensor(scales, dtype=torch.float64, device="cpu"))

    def _scale(self, rows: int, columns: int) -> float:
        return _SCALES[self.scale](max(rows, 1), max(columns, 1))

    def refusal(self, p: Tensor) -> str | None:
        if p.dim() < 2 or (p.dim() == 3 and not self.flatten):
            return (
                "Muon only supports 2D parameters whereas we found a parameter with size: "
                f"{p.shape}; of more dimensions, those of convolutions are taken as matrices of "
                "(out, rest), but one of three may as well be a stack of matrices: say "
                "flatten=True to take it as one, or give it to another optimizer"
            )
        axis = 1 if self.transposed and p.dim() == 2 else 0
        rows = p.shape[axis]
        if isinstance(self.split, int):
            fits = rows % self.split == 0
        else:
            fits = self.split is None or sum(self.split) == rows
        kind = "columns, with transposed=True the outputs," if axis else "rows"
        return None if fits else f"split={self.split} does not fit the {rows} {kind} of {p.shape}"


_rule = lru_cache(MuonRule)  # asked for at every step, for every group


def _common_rates(hyper: Hyper) -> Rates:
    name = hyper["adjust_lr_fn"] or "original"
    if name == "match_rms_adamw":
        return Rates(0.0, 5e-3, f"with adjust_lr_fn={name!r}, AdamW's rates fit")
    return Rates(1e-3, math.inf, f"with adjust_lr_fn={name!r}, rates are near 0.02")


class Muon(Optimizer):
    r"""Muon: the running mean of a matrix's gradients, with all its singular values near 1.

    .. math::
        B_t &= \mu B_{t-1} + (1 - \mu)\, g_t \\
        \tilde B_t &= \mu B_t + (1 - \mu)\, g_t \quad \text{with } \mathit{nesterov},
            \text{ else } B_t \\
        \theta_t &= (1 - \gamma \lambda)\, \theta_{t-1}
            - \gamma\, s\; \mathrm{NS}(\tilde B_t)

    with :math:`\gamma` = ``lr``, :math:`\mu` = ``momentum``, :math:`\lambda` = ``weight_decay``,
    :math:`\mathrm{NS}` the Newton-Schulz iteration in bfloat16 (``ns_steps`` times, with
    ``ns_coefficients``), and for a matrix of r rows and c columns

    - ``adjust_lr_fn="original"``, or None: :math:`s = \sqrt{\max(1, r / c)}`, Keller Jordan's;
      rates are near 0.02;
    - ``"match_rms_adamw"``: :math:`s = 0.2 \sqrt{\max(r, c)}`, Moonshot's; AdamW's rates fit;
    - ``"rms_to_rms"``: :math:`s = \sqrt{r / c}`, of the modular norm; rates are near 0.02.

    For the matrices of hidden layers. Embeddings, heads, norms and biases need another optimizer:
    see ``MultiOptimizer``. Matrices of one shape go through the iteration together; of a sharded
    one the momentum is gathered. State of each parameter: ``momentum_buffer``.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings; of
            two dimensions, or weights of convolutions, which are taken as matrices of (out, rest).
        lr: learning rate, >= 0; a number or a tensor of one element.
        weight_decay: decay per step relative to ``lr``, >= 0.
        momentum: how much of the running mean stays, >= 0.
        nesterov: look one step ahead.
        ns_coefficients: of the iteration's polynomial.
        eps: the smallest norm that a matrix is divided by.
        ns_steps: how often the iteration is done, < 100.
        adjust_lr_fn: what the rate is multiplied by, as above.
        split: for weights that hold several matrices one below the other, such as fused queries,
            keys and values: how many of equal size, or the rows of each.
        flatten: take parameters of three dimensions, too, as matrices of (out, rest): those of
            one-dimensional convolutions. Torch's takes two dimensions alone.
        transposed: parameters of two dimensions are (in, out), as in the ``Conv1D`` of GPT-2: they
            move as the transposed ones would without it, and ``split`` counts columns. A recipe
            says it for the modules that it knows to be so.
        foreach: None or True: matrices of one shape together. False: one by one, bit for bit as
            torch does.
        max_grad_norm: clip the global gradient norm to this inside the step, before all else; None:
            no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: as in :class:`~optimplug.optim.Adam`, with the next two.
        rounding_seed: likewise.
        state_dtype: likewise.

    Raises:
        ArgumentError: a value breaks its rule, or a parameter is no matrix.
        GradientError: at a step, a gradient is sparse, or a parameter complex.

    Example:
        >>> import torch
        >>> from optimplug.optim import Muon
        >>> w = torch.zeros(2, 2, requires_grad=True)
        >>> optimizer = Muon([w], lr=0.1, weight_decay=0.0)
        >>> (torch.eye(2) * w).sum().backward()
        >>> optimizer.step()
        >>> (w.diag() < -0.06).tolist()
        [True, True]

    Source: https://kellerjordan.github.io/posts/muon/; "Muon is Scalable for LLM Training",
    https://arxiv.org/abs/2502.16982. torch's documentation says :math:`B_t = \mu B_{t-1} + g_t`;
    its code, which this follows, has the mean above, a buffer 1 / (1 - :math:`\mu`) times smaller.
    The updates are the same, but buffers of other implementations do not fit. Without ``nesterov``,
    torch's code divides the momentum of bfloat16 weights by its own norm at every step; here it
    stays a mean.
    """

    made_for: ClassVar = "hidden matrices"
    facts: ClassVar = Facts(
        purpose="the matrices of hidden layers, with half of AdamW's memory",
        rate=None,
        paper="Muon is Scalable for LLM Training",
        link="https://arxiv.org/abs/2502.16982",
        rate_means="near 0.02; with adjust_lr_fn='match_rms_adamw' AdamW's",
        not_for="embeddings, heads, norms, biases",
        rates=_common_rates,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        split: int | Sequence[int] | None = None,
        flatten: bool = False,
        transposed: bool = False,
        foreach: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> MuonRule:
        split = hyper["split"]
        return _rule(
            bool(hyper["nesterov"]),
            tuple(hyper["ns_coefficients"]),
            hyper["eps"],
            hyper["ns_steps"],
            hyper["adjust_lr_fn"] or "original",
            split if split is None or isinstance(split, int) else tuple(split),
            bool(hyper["flatten"]),
            bool(hyper["transposed"]),
        )

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_one_element(hyper)
        check_each(
            (hyper["lr"] >= 0.0, "Learning rate should be >= 0", hyper["lr"]),
            (hyper["momentum"] >= 0.0, "momentum should be >= 0", hyper["momentum"]),
            (hyper["weight_decay"] >= 0.0, "weight decay should be >= 0", hyper["weight_decay"]),
            (
                isinstance(hyper["ns_steps"], int) and 0 <= hyper["ns_steps"] < 100,
                "ns_steps should be an int >= 0 and < 100",
                hyper["ns_steps"],
            ),
            (
                (as_number(hyper["eps"]) or -1.0) > 0.0,
                "eps should be a number > 0",
                hyper["eps"],
            ),
            (
                len(hyper["ns_coefficients"]) == 3,
                "ns_coefficients should be three numbers",
                hyper["ns_coefficients"],
            ),
            (_can_split(hyper["split"]), "split should be counts of 1 or more", hyper["split"]),
        )
        if hyper["adjust_lr_fn"] not in (None, *_SCALES):
            raise ArgumentError(
                f"Adjust learning rate function {hyper['adjust_lr_fn']} is not supported; it must "
                f"be one of {', '.join(_SCALES)}, or None for the first"
            )


def _can_split(split: Any) -> bool:
    several = isinstance(split, Sequence) and not isinstance(split, str)
    counts = [1] if split is None else list(split) if several else [split]
    return all(type(count) is int and count >= 1 for count in counts)
