"""The recipes that several tests start from."""

from optimplug import Horizon, Recipe

RUN = Horizon(total_steps=100, steps_per_epoch=10)
ADAMW = {"name": "AdamW", "lr": 1e-3}
FULL = {
    "optimizer": {**ADAMW, "weight_decay": 0.1, "max_grad_norm": 1.0, "betas": [0.9, 0.98]},
    "groups": [
        {"layer_decay": 0.5},
        {"match": {"type": "norm"}, "weight_decay": 0},
        {"match": "*.bias", "weight_decay": 0},
        {"match": "classifier.*", "lr_scale": 10},
        {"match": "*position_embeddings*", "freeze": True},
    ],
    "schedule": [
        {"name": "LinearLR", "start_factor": 0.1, "for": "10%"},
        {"name": "CosineAnnealingLR", "floor": 0.1},
    ],
}


def recipe_of(*groups, schedule=(), **optimizer):
    return Recipe.load(
        {"optimizer": {**ADAMW, **optimizer}, "groups": list(groups), "schedule": list(schedule)}
    )
