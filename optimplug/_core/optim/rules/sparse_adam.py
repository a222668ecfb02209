"""SparseAdam: Adam that updates only the rows of an embedding that a batch has used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from optimplug._core.optim.facts import Facts
from optimplug._core.optim.hyperparameters import (
    check_betas,
    check_not_negative,
    check_rate,
    passed_on,
)
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.errors import ArgumentError

__all__ = ["SparseAdam", "SparseAdamRule"]


@dataclass(frozen=True)
class SparseAdamRule(Rule):
    """The math of :class:`SparseAdam`, for the elements that a gradient holds."""

    maximize: bool = False

    takes_sparse: ClassVar = True
    only_sparse: ClassVar = True
    temporaries: ClassVar = 3
    state: ClassVar = (StateSpec("exp_avg"), StateSpec("exp_avg_sq", code="unsigned"))

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        beta1, beta2 = hyper["betas"]
        correction1, correction2 = 1 - beta1**t, 1 - beta2**t
        return {
            "one_minus_beta1": 1 - beta1,
            "one_minus_beta2": 1 - beta2,
            "eps": hyper["eps"],
            "minus_step_size": -(hyper["lr"] * correction2**0.5 / correction1),
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if self.maximize:
            g = g.neg()
        m.add_(g.add(m, alpha=-1.0).mul_(k["one_minus_beta1"]))
        v.add_(g.mul(g).add_(v, alpha=-1.0).mul_(k["one_minus_beta2"]))
        denom = v.sqrt().add_(k["eps"])
        p.add_(m.div(denom).mul_(k["minus_step_size"]))


_rule = lru_cache(SparseAdamRule)  # asked for at every step, for every group


class SparseAdam(Optimizer):
    r"""SparseAdam: Adam for the elements that a sparse gradient holds; the others stay.

    .. math::
        m &\leftarrow m + (1 - \beta_1)\, (g - m) \\
        v &\leftarrow v + (1 - \beta_2)\, (g^2 - v) \\
        \theta &\leftarrow \theta - \gamma\, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}\,
            \frac{m}{\sqrt{v} + \epsilon}

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` =
    ``eps``, :math:`g` the gradient (its negative with ``maximize``), and :math:`t` the number of
    updates of the whole parameter. It is for ``torch.nn.Embedding(sparse=True)`` and its like: the
    moments of rows that a batch does not use do not decay, and the step takes the time of those
    that it uses. Elements that a sparse gradient holds are updated though they may be 0.

    Rates are AdamW's; there is no weight decay, which would move every row. State of each
    parameter: ``step``, ``exp_avg``, ``exp_avg_sq``, both of the parameter's whole shape. In a
    state dict ``step`` is an int, as in torch.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings; dense
            and real.
        lr: learning rate, > 0; a number or a tensor of one element. A schedule may take it to 0.
        betas: decay of the two means per update of an element, each in [0, 1).
        eps: added to the denominator, > 0.
        maximize: ascend instead of descend.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: as in :class:`~optimplug.optim.Adam`, with the next two.
        rounding_seed: likewise.
        state_dtype: likewise.

    Raises:
        ArgumentError: a value breaks its rule, or a parameter is sparse or complex.
        GradientError: at a step, a gradient is dense. Nothing has changed then.

    Example:
        >>> import torch
        >>> from optimplug.optim import SparseAdam
        >>> table = torch.nn.Embedding.from_pretrained(torch.ones(3, 1), freeze=False, sparse=True)
        >>> optimizer = SparseAdam(table.parameters(), lr=0.1)
        >>> table(torch.tensor([1])).sum().backward()
        >>> optimizer.step()
        >>> table.weight.detach().flatten()
        tensor([1.0000, 0.9000, 1.0000])

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization",
    https://arxiv.org/abs/1412.6980, for some rows at a time as in torch.
    """

    facts: ClassVar = Facts(
        purpose="embeddings with sparse gradients, of which a batch uses few rows",
        rate=(1, 1),
        paper="Adam: A Method for Stochastic Optimization",
        link="https://arxiv.org/abs/1412.6980",
        not_for="dense gradients, which it refuses",
        sharded=False,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        *,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> SparseAdamRule:
        return _rule(bool(hyper["maximize"]))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_not_negative(hyper, eps="epsilon value")
        if not hyper["eps"] > 0:
            raise ArgumentError(f"Invalid epsilon value: {hyper['eps']}; must be > 0")
        check_betas(hyper)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            self._check_last_group()
        except ArgumentError:
            self.param_groups.pop()
            raise

    def _check_last_group(self) -> None:
        i, group = len(self.param_groups) - 1, self.param_groups[-1]
        if not group["lr"] > 0:  # in a state that is loaded, a schedule may have made it so
            raise ArgumentError(f"Invalid learning rate: {group['lr']}; must be > 0")
        sparse = [[i, n] for n, p in enumerate(group["params"]) if p.is_sparse]
        if sparse:
            raise ArgumentError(
                f"Sparse params at indices {sparse}: SparseAdam requires dense parameter tensors"
            )
        numbers = [[i, n] for n, p in enumerate(group["params"]) if p.is_complex()]
        if numbers:
            raise ArgumentError(
                f"Complex params at indices {numbers}: SparseAdam does not support complex "
                "parameters"
            )

    def state_dict(self) -> dict[str, Any]:
        found = super().state_dict()
        if isinstance(found.get("state"), Mapping):  # a hook may have made something else of it
            found["state"] = {i: _with_int(kept) for i, kept in found["state"].items()}
        return found


def _with_int(kept: Any) -> Any:
    """Return a state with torch's ``step``: given a tensor, torch would go on in float32."""
    if not isinstance(kept, Mapping) or not isinstance(kept.get("step"), Tensor):
        return kept
    return {**kept, "step": int(kept["step"])}
