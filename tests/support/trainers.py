"""Runs of the Trainer on two linear layers: arguments, resuming, stopping and saving."""

from dataclasses import fields
from pathlib import Path

import accelerate
import torch
import transformers
from support.tensors import same_weights
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from optimplug.callbacks.huggingface import LearningRateTrace
from optimplug.huggingface import RecipeTrainer

RELEASE = f"transformers {transformers.__version__} with accelerate {accelerate.__version__}"


def check_inside(holds, what):
    """Hold what the adapter relies on inside of transformers, and name the release that broke it."""
    assert holds, f"{RELEASE} is not what internals.py relies on: {what}"


# transformers before 5.3 takes the rows at random, and cannot be told otherwise: here, in order.
IN_ORDER = {"train_sampling_strategy": "sequential"}
AT_RANDOM = {"train_sampling_strategy": "random"}
BY_LENGTH = {"train_sampling_strategy": "group_by_length"}
if "train_sampling_strategy" not in {field.name for field in fields(TrainingArguments)}:
    IN_ORDER, AT_RANDOM, BY_LENGTH = {}, {}, {"group_by_length": True}
    Trainer._get_train_sampler = lambda trainer, _=None: SequentialSampler(trainer.train_dataset)


class Lines(nn.Module):
    """Two layers and a loss: the smallest that a Trainer trains; the same weights at every call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x, labels):
        logits = self.head(self.body(x).tanh())
        return {"loss": (logits - labels).square().mean(), "logits": logits}


def points(count=22):
    """Rows for Lines."""
    generator = torch.Generator().manual_seed(0)
    return [{"x": x, "labels": x.sum(0, True)} for x in torch.randn(count, 3, generator=generator)]


def arguments(folder, arguments_class=TrainingArguments, **changes):
    """6 batches of 4 and of 2 rows, in order, for 3 epochs, with nothing saved or logged."""
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        **IN_ORDER,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    return arguments_class(output_dir=str(folder), **{**settings, **changes})


def optimizer_of(trainer):
    """The optimizer itself: transformers since 5.3 shows its run accelerate's wrapper of it."""
    return getattr(trainer.run.optimizer, "optimizer", trainer.run.optimizer)


RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 0.01, "weight_decay": 0.1, "max_grad_norm": 0.5},
    "groups": [{"match": "head.*", "lr_scale": 10}, {"match": "*.bias", "weight_decay": 0}],
}


def recipe_trainer(folder, schedule, groups=(), optimizer=None, rows=None, callbacks=(), **changes):
    """Lines in a RecipeTrainer; ``groups`` are rules beside those of RECIPE.

    Its metric, ``eval_worse``, gets worse with every update.
    """
    own = {"groups": [*RECIPE["groups"], *groups], "schedule": schedule}
    if optimizer is not None:
        own["optimizer"] = optimizer
    trainer = RecipeTrainer(
        model=Lines(),
        args=arguments(folder, **changes),
        train_dataset=points() if rows is None else rows,
        eval_dataset=points(4),
        recipe={**RECIPE, **own},
        callbacks=list(callbacks),
        compute_metrics=lambda _: {"worse": float(trainer.state.global_step)},
    )
    return trainer


def run(trainer, resume=None):
    """Train, and return the rates of every group at every update."""
    trace = LearningRateTrace()
    trainer.add_callback(trace)
    trainer.train(resume_from_checkpoint=resume)
    trainer.remove_callback(trace)
    return trace.rates


def check_resume(trainer_of, folder, stops, every="no"):
    """Resume from checkpoints of a whole run; the rest must be that run's, bit for bit.

    ``trainer_of`` makes a new trainer, given its folder and more arguments.
    """
    whole = trainer_of(folder, save_strategy=every)
    if every == "no":
        whole.add_callback(SaveAfter(stops))
    rates = run(whole)
    for stop in stops:
        resumed = trainer_of(folder / f"from-{stop}")
        rest = run(resumed, str(folder / f"checkpoint-{stop}"))
        assert rest == {name: held[stop:] for name, held in rates.items()}, stop
        assert same_weights(resumed.model, whole.model), stop
    return whole, rates


class SaveAfter(TrainerCallback):
    """Saves a checkpoint after these updates, as ``save_strategy="steps"`` does."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            control.should_save = True


class StopAfter(TrainerCallback):
    """Ends a run after so many updates."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True


def weights_in(folder):
    """The weights that a Trainer has saved in a folder."""
    (file,) = [*Path(folder).glob("*.safetensors"), *Path(folder).glob("pytorch_model.bin")]
    if file.suffix == ".bin":
        return torch.load(file, weights_only=True)
    from safetensors.torch import load_file

    return load_file(file)
