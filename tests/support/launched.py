"""A run of a RecipeTrainer in each of several processes, for ``accelerate launch``."""

import functools
import os
import sys
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from support.bert import collate, tiny_bert, tiny_rows
from support.processes import leave
from support.trainers import SaveAfter, arguments, run
from torch.distributed.tensor import DTensor
from transformers import Trainer

from optimplug.callbacks.huggingface import SchedulerCallback
from optimplug.huggingface import RecipeTrainer

# As the loss falls, a plateau that waits for it to rise lowers the rates at each evaluation.
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "eval_loss", "mode": "max"}
RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 0.01, "max_grad_norm": 0.5},
    "groups": [
        {"layer_decay": 0.8},
        {"match": {"type": "norm"}, "weight_decay": 0},
        {"match": "classifier.*", "lr_scale": 10},
        {"match": "*embeddings*", "freeze": {"until": 3}},
    ],
    "schedule": [
        {"name": "LinearLR", "start_factor": 0.1, "for": "1 epoch"},
        {**PLATEAU, "patience": 0, "factor": 0.5},
    ],
}
# Not one of optimplug's, which would clip by itself.
ANOTHER = {
    "optimizer": {"name": "torch.optim.SGD", "lr": 0.5, "momentum": 0.9, "max_grad_norm": 0.5},
    "groups": [{"match": "classifier.*", "lr_scale": 0.1}],
    "schedule": RECIPE["schedule"],
}

SETTINGS = {
    "num_train_epochs": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    # By default the Trainer multiplies this model's loss by the number of processes.
    "average_tokens_across_devices": False,
}


def trainer_of(folder, batch=4, prepare=lambda: None, recipe=RECIPE):
    args = arguments(folder, **SETTINGS, per_device_train_batch_size=batch)
    assert args.device.type == "cpu"
    prepare()
    return RecipeTrainer(
        model=tiny_bert(),
        args=args,
        train_dataset=tiny_rows(24),
        eval_dataset=tiny_rows(8),
        data_collator=collate,
        recipe=recipe,
    )


def let_fsdp_be():
    """Have accelerate heed --use_fsdp on a CPU too: it does so on devices that it lists, only."""
    assert PartialState().distributed_type == DistributedType.MULTI_CPU
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def result(trainer, rates):
    model = trainer.model
    sharded = sum(isinstance(p.data, DTensor) for p in model.parameters())
    weights = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach()
        for name, p in model.named_parameters()
    }
    state = trainer.lr_scheduler.state_dict()
    kind = str(trainer.accelerator.distributed_type)
    return {
        "rates": rates,
        "weights": weights,
        "scheduler": state,
        "kind": kind,
        "sharded": sharded,
        "optimizer": type(trainer.optimizer.optimizer).__name__,
    }


def recipe_run(recipe, folder, batch, checkpoint=None):
    fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    trainer = trainer_of(folder / "run", batch, let_fsdp_be if fsdp else lambda: None, recipe)
    trainer.add_callback(SaveAfter([7]))
    return trainer, run(trainer, checkpoint)


def own_metrics_run(trainer_class, folder, batch):
    """A metric that only the main process sees get worse, and a plateau that follows it."""
    model = tiny_bert()
    if trainer_class is RecipeTrainer:
        plateau = {"name": "ReduceLROnPlateau", "monitor": "eval_own", "patience": 0, "factor": 0.5}
        optimizer = {"name": "SGD", "lr": 0.1}
        given = {"recipe": {"optimizer": optimizer, "schedule": [plateau]}}
    else:
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, patience=0, factor=0.5)
        callback = SchedulerCallback(plateau, interval="validation", monitor="own")
        given = {"optimizers": (sgd, callback.scheduler), "callbacks": [callback]}
    trainer = trainer_class(
        model=model,
        args=arguments(folder / "run", **SETTINGS, per_device_train_batch_size=batch),
        train_dataset=tiny_rows(24),
        eval_dataset=tiny_rows(8),
        data_collator=collate,
        compute_metrics=lambda _: {"own": (1.0 - 2.0 * rank) * trainer.state.global_step},
        **given,
    )
    rank = trainer.args.process_index
    return trainer, run(trainer)


WAYS = {
    "recipe": functools.partial(recipe_run, RECIPE),
    "another": functools.partial(recipe_run, ANOTHER),
    "own metrics, recipe": functools.partial(own_metrics_run, RecipeTrainer),
    "own metrics, callback": functools.partial(own_metrics_run, Trainer),
}

if __name__ == "__main__":
    way, folder, *checkpoint = sys.argv[1:]
    batch = 4 // int(os.environ["WORLD_SIZE"])
    trainer, rates = WAYS[way](Path(folder), batch, *checkpoint)
    torch.save(result(trainer, rates), Path(folder, f"{trainer.args.process_index}.pt"))
    leave()
