"""Plans of few and of many groups, as tables and pictures show them."""

from functools import cache

from support.bert import tiny_bert

from optimplug import Horizon, Recipe

RUN = Horizon(total_steps=1000, steps_per_epoch=100)
_SCHEDULE = [
    {"name": "LinearLR", "start_factor": 0.1, "for": "10%"},
    {"name": "CosineAnnealingLR", "floor": 0.1},
]
_EMBEDDINGS = {"match": "bert.embeddings.*", "freeze": True}
_QUERY = {"match": "*.query.*", "lr_scale": 0.7}
FEW = {
    "optimizer": {"name": "AdamW", "lr": 1e-3, "weight_decay": 0.1},
    "groups": [{"layer_decay": 0.8}, {"no_decay": ["norm", "bias"]}, _QUERY, _EMBEDDINGS],
    "schedule": _SCHEDULE,
}
"""18 groups: four in each of four layers, and two of the head."""
MANY = {
    "optimizer": {"name": "AdamW", "lr": 1e-3, "weight_decay": 0.1},
    "groups": [
        {"layer_decay": 0.85},
        {"no_decay": ["norm", "bias"]},
        _QUERY,
        {"match": "*.value.*", "lr_scale": 1.2},
        {"match": "*.intermediate.*", "betas": [0.8, 0.99]},
        {"match": ["*.layer.0.*", "*.layer.1.*", "*.layer.2.*"], "freeze": {"until": "30%"}},
        _EMBEDDINGS,
    ],
    "schedule": [
        *_SCHEDULE,
        {"name": "LinearLR", "start_factor": 1, "end_factor": 0.2, "of": "weight_decay"},
    ],
}
"""226 groups: eight in each of 28 layers, and two of the head."""


@cache  # nothing changes a plan
def few_groups():
    return Recipe.load(FEW).plan(tiny_bert(4), RUN)


@cache
def many_groups():
    return Recipe.load(MANY).plan(tiny_bert(28), RUN)
