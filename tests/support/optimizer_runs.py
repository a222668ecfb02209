"""How every optimizer is run under the laws: what it is built with, and what it refuses."""

import copy
import inspect
import io
from typing import Any, NamedTuple

import torch
from support.tensors import same_bits
from torch import nn

from optimplug import optim
from optimplug.optim import MultiOptimizer
from optimplug.recipe.resolve import optimizer_names

STEPS = 6


class Refusal(NamedTuple):
    """Why a law is none for an optimizer, which says so itself where it is asked for it."""

    reason: str
    """For the table."""
    message: str | None
    """What its error says, a regular expression; None where nothing is refused, and the law is
    broken on purpose."""


class Row(NamedTuple):
    """How the laws are tried on one optimizer."""

    options: dict[str, Any] = {}
    """What it is built with; by default nothing but what it requires."""
    shapes: tuple[tuple[int, ...], ...] = ((3, 4), (7,), (5, 5, 2), (1,))
    refuses: dict[str, Refusal] = {}
    """By the name of the law."""
    sparse: bool = False
    """Whether gradients must be sparse."""
    closure: bool = False
    """Whether a step needs one; it is then evaluated once a step."""


NO_MAXIMIZE = {"maximize": Refusal("has no maximize", "unexpected keyword argument 'maximize'")}
NO_COMPLEX = {"complex": Refusal("takes no complex numbers", "complex")}
ROWS = {
    "SGD": Row({"lr": 0.05, "momentum": 0.9}),
    "Adadelta": Row({"lr": 1.0}),
    "Adagrad": Row({"lr": 0.05}),
    "Adam": Row({"lr": 0.05}),
    "AdamW": Row({"lr": 0.05}),
    "NAdam": Row({"lr": 0.05}),
    "ASGD": Row({"lr": 0.05, "t0": 2}),
    "Prodigy": Row({"lr": 1.0, "d0": 0.01}, refuses=NO_MAXIMIZE),
    "LAMB": Row({"lr": 0.05}, refuses=NO_COMPLEX),
    "StableAdamW": Row({"lr": 0.05}, refuses=NO_COMPLEX),
    "CAME": Row({"lr": 0.05}, refuses=NO_COMPLEX),
    "TransformersAdafactor": Row(
        {"lr": 0.05, "scale_parameter": False, "relative_step": False},
        refuses={**NO_COMPLEX, **NO_MAXIMIZE},
    ),
    "AdEMAMix": Row({"lr": 0.05}),
    "ADOPT": Row({"lr": 0.05}),
    "ScheduleFreeAdamW": Row({"lr": 0.05}),
    "ScheduleFreeSGD": Row({"lr": 0.5}),
    "SparseAdam": Row(
        {"lr": 0.05},
        refuses={
            **NO_COMPLEX,
            "two processes": Refusal(
                "needs sparse gradients, which a DTensor cannot have", "does not support dense"
            ),
        },
        sparse=True,
    ),
    "LBFGS": Row(
        {"lr": 0.05, "max_iter": 1},
        refuses={
            **NO_MAXIMIZE,
            "GradScaler": Refusal("needs a closure, which GradScaler does not take", "closure"),
            "added groups": Refusal("takes one group alone", "per-parameter options"),
            "groups": Refusal("takes one group alone", "per-parameter options"),
            "missing gradients": Refusal("takes a missing gradient for zeros, as torch does", None),
            "two processes": Refusal("needs whole parameters in one process", "shard"),
            "exact": Refusal(
                "needs the losses of weights in between, which a model in bfloat16 cannot have",
                "unexpected keyword argument 'rounding'",
            ),
        },
        closure=True,
    ),
    "Adafactor": Row({"lr": 0.05}, refuses=NO_COMPLEX),
    "Muon": Row(
        {"lr": 0.05},
        ((3, 4), (5, 7), (4, 4), (2, 3, 2, 2)),
        {
            **NO_COMPLEX,
            **NO_MAXIMIZE,
            "zero dimensions": Refusal("is for matrices", "only supports 2D"),
        },
    ),
    "Adamax": Row({"lr": 0.05}),
    "Lion": Row({"lr": 0.05}),
    "MultiOptimizer": Row({"lr": 0.05}, refuses={}),
    "RAdam": Row({"lr": 0.05}),
    "RMSprop": Row({"lr": 0.05}),
    "Rprop": Row({"lr": 0.05}),
}


# What several optimizers in one are tried with, and what these have as a whole.
JOINED = ({"optimizer": "AdamW"}, {"optimizer": "Lion"})
WHOLE = ("max_grad_norm", "skip_nonfinite", "foreach", "fused")


