"""Collections of models, imported as they are here: without what they need for other things."""

import enum
import importlib.machinery
import sys
import types

import pytest


class Torchvision:
    """Finds a module that has whatever name is asked for: timm imports transforms, unused here."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__version__ = "0.0"

        def anything(name):
            if name.startswith("__"):
                raise AttributeError(name)
            if name == "InterpolationMode":
                return enum.Enum(name, "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
            return type(name, (), {})

        module.__getattr__ = anything
        return module

    def exec_module(self, module):
        pass


@pytest.fixture(scope="module")
def timm():
    """timm, imported beside a stand-in for torchvision, which nobody else gets to see."""
    finder = Torchvision()
    sys.meta_path.insert(0, finder)
    try:
        return pytest.importorskip("timm", reason="timm is not installed: see the Makefile")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


@pytest.fixture(scope="session")
def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed: see the Makefile")
