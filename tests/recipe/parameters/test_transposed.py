"""Weights that are (in, out): recipes know them by their module and say so to Muon."""

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from optimplug import Horizon, Recipe
from optimplug.optim import Muon

RUN = Horizon(total_steps=10)
ADAMW = {"name": "AdamW", "lr": 1e-3}
SETTINGS = {"name": "Muon", "lr": 0.02, "adjust_lr_fn": "rms_to_rms", "foreach": False}
MUON = {**SETTINGS, "fallback": ADAMW}
RECIPE = {
    "optimizer": MUON,
    "groups": [{"match": "*.c_attn.weight", "split": 3}],
}


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=24, n_head=2, vocab_size=40, n_positions=8, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def by_name(optimizer):
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


def test_gpt2_trains_as_if_its_weights_were_those_of_linear_layers():
    model = gpt2()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer, _ = Recipe(RECIPE).build(model, RUN)
    tokens = torch.arange(16).view(2, 8)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    found = by_name(optimizer)
    hidden = [n for n in before if ".h." in n and n.endswith("weight") and ".ln" not in n]
    assert len(hidden) == 8
    for name, p in model.named_parameters():
        assert found[name].get("transposed") is (True if name in hidden else None), name
        if name not in hidden:
            continue
        plain = nn.Parameter(before[name].T.contiguous())
        plain.grad = p.grad.T.contiguous()
        split = 3 if "c_attn" in name else None
        Muon([plain], 0.02, adjust_lr_fn="rms_to_rms", split=split, foreach=False).step()
        assert torch.equal(p.T, plain), name


def told(layer, recipe):
    """What a recipe tells Muon of the weights of two such layers."""
    model = nn.Sequential(*(nn.Sequential(layer(), nn.ReLU()) for _ in range(2)))
    optimizer, _ = Recipe(recipe).build(model, RUN)
    return {g["transposed"] for n, g in by_name(optimizer).items() if n.endswith("weight")}


class Copied(nn.Module):
    """What many scripts have copied from GPT-2."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


Copied.__name__ = "Conv1D"


class Derived(Conv1D):
    pass


class Otherwise(nn.Conv1d):
    pass


Otherwise.__name__ = "Conv1D"


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: Conv1D(4, 4), True),
        (lambda: Derived(4, 4), True),
        (lambda: Copied(4, 4), True),
        (lambda: nn.Linear(4, 4), False),
        (lambda: Otherwise(4, 4, 1), False),
    ],
    ids=["transformers'", "derived", "copied", "linear", "of torch"],
)
def test_a_module_is_known_by_its_class_and_what_it_does(layer, expected):
    assert told(layer, {"optimizer": MUON}) == {expected}


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": {**MUON, "transposed": False}},
        {"optimizer": MUON, "groups": [{"match": "*.weight", "transposed": False}]},
    ],
    ids=["of the optimizer", "of a rule"],
)
def test_what_the_recipe_says_of_it_holds(recipe):
    assert told(lambda: Conv1D(4, 4), recipe) == {False}