def public():
    """Every optimizer that has a name in ``optimplug.optim``."""
    return [getattr(optim, name) for name in sorted(optimizer_names(), key=str.lower)]


def under_laws():
    """The same, and several in one."""
    return [*public(), MultiOptimizer]


def row_of(cls):
    return ROWS[cls.__name__]


def choices(cls):
    """How the laws are run: as the optimizer chooses, and through torch's operators."""
    return [{}, {"foreach": True}] if takes(cls, "foreach") else [{}]


def takes(cls, argument):
    """Whether an optimizer has an argument; of several, whether all have it."""
    several = cls is MultiOptimizer
    classes = [getattr(optim, one["optimizer"]) for one in JOINED] if several else [cls]
    return all(argument in inspect.signature(one).parameters for one in classes)


# A run under the laws: parameters and gradients are always the same, so that runs can be compared.


def tensors(cls, seed=1, shapes=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = row_of(cls).shapes if shapes is None else shapes
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def build(cls, params, **options):
    options = {**row_of(cls).options, **options}
    if cls is not MultiOptimizer:
        return ready(cls(params, **options))
    whole = {key: options.pop(key) for key in [*options] if key in WHOLE}
    return ready(cls(list(named_groups(params, options)), **whole))


def named_groups(params, options):
    """Groups that take turns at two optimizers; of single parameters, two groups."""
    is_grouped = isinstance(params[0], dict)
    groups = params if is_grouped else [{"params": p} for p in (params[:2], params[2:]) if p]
    for i, group in enumerate(groups):
        yield {**JOINED[i % len(JOINED)], **options, **group}


def group_of(cls, i=0, **own):
    """A group for an optimizer, which of several is named."""
    return {**own, **(JOINED[i % len(JOINED)] if cls is MultiOptimizer else {})}


def required(cls):
    """What it cannot be built without, or not with a rate."""
    return {k: v for k, v in row_of(cls).options.items() if k == "relative_step"}


def ready(optimizer):
    if hasattr(optimizer, "train"):  # schedule-free ones begin in the mode of validation
        optimizer.train()
    return optimizer


def gradient(p, number, place):
    generator = torch.Generator().manual_seed(1000 * number + place)
    return torch.randn(p.shape, generator=generator).to(p.dtype)


def give(cls, params, number, missing=()):
    """Put the gradients of a step on the parameters; some have none."""
    for place, p in enumerate(params):
        g = gradient(p, number, place)
        p.grad = None if place in missing else g.to_sparse() if row_of(cls).sparse else g


def values_of(p):
    """The elements of a gradient, to be changed in place."""
    return p.grad._values() if p.grad.is_sparse else p.grad.view(-1)


def clip(params, most):
    """As ``clip_grad_norm_``, which takes no sparse gradients."""
    dense = [nn.Parameter(torch.empty_like(values_of(p))) for p in params]
    for stand_in, p in zip(dense, params, strict=True):
        stand_in.grad = values_of(p)
    return nn.utils.clip_grad_norm_(dense, most)


def step(optimizer):
    if row_of(type(optimizer)).closure:
        optimizer.step(lambda: torch.tensor(1.0))  # the gradients are there already
    else:
        optimizer.step()


def train(optimizer, steps, missing=lambda number: ()):
    params = flat(optimizer)
    for number in steps:
        give(type(optimizer), params, number, missing(number))
        step(optimizer)
    return params


def flat(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def copied(params):
    return [nn.Parameter(p.detach().clone()) for p in params]


def snapshot(optimizer):
    """All that a step may change, with the order of its keys."""
    return copy.deepcopy(
        ([p.detach() for p in flat(optimizer)], plain_values(optimizer.state_dict()))
    )


def plain_values(value):
    if isinstance(value, dict):
        return [(key, plain_values(part)) for key, part in value.items()]
    return [plain_values(part) for part in value] if isinstance(value, list | tuple) else value


def unmoved(after, before):
    """Whether all is as it was, but that states may have begun, with what they begin with."""
    (params, state), (was, had) = after, before
    return same(params, was) and (same(state, had) or not dict(had)["state"])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and same_bits(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def all_same_bits(some, others):
    return len(some) == len(others) and all(map(same_bits, some, others))


def assert_close(some, others):
    torch.testing.assert_close(
        [p.detach() for p in some], [p.detach() for p in others], rtol=1e-5, atol=1e-6
    )


def stored(state):
    """A state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
