"""What a recipe says the layers are."""

import pytest
import torch
from torch import nn

from optimplug import Horizon, Recipe
from optimplug.errors import RecipeError
from optimplug.recipe.parameters.depth.depth import find_depths
from optimplug.recipe.parameters.depth.layers import layers_by_name


class UNet(nn.Module):
    """Its order of registration is not that of a run, as in diffusers."""

    def __init__(self, blocks=2):
        super().__init__()
        self.out, self.inp = nn.Linear(2, 2), nn.Linear(2, 2)
        self.mid = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.up = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
        self.down = nn.ModuleList([nn.Linear(2, 2) for _ in range(blocks)])
        self.between = nn.Parameter(torch.ones(2))

    def forward(self, x):
        x = self.inp(x)
        for block in self.down:
            x = block(x)
        x = self.mid(x) * self.between
        for block in self.up:
            x = block(x)
        return self.out(x)


LAYERS = ["down.*", "mid", "up.*"]


def test_layers_by_name():
    found = find_depths(UNet(), LAYERS)
    assert {name.rpartition(".")[0] or name: depth for name, depth in found.items()} == {
        "inp": (0, 5), "down.0": (1, 4), "down.1": (2, 3), "mid.0": (3, 2),
        "between": (4, 1), "up.0": (4, 1), "out": (5, 0),
    }  # fmt: skip


def test_numbers_are_numbers_and_modules_without_parameters_no_layers():
    names = [path for (path,) in layers_by_name(UNet(12), ["down*.*", "up.*"])]
    assert names == [*(f"down.{i}" for i in range(12)), "up.0"]
    mixed = nn.ModuleDict({f"block{i}": nn.Linear(2, 2) for i in (10, 9, 1)})
    assert layers_by_name(mixed, ["block*"]) == (("block1",), ("block9",), ("block10",))


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, compiled, lambda m: compiled(nn.DataParallel(m))]
)
def test_wrappers_are_no_part_of_a_name(wrap):
    recipe = {"optimizer": {"name": "AdamW"}, "layers": LAYERS, "groups": [{"layer_decay": 0.5}]}
    plain, wrapped = (
        Recipe.load(recipe).plan(model, Horizon(total_steps=1)) for model in (UNet(), wrap(UNet()))
    )
    assert plain.depth == wrapped.depth
    assert plain.layout.heights == (4,)


WRONG = {
    "dead": (
        ["down.*", "midd", "up.*"],
        r"layers\[1\]: 'midd' matches no module; did you mean 'mid'",
    ),
    "all dead": (
        ["x.*", "zzz"],
        r"(?s)layers\[0\]: 'x\.\*' .*layers\[1\]: 'zzz' matches no module",
    ),
    "without parameters": (["mid", "up.1"], r"layers\[1\]: 'up.1' matches no module"),
    "a parameter": (["down.*", "between"], r"layers\[1\]: 'between' matches no module"),
    "twice": (["down.*", "down.1"], r"layers\[1\]: names down.1, of which layers\[0\] .* down.1"),
    "a part": (["mid", "mid.0"], r"layers\[1\]: names mid.0, of which layers\[0\] has named mid$"),
    "the whole of a part": (["mid.0", "mid"], r"layers\[1\]: names mid, of which layers\[0\]"),
    "one text": ("uup.*", r"layers: 'uup.\*' matches no module; did you mean 'up.\*'"),
    "empty": ([], r"layers: must have at least 1 item"),
    "no text": ([1], r"layers\[0\]: must be a text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_layers(case):
    layers, message = WRONG[case]
    recipe = {"optimizer": {"name": "AdamW"}, "layers": layers, "groups": [{"layer_decay": 0.5}]}
    model = UNet()
    with pytest.raises(RecipeError, match=message):
        Recipe.load(recipe).build(model, Horizon(total_steps=1))


def test_the_rates_and_the_plan():
    recipe = Recipe.load({
        "optimizer": {"name": "AdamW", "lr": 1.0}, "layers": LAYERS,
        "groups": [{"layer_decay": 0.5}, {"match": {"depth": -1}, "lr_scale": 3.0}],
    })  # fmt: skip
    plan = recipe.plan(UNet(), Horizon(total_steps=1))
    rates = {name: group.lr for group in plan.groups for name in group.parameters}
    assert (rates["inp.bias"], rates["down.1.bias"], rates["out.bias"]) == (1 / 32, 1 / 8, 3.0)
    assert plan.to_dict()["layers"] == [4]
    line = "4 layers in 1 tower; tensors: 2 below the first, 9 in them, 2 above the last"
    assert line in str(plan)
    assert not plan.warnings


def test_layers_that_nothing_asks_for_are_in_vain():
    recipe = Recipe.load({"optimizer": {"name": "AdamW"}, "layers": LAYERS})
    (warning,) = recipe.plan(UNet(), Horizon(total_steps=1)).warnings
    assert str(warning) == "layers: has no effect: no rule has layer_decay or a depth"


def test_a_model_without_a_head_has_the_full_rate_in_its_last_layer():
    recipe = Recipe.load({
        "optimizer": {"name": "AdamW", "lr": 1.0}, "groups": [{"layer_decay": 0.5}]
    })  # fmt: skip
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    plan = recipe.plan(model, Horizon(total_steps=1))
    assert {n: g.lr for g in plan.groups for n in g.parameters if "bias" in n} == {
        "0.bias": 0.5, "2.bias": 1.0
    }  # fmt: skip
    assert "0 below the top" in str(plan.explain("2.bias"))
