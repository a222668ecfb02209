"""Which part of the low-precision weights an update has left where they were, as it was too small.

A weight of bfloat16 or float16 has lost its last update where it was to move, as its gradient was
not 0 or it decays, and has the bits that it had before. Under ``rounding="exact"`` and ``"kahan"``
what the state keeps beside a weight belongs to it: where that has moved, nothing is lost. (That of
``"kahan"`` has 8 bits too. By updates too small for these it is moved at some steps, in proportion;
it counts as it is seen.) Under ``"stochastic"`` the draw leaves most weights where they are if
updates are small, and moves the others by as much more: that counts as it is seen as well, and is
right on the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from optimplug._core.internals import first_after_step
from optimplug._core.optim.shards import Shards, is_sharded, local
from optimplug._core.optim.storage.stored import LOW_BITS
from optimplug._core.sample import sample

__all__ = ["LostUpdates", "Shares"]

_NARROW = (torch.bfloat16, torch.float16)
_HIDDEN = tuple(spec.name for spec in LOW_BITS.values())
_SAMPLE = 2**14
"""As many elements of each parameter are looked at: its share is known to a percent."""


class Shares(NamedTuple):
    """Of an update, which part of the low-precision weights that it was for did not take it."""

    groups: Mapping[str, float]
    """By a group's name, or its number; of those that have such weights."""
    together: float
    """Of all of them; 0 where there are none."""


class _Before(NamedTuple):
    """A parameter before an update."""

    group: int
    p: Tensor
    parts: Mapping[str, Tensor]
    """Elements of it, under the name ``""``, and of what the state keeps beside it."""


class LostUpdates:
    """Measures one update, of one optimizer.

    For that time it holds up to 16,384 elements of each low-precision parameter, and what is kept
    beside them: all of a small one, a sample of a large one. Nothing else of their size is there,
    and the device is waited for once. On the CPU it takes one to two times as long as the step
    itself.

    Where parameters are sharded (FSDP2), the share is that of the whole, the same in all processes:
    all of them must measure the same updates. Under FSDP's first version it is this process's own.

    Example:
        >>> p = torch.tensor([0.5, 0.0], dtype=torch.bfloat16, requires_grad=True)
        >>> optimizer = torch.optim.SGD([p], lr=1e-4)
        >>> p.grad = torch.ones_like(p)
        >>> lost = LostUpdates()
        >>> lost.watch(optimizer)
        >>> optimizer.step()
        >>> lost.take()
        Shares(groups={'0': 0.5}, together=0.5)
    """

    def __init__(self) -> None:
        self._hook: RemovableHandle | None = None
        self._found: Shares | None = None
        self._is_measured = False

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the step that comes next; accelerate's wrapper is looked through."""
        self.take()
        owner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        with torch.no_grad():
            before = list(_before(owner))
        skipped = _skipped(owner)

        def measure(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if self._is_measured:
                return
            self._is_measured = True
            # Where the optimizer unscales by itself, it is called for a skipped update as well.
            infinite = getattr(optimizer, "found_inf", None)
            done = _skipped(optimizer) == skipped and not (infinite is not None and infinite)
            if done and _is_known(before):
                with torch.no_grad():
                    self._found = _shares(optimizer, before)

        self._is_measured = False
        self._hook = first_after_step(owner, measure)

    def take(self) -> Shares | None:
        """Return what was measured since the last call, and measure no more.

        None where there was no update, or it was skipped; and where all gradients of low-precision
        weights were gone by the end of the step, so that none tells whether it was to move.
        """
        self._stop()
        found, self._found = self._found, None
        return found

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _is_known(before: Sequence[_Before]) -> bool:
    """Tell whether the gradients by which the weights were to move are still there."""
    return not before or any(each.p.grad is not None for each in before)


def _skipped(optimizer: Any) -> int:
    """Return how many steps a recipe, or ``skip_nonfinite``, has left out."""
    return int(getattr(optimizer, "skipped_steps", 0))


def _before(optimizer: torch.optim.Optimizer) -> Iterator[_Before]:
    for i, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            if p.dtype in _NARROW:
                parts = {name: part.clone() for name, part in _parts(optimizer, p)}
                yield _Before(i, p, parts)


def _parts(optimizer: torch.optim.Optimizer, p: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Give elements of a parameter, and of what is kept beside it."""
    state = optimizer.state.get(p, {})  # not [p], which would begin one
    kept = {name: state[name] for name in _HIDDEN if name in state}
    for name, tensor in {"": p.detach(), **kept}.items():
        yield name, sample(local(tensor), _SAMPLE)


def _shares(optimizer: torch.optim.Optimizer, before: Iterable[_Before]) -> Shares:
    """Return which share of each group has lost the update that was just done."""
    counted = [(each, _count(optimizer, each)) for each in before]
    own: dict[int, list[Tensor]] = {}
    for each, counts in _over_processes(counted):
        own.setdefault(each.group, []).append(counts.to(counted[0][1].device, non_blocking=True))
    # To read them waits for the device.
    sums = torch.stack([torch.stack(of).sum(0) for of in own.values()]).tolist() if own else []
    names = [group.get("name", str(i)) for i, group in enumerate(optimizer.param_groups)]
    groups = {names[i]: lost / numel for i, (lost, numel) in zip(own, sums, strict=True) if numel}
    lost, numel = (sum(of) for of in zip((0.0, 0.0), *sums, strict=True))
    return Shares(groups, lost / max(1.0, numel))


def _count(optimizer: torch.optim.Optimizer, before: _Before) -> Tensor:
    """Return how many of a parameter's weights have lost the update, and how many it has here."""
    p = before.p
    own = local(p.detach())
    if p.grad is None or own.numel() == 0:  # it is frozen, or has taken no part
        return torch.zeros(2, device=own.device)
    stays = _is_to_move(optimizer.param_groups[before.group], p, before.parts[""])
    for name, part in _parts(optimizer, p):
        # What begins with this update began with zeros.
        stays &= part == before.parts.get(name, torch.zeros((), device=part.device))
    share = stays.float().mean()
    return torch.stack([share, torch.ones_like(share)]) * own.numel()


def _is_to_move(group: Mapping[str, Any], p: Tensor, weights: Tensor) -> Tensor:
    """Tell for each element whether the update was to move it: there is a gradient, or a decay."""
    if not group.get("lr", 1.0):
        return torch.zeros_like(weights, dtype=torch.bool)
    moves = sample(_gradient(p), _SAMPLE) != 0
    return moves | (weights != 0) if group.get("weight_decay") else moves


def _gradient(p: Any) -> Tensor:
    """Return a parameter's gradient, of the part that is here."""
    g = p.grad
    if g.is_sparse:
        return g.to_dense()  # type: ignore[no-any-return]
    if is_sharded(p) and g.placements != p.placements:
        g = g.redistribute(placements=p.placements)
    return local(g)


def _over_processes(counted: Iterable[tuple[_Before, Tensor]]) -> Iterator[tuple[_Before, Tensor]]:
    """Add up what the processes have counted that each have a part of a parameter."""
    alike: dict[Any, list[tuple[_Before, Tensor]]] = {}
    for each, counts in counted:
        alike.setdefault(Shards.of([each.p]).lies, []).append((each, counts))
    for members in alike.values():
        shards = Shards.of([each.p for each, _ in members])
        totals = shards.total([counts for _, counts in members], None, frozenset())
        yield from zip((each for each, _ in members), totals, strict=True)
