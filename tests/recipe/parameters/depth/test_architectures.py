"""Depth, norms and biases of many architectures, against a truth written by hand."""

import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from support.layers import expected_depth, record_calls

from optimplug.recipe.parameters.depth.depth import find_depths
from optimplug.recipe.parameters.match import places

TRUTH = yaml.safe_load(Path(__file__).with_name("architectures.yaml").read_text())
CASES = [(source, name) for source in ("transformers", "timm") for name in TRUTH[source]]
IDS = [name for _, name in CASES]


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
    calls = record_calls(model)
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
