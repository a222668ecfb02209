"""Optimizers and schedulers, with the names and meanings of ``torch.optim``.

Change one import: ``import optimplug.optim as optim``.
"""

from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rules.adadelta import Adadelta
from optimplug._core.optim.rules.adagrad import Adagrad
from optimplug._core.optim.rules.adam import Adam, AdamW
from optimplug._core.optim.rules.adamax import Adamax
from optimplug._core.optim.rules.asgd import ASGD
from optimplug._core.optim.rules.came import CAME
from optimplug._core.optim.rules.factored_transformers import TransformersAdafactor
from optimplug._core.optim.rules.lamb import LAMB
from optimplug._core.optim.rules.nadam import NAdam
from optimplug._core.optim.rules.radam import RAdam
from optimplug._core.optim.rules.rmsprop import RMSprop
from optimplug._core.optim.rules.sgd import SGD
from optimplug._core.optim.rules.sign import Lion, Rprop
from optimplug._core.optim.rules.stable_adamw import StableAdamW
from optimplug.optim import lr_scheduler

__all__ = [
    "ASGD",
    "CAME",
    "LAMB",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "StableAdamW",
    "TransformersAdafactor",
    "lr_scheduler",
]
