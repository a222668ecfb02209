"""Optimizers and schedulers, with the names and meanings of ``torch.optim``.

Change one import: ``import optimplug.optim as optim``.
"""

from optimplug._core.optim.multi import MultiOptimizer
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rules.adadelta import Adadelta
from optimplug._core.optim.rules.adagrad import Adagrad
from optimplug._core.optim.rules.adam import Adam, AdamW
from optimplug._core.optim.rules.adamax import Adamax
from optimplug._core.optim.rules.ademamix import AdEMAMix
from optimplug._core.optim.rules.adopt import ADOPT
from optimplug._core.optim.rules.asgd import ASGD
from optimplug._core.optim.rules.averaged import ScheduleFreeAdamW
from optimplug._core.optim.rules.averaged_sgd import ScheduleFreeSGD
from optimplug._core.optim.rules.came import CAME
from optimplug._core.optim.rules.factored import Adafactor
from optimplug._core.optim.rules.factored_transformers import TransformersAdafactor
from optimplug._core.optim.rules.lamb import LAMB
from optimplug._core.optim.rules.lbfgs import LBFGS
from optimplug._core.optim.rules.matrix import Muon
from optimplug._core.optim.rules.nadam import NAdam
from optimplug._core.optim.rules.prodigy import Prodigy
from optimplug._core.optim.rules.radam import RAdam
from optimplug._core.optim.rules.rmsprop import RMSprop
from optimplug._core.optim.rules.sgd import SGD
from optimplug._core.optim.rules.sign import Lion, Rprop
from optimplug._core.optim.rules.sparse_adam import SparseAdam
from optimplug._core.optim.rules.stable_adamw import StableAdamW
from optimplug.optim import lr_scheduler

__all__ = [
    "ADOPT",
    "ASGD",
    "CAME",
    "LAMB",
    "LBFGS",
    "SGD",
    "AdEMAMix",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "MultiOptimizer",
    "Muon",
    "NAdam",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "SparseAdam",
    "StableAdamW",
    "TransformersAdafactor",
    "lr_scheduler",
]
