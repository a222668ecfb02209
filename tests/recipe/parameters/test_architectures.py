"""Depth, norms and biases of many architectures, against a truth written by hand."""

import enum
import importlib.machinery
import sys
import types
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from optimplug.recipe.parameters.depth import find_depths
from optimplug.recipe.parameters.match import places

TRUTH = yaml.safe_load(Path(__file__).with_name("architectures.yaml").read_text())
CASES = [(source, name) for source in ("transformers", "timm") for name in TRUTH[source]]
IDS = [name for _, name in CASES]


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


@pytest.fixture
def model(request, case):
    source, name = case
    config = TRUTH[source][name]["config"]
    if source == "timm":
        timm = request.getfixturevalue("timm")
        with torch.device("meta"):
            return timm.create_model(name, num_classes=2, **config)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**config)).eval()


def truth(case):
    return TRUTH[case[0]][case[1]]


def expected_depth(name, depths):
    """The depth of the longest listed name that the parameter's begins with."""
    listed = {prefix: i for i, prefixes in enumerate(depths) for prefix in prefixes}
    within = [prefix for prefix in listed if f"{name}.".startswith(f"{prefix}.")]
    return listed[max(within, key=len)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_depth(case, model):
    depths = truth(case)["depth"]
    found = {name: depth.layer for name, depth in find_depths(model).items()}
    assert found == {name: expected_depth(name, depths) for name in found}
    assert set(found.values()) == set(range(len(depths)))
    prefixes = [prefix for level in depths for prefix in level]
    assert all(any(f"{n}.".startswith(f"{p}.") for n in found) for p in prefixes)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_kinds(case, model):
    known, named = truth(case), [place for named in places(model) for place in named]
    norms = {p.name for p in named if any(fnmatchcase(owner(p), g) for g in known["norms"])}
    biases = known.get("biases", ["*.bias"])
    assert {place.name for place in named if "norm" in place.families} == norms
    assert {place.name for place in named if "bias" in place.families} == {
        place.name for place in named if any(fnmatchcase(place.name, glob) for glob in biases)
    }
    assert all(any(fnmatchcase(owner(p), glob) for p in named) for glob in known["norms"])


def owner(place):
    return place.name.rpartition(".")[0]


WITH_INPUT = [case for case in CASES if "input" in truth(case)]


@pytest.mark.parametrize("case", WITH_INPUT, ids=[name for _, name in WITH_INPUT])
def test_depth_grows_in_the_order_of_a_run(case, model):
    calls = []
    for name, module in model.named_modules():
        own = [n for n, _ in module.named_parameters(recurse=False)]
        if own and name:
            note = f"{name}.{own[0]}"
            module.register_forward_pre_hook(lambda *_, note=note: calls.append(note))
    inputs = {
        name: torch.ones(shape, dtype=torch.long if name.endswith("ids") else torch.float)
        for name, shape in truth(case)["input"].items()
    }
    with torch.no_grad():
        model(**inputs)
    depth = find_depths(model)
    for tower in truth(case).get("towers", [""]):
        run = [depth[name].layer for name in calls if name.startswith(tower)]
        assert run == sorted(run)
        assert len(set(run)) > 2 or tower == "model.vision_tower."  # not run without a picture


def test_at_least_forty_architectures_are_known():
    assert len(TRUTH["transformers"]) >= 40
    assert len(TRUTH["timm"]) >= 10


def test_transformers_does_not_see_the_stand_in(timm):
    assert timm.__version__
    assert not any(name.partition(".")[0] == "torchvision" for name in sys.modules)
    assert not transformers.utils.is_torchvision_available()
