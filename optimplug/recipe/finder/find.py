r"""find_lr: at which rates a model learns, from one sweep over them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from optimplug._core.arguments import owner_of, require_count, require_number
from optimplug._core.internals import unhooked_step
from optimplug._core.optim.multi import optimizer_named
from optimplug.errors import ArgumentError
from optimplug.optim import MultiOptimizer, Optimizer, Prodigy
from optimplug.recipe.finder.curve import End, LRCurve
from optimplug.recipe.finder.kept import apart, kept
from optimplug.recipe.lengths import settle_lengths
from optimplug.recipe.recipe import Recipe
from optimplug.recipe.run import Run
from optimplug.recipe.text.durations import Horizon, require_horizon
from optimplug.recipe.text.reader import Source

__all__ = ["find_lr", "require_sweep"]

_SETTLED = 10  # losses, before that mean says anything
_STEP = unhooked_step(Optimizer)
_MEMORY = 0.8  # of the running mean that is held against the best one, to tell whether it diverges


def find_lr(
    model: nn.Module,
    recipe: Source | Recipe,
    step: Callable[[Any], Tensor],
    batches: Iterable[Any],
    *,
    updates: int = 100,
    lowest: float = 1e-3,
    highest: float = 1e2,
    accumulate: int = 1,
    diverges: float = 4.0,
    horizon: Horizon | None = None,
) -> LRCurve:
    r"""Train for a few updates at rates that rise from each to the next, and see where it learns.

    Update :math:`i` of :math:`n` uses the rates of the recipe times one multiplier for all groups,

    .. math:: m_i = m_{lowest} (m_{highest} / m_{lowest})^{i / (n - 1)},

    so that groups keep their ratios. What is seen of it is the loss of the next batch, before its
    update. The schedule is left out, and so is freezing for a time; clipping, storage and all else
    are the recipe's. The sweep ends where the loss is no finite number, or where its running mean
    is ``diverges`` times the best one.

    Afterwards all is as before, to the last bit: weights, buffers, gradients, modes, what is
    frozen, random numbers, the order of the data. An optimizer of the model's is not touched: the
    sweep has its own. What a model, a data set, its ``collate_fn`` or ``step`` keeps for itself
    beside that (a count of its calls, a generator of its own) is not known here, and stays as it is
    after the sweep.

    What is found is the rate to begin a search with. It is that of one batch size: another, or
    another number of batches in an update, has another.

    Args:
        model: what is trained, as it is before the run.
        recipe: whose rates are multiplied: a recipe, or what :class:`Recipe` takes.
        step: computes the loss of a batch, with ``model``. It calls neither ``backward`` nor an
            optimizer.
        batches: what ``step`` is given; begun anew where there are too few. Iterating over it twice
            must be possible, so an iterator is refused.
        updates: how many there are at the most, at least 20.
        lowest: the first multiplier.
        highest: the last one.
        accumulate: how many batches make an update; the loss is their mean.
        diverges: how many times the best loss is too much; a loss that may be below 0 is held
            against how far it has fallen.
        horizon: of the run, for what is given as a part of it (``warmup_steps: 6%``); left out: the
            sweep itself.

    Returns:
        The curve: its :attr:`~LRCurve.suggestion`, or why there is none; ``plot`` and ``html`` show
        it. In several processes the loss is the mean of all, which end together.

    Raises:
        ArgumentError: an argument breaks its rule, ``step`` returns no loss, or the recipe's
            optimizer has no rate that could be multiplied.
        RecipeError: the recipe does not fit the model.

    Example:
        >>> from optimplug import Recipe, find_lr
        >>> recipe = Recipe({"optimizer": {"name": "SGD", "lr": 1.0}})
        >>> model, target = nn.Linear(2, 1), torch.ones(4, 1)
        >>> def step(batch):
        ...     return (model(batch) - target).square().mean()
        >>> curve = find_lr(model, recipe, step, [torch.eye(4, 2)])
        >>> curve.multipliers[0], curve.end
        (0.001, 'diverged')

    References:
        L. N. Smith, `Cyclical Learning Rates for Training Neural Networks
        <https://arxiv.org/abs/1506.01186>`_, 2015, section 3.3; how the suggestion is read off the
        curve, and fastai's ways: :class:`LRCurve`.
    """
    require_sweep(updates, lowest, highest, diverges)
    require_count("accumulate", accumulate, least=1)
    loaded = Recipe.load(recipe)
    length = Horizon(updates) if horizon is None else horizon
    require_horizon(length)
    untouched = apart(batches)
    ratio = (highest / lowest) ** (1 / (updates - 1))
    multipliers = [lowest * ratio**i for i in range(updates)]
    with kept(model), Run(loaded, model) as run:
        _settle(run.optimizer, length)
        _require_rates(run.optimizer)
        losses = _losses(step, _endless(untouched), accumulate, run.optimizer)
        start, seen, end = _sweep(run.optimizer, losses, multipliers, diverges)
    found = tuple(zip(multipliers, seen, strict=False))
    return LRCurve(found, start, end, loaded.rates)


def require_sweep(updates: int, lowest: float, highest: float, diverges: float) -> None:
    """Check how a sweep is to be done.

    Raises:
        ArgumentError: an argument breaks its rule.
    """
    require_count("updates", updates, least=20)
    require_number("lowest", lowest, "a number > 0", lambda value: value > 0)
    require_number("highest", highest, f"a number > lowest, {lowest:g}", lambda v: v > lowest)
    require_number("diverges", diverges, "a number > 1", lambda value: value > 1)


def _settle(optimizer: torch.optim.Optimizer, horizon: Horizon) -> None:
    try:
        settle_lengths(optimizer, horizon)
    except ValueError as error:
        raise ArgumentError(f"{error}; give that of the run as horizon") from None


def _sweep(
    optimizer: torch.optim.Optimizer,
    losses: Iterator[float],
    multipliers: list[float],
    diverges: float,
) -> tuple[float, list[float], End]:
    """Step at each multiplier; return the loss before, those after each, and how it ended."""
    own = [group["lr"] for group in owner_of(optimizer).param_groups]
    start = next(losses)
    if not math.isfinite(start):
        return start, [], "not finite"
    seen: list[float] = []
    watch = _Watch(diverges)
    for multiplier in multipliers:
        for group, lr in zip(owner_of(optimizer).param_groups, own, strict=True):
            group["lr"] = lr * multiplier
        optimizer.step()
        loss = next(losses)
        if not math.isfinite(loss):
            return start, seen, "not finite"
        seen.append(loss)
        if watch.diverges(loss):
            return start, seen, "diverged"
    return start, seen, "whole"


class _Watch:
    """Tells when the running mean of a loss has risen far above its best.

    The first losses only make up the mean: one batch that happens to be easy is no best.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._count, self._mean = 0, 0.0
        self._best, self._highest = math.inf, -math.inf

    def diverges(self, loss: float) -> bool:
        self._count += 1
        self._mean = _MEMORY * self._mean + (1 - _MEMORY) * loss
        if self._count < _SETTLED:
            return False
        mean = self._mean / (1 - _MEMORY**self._count)  # as if it had not begun at 0
        if self._highest == -math.inf:
            self._highest = mean
        self._best = min(self._best, mean)
        scale = max(abs(self._best), self._highest - self._best)
        return mean - self._best > (self._factor - 1) * scale


