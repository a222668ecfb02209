"""Networks whose stages are made in different ways: right, or the plan says what it may have wrong."""

import re
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from support.layers import expected_depth, record_calls

from optimplug import Horizon, Recipe
from optimplug.recipe.parameters.depth.depth import find_layout

TRUTH = yaml.safe_load(Path(__file__).with_name("networks.yaml").read_text())
CASES = [(source, name) for source in TRUTH for name in TRUTH[source]]
RECIPE = Recipe.load({"optimizer": {"name": "AdamW"}, "groups": [{"layer_decay": 0.9}]})


@pytest.fixture
def model(request, case):
    source, name = case
    config = TRUTH.get(source, {}).get(name, {}).get("config", {})
    with torch.device("meta"):
        if source == "timm":
            timm = request.getfixturevalue("timm")
            return timm.create_model(name, num_classes=2, **config).eval()
        if source == "diffusers":
            return getattr(request.getfixturevalue("diffusers"), name)(**config).eval()
        cls = getattr(transformers, name)
        return cls(cls.config_class(**config)).eval()


@pytest.mark.parametrize("case", CASES, ids=[name for _, name in CASES])
def test_depth(case, model):
    depths, found = TRUTH[case[0]][case[1]]["depth"], find_layout(model)
    assert {name: depth.layer for name, depth in found.depths.items()} == {
        name: expected_depth(name, depths) for name in found.depths
    }
    assert found.heights == (len(depths) - 2,)
    assert not RECIPE.plan(model, Horizon(total_steps=1)).warnings


def inputs(model, truth):
    if isinstance(model, transformers.RwkvForCausalLM):
        return (torch.ones(truth["input"], dtype=torch.long, device="meta"),)
    if "input" in truth:
        return (torch.ones(truth["input"], device="meta"),)
    # A UNet's: pictures, a time, words.
    shapes = [(1, 4, 8, 8), (1,), (1, 3, 16)]
    return tuple(torch.ones(shape, device="meta") for shape in shapes)


FIRST = dict(reversed(CASES)).items()  # of each collection


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case[1], marks=() if case in FIRST else pytest.mark.slow)
        for case in CASES
    ],
)
def test_depth_grows_in_the_order_of_a_run(case, model):
    calls = record_calls(model)
    with torch.no_grad():
        model(*inputs(model, TRUTH[case[0]][case[1]]))
    found = find_layout(model).depths
    run = [found[name].layer for name in calls]
    assert run == sorted(run)
    assert len(set(run)) == len(TRUTH[case[0]][case[1]]["depth"])


DOUBTFUL = {  # several resolutions at once: no order of layers is right
    (
        "timm",
        "hrnet_w18_small",
    ): r"stage2, stage3, stage4.* of HighResolutionNet were taken for",
    ("timm", "coat_tiny"): r"serial_blocks1.* of CoaT were taken for 2 towers side by side; if its",
    (
        "timm",
        "coat_lite_tiny",
    ): r"cpe1.proj.weight.* lies outside of the layers, but is used in one",
}


@pytest.mark.parametrize("case", DOUBTFUL, ids=[name for _, name in DOUBTFUL])
def test_the_plan_says_what_it_may_have_wrong(case, model):
    plan = RECIPE.plan(model, Horizon(total_steps=1))
    path, message = plan.warnings[0]
    assert path == "groups[0]"
    assert "layers" in message
    assert any(re.search(DOUBTFUL[case], text) for _, text in plan.warnings)
