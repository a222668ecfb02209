"""Wrappers are no part of a name: the plan of a wrapped model is that of the model."""

import pytest
import torch
from support.bert import tiny_bert
from support.lightning_package import Fabric
from support.recipes import FULL, RUN, recipe_of
from support.rows import each_in_turn
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE

from optimplug import Recipe
from optimplug.recipe.parameters.wrappers import without_wrappers


class FullyShardedDataParallel(nn.Module):
    """FSDP1 needs a process group and a device; here it is its name for the module alone."""

    def __init__(self, module):
        super().__init__()
        self.add_module(FSDP_WRAPPED_MODULE, module)


def compiled(module):
    """The wrapper alone, as nothing is run; the default backend takes long to import."""
    return torch.compile(module, backend="eager")


WRAPPERS = {
    "torch.compile": compiled,
    "DataParallel": nn.DataParallel,
    "activation checkpointing": checkpoint_wrapper,
    "FSDP": FullyShardedDataParallel,
    "Fabric": lambda module: Fabric(accelerator="cpu", devices=1).setup(module),
    "compiled and parallel": lambda module: nn.DataParallel(compiled(module)),
}
RULES = {
    "full": FULL["groups"],
    "not a glob": [{"match": {"not": {"name": "classifier.*"}}, "lr_scale": 3}],
    "regex": [{"match": {"regex": "^bert"}, "lr_scale": 3}],
    "depth and types": [{"match": {"depth": -1, "type": ["Linear", "LayerNorm"]}, "lr_scale": 3}],
    "kinds": [{"no_decay": ["norm", "bias", "embedding"]}],
}


PLACES = {
    "whole": lambda wrap, model: wrap(model),
    "each layer": lambda wrap, model: _each(wrap, model, model.bert.encoder.layer),
    "a list of layers": lambda wrap, model: _child(wrap, model, model.bert, "encoder"),
    "deep": lambda wrap, model: _child(wrap, model, model.bert.encoder.layer[1], "output"),
    "a head": lambda wrap, model: _child(wrap, model, model, "classifier"),
    "twice": lambda wrap, model: wrap(_child(wrap, model, model, "bert")),
}


def _each(wrap, model, modules):
    for i, module in enumerate(modules):
        modules[i] = wrap(module)
    return model


def _child(wrap, model, parent, name):
    setattr(parent, name, wrap(getattr(parent, name)))
    return model


@pytest.mark.parametrize(
    ("wrap", "place", "rules"), each_in_turn(WRAPPERS, PLACES, RULES, least=36)
)
def test_the_plan_of_a_wrapped_model_is_that_of_the_model(wrap, place, rules):
    recipe = Recipe.load({**FULL, "groups": RULES[rules]})
    model = PLACES[place](WRAPPERS[wrap], tiny_bert())
    plan, wrapped = (recipe.plan(m, RUN) for m in (tiny_bert(), model))
    assert wrapped.to_dict() == plan.to_dict()
    assert wrapped.shades() == plan.shades()
    assert wrapped.depth == plan.depth
    for name in ("classifier.bias", "bert.encoder.layer.1.output.dense.weight"):
        assert wrapped.explain(name).to_dict() == plan.explain(name).to_dict()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_build_has_the_models_own_parameters_by_the_same_names(wrap):
    model = tiny_bert()
    expected = {name: id(p) for name, p in model.named_parameters()}
    wrapped = _each(wrap, model, model.bert.encoder.layer)
    before = [name for name, _ in wrapped.named_modules()]
    with recipe_of({"match": "classifier.*", "freeze": True}).start(wrapped, RUN) as run:
        found = {
            name: id(p)
            for group in run.optimizer.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        }
        assert found == {k: v for k, v in expected.items() if not k.startswith("classifier")}
        assert not wrapped.classifier.weight.requires_grad
    assert wrapped.classifier.weight.requires_grad
    assert [name for name, _ in wrapped.named_modules()] == before


def test_distributed_data_parallel_is_seen_through(tmp_path):
    init = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=init, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(tiny_bert())
        recipe = Recipe.load(FULL)
        assert recipe.plan(model, RUN).to_dict() == recipe.plan(tiny_bert(), RUN).to_dict()
    finally:
        torch.distributed.destroy_process_group()


def test_a_part_that_the_user_calls_module_stays_in_the_name():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    names = list(recipe_of().plan(nn.DataParallel(nn.Sequential(Own())), RUN).grouping.parameters)
    assert names == ["0.module.weight", "0.module.bias"]
    rule = {"match": "module.*", "lr_scale": 2}
    assert recipe_of(rule).plan(nn.DataParallel(Own()), RUN).groups[0].lr == 2e-3


def test_a_wrapped_module_that_is_there_twice_is_tied_still():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(compiled(shared)), nn.Sequential(shared))
    plan = recipe_of({"match": "1.*", "lr_scale": 2}).plan(model, RUN)
    assert plan.tied == (("0.0.weight", "1.0.weight"), ("0.0.bias", "1.0.bias"))
    bare = without_wrappers(nn.Sequential(model, model))
    assert bare[0] is bare[1]


def test_a_model_without_wrappers_is_returned_as_it_is():
    model = tiny_bert()
    assert without_wrappers(model) is model
    assert without_wrappers(nn.DataParallel(model)) is model
