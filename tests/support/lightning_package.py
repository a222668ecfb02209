"""Lightning's classes, from the one of its two packages that this run of the tests is about.

``OPTIMPLUG_TEST_LIGHTNING=pytorch_lightning`` runs them with that one; else it is
``lightning.pytorch``. As it is imported here, the adapter uses the same.
"""

import os
from importlib import import_module

NAME = os.environ.get("OPTIMPLUG_TEST_LIGHTNING", "lightning.pytorch")
OTHER = {"lightning.pytorch": "pytorch_lightning", "pytorch_lightning": "lightning.pytorch"}[NAME]
PACKAGE = import_module(NAME)
_ROOMS = ("callbacks", "cli", "core.optimizer", "loggers", "plugins", "strategies", "tuner")
_FABRIC = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}[NAME]


def __getattr__(name):
    for room in (NAME, *(f"{NAME}.{room}" for room in _ROOMS), _FABRIC):
        if hasattr(module := import_module(room), name):
            return getattr(module, name)
    raise AttributeError(f"no {name} in {NAME}")