def _losses(
    step: Callable[[Any], Tensor],
    batches: Iterator[Any],
    accumulate: int,
    optimizer: torch.optim.Optimizer,
) -> Iterator[float]:
    """Give the loss of each update, with its gradients in place."""
    while True:
        optimizer.zero_grad()
        total = 0.0
        for _ in range(accumulate):
            loss = _require_loss(step(next(batches)))
            (loss / accumulate).backward()  # type: ignore[no-untyped-call]
            total += _mean_of_processes(loss) / accumulate
        yield total


def _require_loss(loss: Any) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss.reshape(())
    given = f"a tensor of {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:100]
    if isinstance(loss, Tensor) and loss.numel() == 1:
        given += " without a gradient: call no backward and no item in step"
    raise ArgumentError(
        f"step must return the loss of a batch, a tensor of one number (got {given})"
    )


def _mean_of_processes(loss: Tensor) -> float:
    value = loss.detach().to(torch.float32)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value.item()


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ArgumentError("batches must give at least one batch (got none)")


def _require_rates(optimizer: torch.optim.Optimizer) -> None:
    """Raise unless the rates act at every step, and a step needs no closure."""
    owner = owner_of(optimizer)
    for cls in _classes(owner):
        facts = getattr(cls, "facts", None)
        if facts is not None and facts.lr_only_begins:
            raise ArgumentError(
                f"{cls.__name__} takes lr at its first step alone, so that a sweep over rates "
                "says nothing; use an optimizer whose lr acts at every step"
            )
        if issubclass(cls, Prodigy):
            raise ArgumentError(
                "Prodigy looks for its rate by itself, so that a sweep over its lr says nothing; "
                "leave lr at 1, or sweep over AdamW's"
            )
    closure = inspect.signature(type(owner).step).parameters.get("closure")
    needs_one = closure is not None and closure.default is inspect.Parameter.empty
    # Ours can all be called without one; that whose step is its own then says what it lacks.
    own_step = isinstance(owner, Optimizer) and unhooked_step(type(owner)) is not _STEP
    if needs_one or own_step:
        raise ArgumentError(
            f"{type(owner).__name__} needs a closure and looks for its own step length; a sweep "
            "over rates is for optimizers that step along a gradient"
        )


def _classes(owner: torch.optim.Optimizer) -> Iterable[type]:
    """Return an optimizer's class; of several in one, those of all groups."""
    if not isinstance(owner, MultiOptimizer):
        return [type(owner)]
    return dict.fromkeys(optimizer_named(group["optimizer"]) for group in owner.param_groups)
