"""Runs of the Trainer with a recipe, on a small BERT."""

import pytest
import torch
from support.bert import collate, tiny_bert, tiny_rows
from support.trainers import StopAfter as End
from support.trainers import arguments
from transformers import Trainer

from optimplug.huggingface import RecipeTrainer
from optimplug.huggingface.internals import TAKES_FACTORIES

FROM_FACTORIES = pytest.mark.skipif(
    not TAKES_FACTORIES, reason="before 5.3, a Trainer builds no optimizer from its model"
)

RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 1e-2, "max_grad_norm": 0.5},
    "groups": [{"layer_decay": 0.8}, {"match": "*.bias", "weight_decay": 0}],
    "schedule": [
        {"name": "LinearLR", "start_factor": 0.1, "for": "1 epoch"},
        {"name": "CosineAnnealingLR", "floor": 0.1},
    ],
}
# Matrices in layers have one optimizer, all else another.
SEVERAL = {
    **RECIPE,
    "optimizer": {
        "name": "Muon",
        "lr": 1e-3,
        "max_grad_norm": 0.5,
        "fallback": {"name": "AdamW", "lr": 1e-2},
    },
}
UNCLIPPED = {**RECIPE, "optimizer": {"name": "AdamW", "lr": 1e-2}}


OTHERS = ("resume", "optimizers", "optimizer_cls_and_kwargs", "eval_dataset", "compute_metrics")


def trainer_of(
    folder, recipe=RECIPE, cls=RecipeTrainer, callbacks=(), data=None, model=None, **changes
):
    """A trainer with a recipe; with ``cls=Trainer``, the same without one.

    What is under ``trainer`` is the trainer's, where the arguments have something of that name.
    """
    others = {name: changes.pop(name) for name in OTHERS if name in changes}
    others |= changes.pop("trainer", {})
    return cls(
        model=tiny_bert() if model is None else model,
        args=arguments(folder, **changes),
        train_dataset=tiny_rows() if data is None else data,
        data_collator=collate,
        callbacks=list(callbacks),
        **({} if cls is Trainer else {"recipe": recipe}),
        **others,
    )


class OneWeight(torch.nn.Module):
    """A model of one weight and one bias, which costs next to nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.bias = torch.nn.Parameter(torch.ones(()))

    def forward(self, input_ids, labels, attention_mask=None):
        return {"loss": (self.weight * input_ids.float().mean() + self.bias).square()}


class StopAfter(End):
    """Ends a run after so many updates, with a checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == self.step:
            control.should_save = True
