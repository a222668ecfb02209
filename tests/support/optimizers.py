"""The optimizers under test, as data: what each is compared with, and the options that matter."""

from inspect import signature
from typing import Any, NamedTuple

import torch

from optimplug.optim import (
    ADOPT,
    ASGD,
    CAME,
    LAMB,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AdEMAMix,
    Lion,
    Muon,
    NAdam,
    Prodigy,
    RAdam,
    RMSprop,
    Rprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    SparseAdam,
    StableAdamW,
    TransformersAdafactor,
)


class Row(NamedTuple):
    """One optimizer that torch has as well."""

    options: list[dict[str, Any]]
    fused: bool = False
    """Whether torch has a fused operator for it, and it an argument ``fused``."""
    foreach_rtol: float = 2e-7
    """How far ``foreach=True`` may be from the loop: more where it rounds once more."""


_ADAM = [
    {},
    {"lr": 0.1, "betas": (0.7, 0.95), "eps": 1e-3},
    {"weight_decay": 0.0},
    {"weight_decay": 0.3},
    {"amsgrad": True},
    {"maximize": True, "weight_decay": 0.2},
    {"amsgrad": True, "maximize": True, "weight_decay": 0.1, "lr": torch.tensor(0.01)},
    {"betas": (torch.tensor(0.8), torch.tensor(0.99))},
]
_SGD = [
    {"lr": 0.1},
    {"lr": torch.tensor(0.1)},
    {"lr": 0.1, "weight_decay": 0.5},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "maximize": True, "weight_decay": 0.1},
]
_RMSPROP = [
    {},
    {"lr": torch.tensor(0.01), "alpha": 0.9, "eps": 1e-3},
    {"weight_decay": 0.3, "maximize": True},
    {"momentum": 0.9},
    {"centered": True, "weight_decay": 0.1},
    {"centered": True, "momentum": 0.5},
]
_ADAMAX = [
    {},
    {"lr": torch.tensor(0.01), "betas": (0.7, 0.95), "eps": 1e-3},
    {"weight_decay": 0.3, "maximize": True},
]
_RADAM = [
    {},
    {"lr": torch.tensor(0.01), "betas": (0.7, 0.95), "eps": 1e-3},
    {"betas": (0.8, 0.5), "weight_decay": 0.3, "maximize": True},
    {"betas": (0.8, 0.9), "weight_decay": 0.3, "decoupled_weight_decay": True},
]
_ADADELTA = [
    {},
    {"lr": torch.tensor(0.5), "rho": 0.5, "eps": 1e-3},
    {"weight_decay": 0.3, "maximize": True},
]
_ADAGRAD = [
    {},
    {"lr": torch.tensor(0.05), "lr_decay": 0.3, "eps": 1e-3},
    {"initial_accumulator_value": 0.5, "weight_decay": 0.3, "maximize": True},
]
_RPROP = [
    {},
    {"lr": torch.tensor(0.05), "etas": (0.3, 1.7), "step_sizes": (0.01, 0.2)},
    {"maximize": True},
]
_NADAM = [
    {},
    {"lr": torch.tensor(0.01), "betas": (0.7, 0.95), "eps": 1e-3, "momentum_decay": 0.1},
    {"weight_decay": 0.3, "maximize": True},
    {"weight_decay": 0.3, "decoupled_weight_decay": True},
]
_ASGD = [
    {},
    {"lr": torch.tensor(0.05), "lambd": 0.1, "alpha": 0.5, "t0": 3},
    {"weight_decay": 0.3, "maximize": True, "t0": 0},
]
_ADAFACTOR = [
    {"eps": (1e-7, 1e-3)},  # without the first, torch's bfloat16 and float16 hardly move
    {"lr": torch.tensor(0.1), "beta2_decay": -0.5, "eps": (1e-3, 1e-2), "d": 2.0},
    {"eps": (1e-7, 1e-3), "weight_decay": 0.3, "maximize": True},
]
TABLE = {
    Adam: Row([*_ADAM, {"weight_decay": 0.1, "decoupled_weight_decay": True}], fused=True),
    AdamW: Row(_ADAM, fused=True),
    # A rate of its own for each tensor is multiplied in apart.
    SGD: Row(_SGD, fused=True, foreach_rtol=2e-6),
    RMSprop: Row(_RMSPROP, foreach_rtol=2e-6),
    Adamax: Row(_ADAMAX),
    RAdam: Row(_RADAM, foreach_rtol=2e-6),
    Adadelta: Row(_ADADELTA, foreach_rtol=2e-6),
    Adagrad: Row(_ADAGRAD, fused=True),
    Rprop: Row(_RPROP),
    NAdam: Row(_NADAM, foreach_rtol=2e-6),
    Adafactor: Row(_ADAFACTOR, foreach_rtol=2e-6),
    ASGD: Row(_ASGD, foreach_rtol=2e-6),
}
ALONE = {
    SparseAdam: Row(
        [{}, {"lr": torch.tensor(0.1), "betas": (0.7, 0.95), "eps": 1e-3}, {"maximize": True}]
    ),
    LBFGS: Row(
        [
            {"lr": 0.1, "history_size": 3},
            {"line_search_fn": "strong_wolfe", "history_size": 4},
            {"line_search_fn": "strong_wolfe", "lr": torch.tensor([0.3]), "max_iter": 7},
            {"line_search_fn": "strong_wolfe", "lr": 30.0, "max_eval": 9},
            {"line_search_fn": "strong_wolfe", "max_iter": 1},
            {"max_iter": 1, "lr": 0.1},
        ]
    ),
}
"""Those that torch runs in one way alone, so that they have no choice of execution either."""


def torchs(cls):
    """Torch's class of the same name."""
    return getattr(torch.optim, cls.__name__)


def with_eps(cls, value):
    """The option that keeps quotients of small numbers apart, where a class has it."""
    if cls is Adafactor:
        return {"eps": (value, 1e-3)}
    return {"eps": value} if "eps" in signature(cls).parameters else {}


def executions(cls):
    """The choices of execution that a class takes."""
    fused = [{"fused": True}] if TABLE[cls].fused else []
    return [{}, {"foreach": True}, {"foreach": False}, *fused]


_IN_A_GROUP = {
    AdamW: {"lr": 0.01, "weight_decay": 0.1},
    Adam: {"lr": 0.01, "amsgrad": True},
    SGD: {"lr": 0.1, "momentum": 0.9},
    RMSprop: {"lr": 0.01, "centered": True},
    Adagrad: {"lr": 0.1, "initial_accumulator_value": 0.1},
    Lion: {"lr": 0.003, "weight_decay": 0.1},
    ASGD: {"t0": 2},
}
_BESIDE = (
    *(Lion, Adafactor, Muon, AdEMAMix, ADOPT, ScheduleFreeAdamW, ScheduleFreeSGD),
    *(CAME, LAMB, StableAdamW, Prodigy, TransformersAdafactor),
)
MULTI = {cls: _IN_A_GROUP.get(cls, {}) for cls in dict.fromkeys((*TABLE, *_BESIDE))}
"""What goes into one optimizer with others, with the settings of its group."""


class Nudged(AdamW):
    """An optimizer that somebody has derived from one of the package's."""
