"""Runs of the Trainer that several tests share."""

import torch
from support.bert import collate, tiny_bert, tiny_rows
from transformers import Trainer, TrainerCallback, TrainingArguments

from optimplug.huggingface import RecipeTrainer

RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 1e-2, "max_grad_norm": 0.5},
    "groups": [{"layer_decay": 0.8}, {"match": "*.bias", "weight_decay": 0}],
    "schedule": [
        {"name": "LinearLR", "start_factor": 0.1, "for": "1 epoch"},
        {"name": "CosineAnnealingLR", "floor": 0.1},
    ],
}
UNCLIPPED = {**RECIPE, "optimizer": {"name": "AdamW", "lr": 1e-2}}


OTHERS = ("optimizers", "optimizer_cls_and_kwargs", "eval_dataset", "compute_metrics")


def arguments(folder, arguments_class=TrainingArguments, **changes):
    # 22 rows in batches of 4 are 6 batches: with accumulation 4, updates of 4 and of 2 batches.
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "max_grad_norm": 1.0,
    }
    return arguments_class(output_dir=str(folder), **{**settings, **changes})


def trainer_of(
    folder, recipe=RECIPE, cls=RecipeTrainer, callbacks=(), data=None, model=None, **changes
):
    """A trainer with a recipe; with ``cls=Trainer``, the same without one."""
    others = {name: changes.pop(name) for name in OTHERS if name in changes}
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


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = True
            control.should_training_stop = True
