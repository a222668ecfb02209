"""Learning rate schedulers, with the names and meanings of ``torch.optim.lr_scheduler``."""

from optimplug._core.lr_scheduler.base import LRScheduler
from optimplug._core.lr_scheduler.compose import ChainedScheduler, SequentialLR
from optimplug._core.lr_scheduler.cosine import CosineAnnealingLR, CosineAnnealingWarmRestarts
from optimplug._core.lr_scheduler.cyclic import CyclicLR
from optimplug._core.lr_scheduler.decay import (
    ConstantLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from optimplug._core.lr_scheduler.lambdas import LambdaLR, MultiplicativeLR
from optimplug._core.lr_scheduler.onecycle import OneCycleLR
from optimplug._core.lr_scheduler.plateau import ReduceLROnPlateau

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]

_LRScheduler = LRScheduler  # its name in older versions of torch
