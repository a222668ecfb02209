"""Settings that depend on a parameter's shape: judged with the model, and not before."""

import pytest
import torch
from support.labels import label
from torch import nn

from optimplug import Horizon, Recipe, RecipeError
from optimplug.optim import Muon

RUN = Horizon(total_steps=10)
ADAMW = {"name": "AdamW", "lr": 1e-3}
MUON = {"name": "Muon", "lr": 0.02, "fallback": ADAMW}
QKV = "*.qkv.weight"


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(12, 4)

    def forward(self, x):
        return self.out(self.qkv(x))


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList([Layer(), Layer()]), "head": nn.Linear(4, 2)})


def by_recipe(split):
    return {"optimizer": {**MUON, "split": split}}


def by_rule(split):
    return {"optimizer": MUON, "groups": [{"match": QKV, "split": split}]}


def by_rules_optimizer(split):
    own = {"name": "Muon", "lr": 0.02, "split": split}
    return {"optimizer": ADAMW, "groups": [{"match": QKV, "optimizer": own}]}


@pytest.mark.parametrize("split", [2, 3, [4, 4, 4], [16, 16, 16]], ids=label)
@pytest.mark.parametrize("recipe", [by_recipe, by_rule, by_rules_optimizer])
def test_no_split_is_refused_for_its_shape_without_a_model(recipe, split):
    Recipe(recipe(split))


@pytest.mark.parametrize("split", [0, "rows", 1.5, [4, -4], True], ids=label)
@pytest.mark.parametrize(
    ("recipe", "path"),
    [
        (by_recipe, "optimizer.split"),
        (by_rule, "groups[0].split"),
        (by_rules_optimizer, "groups[0].optimizer.split"),
    ],
)
def test_what_is_no_split_is_refused_without_a_model(recipe, path, split):
    with pytest.raises(RecipeError, match="split should be counts of 1 or more") as error:
        Recipe(recipe(split))
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("ask", [Recipe.plan, Recipe.build])
@pytest.mark.parametrize(
    ("recipe", "path"),
    [
        (by_recipe, "optimizer.split"),
        (by_rule, "groups[0].split"),
        (by_rules_optimizer, "groups[0].optimizer.split"),
    ],
)
def test_a_split_that_does_not_fit_names_the_parameters_and_the_rule(recipe, path, ask):
    with pytest.raises(RecipeError) as error:
        ask(Recipe(recipe([8, 8])), model(), RUN)
    line = next(line for line in str(error.value).splitlines() if "12 rows" in line)
    assert line == (
        f"{path}: split=(8, 8) does not fit the 12 rows of torch.Size([12, 4]); this is of "
        "layers.0.qkv.weight, layers.1.qkv.weight"
    )


@pytest.mark.parametrize("recipe", [by_rule, by_rules_optimizer])
def test_a_rules_split_is_that_of_the_optimizer_written_by_hand(recipe):
    ours, theirs = model(), model()
    optimizer, _ = Recipe(recipe(3)).build(ours, RUN)
    fused = [layer.qkv.weight for layer in theirs["layers"]]
    by_hand = Muon(fused, lr=0.02, split=3)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone() if "qkv.weight" in name else None
    optimizer.step()
    by_hand.step()
    assert all(map(torch.equal, [layer.qkv.weight for layer in ours["layers"]], fused))
