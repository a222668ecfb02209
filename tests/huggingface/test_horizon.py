import copy
import os
import random
import socket

import numpy
import pytest
import torch
from support.bert import collate, tiny_rows
from support.huggingface_runs import RECIPE, OneWeight, arguments, trainer_of
from support.processes import leave
from support.trainers import BY_LENGTH
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from optimplug import Horizon, Recipe, RecipeError
from optimplug.callbacks.huggingface import LearningRateTrace
from optimplug.callbacks.trace import LearningRateTrace as PlainTrace
from optimplug.huggingface import build, horizon_of


class Stream(IterableDataset):
    """Rows without end to them that anyone could know of."""

    def __iter__(self):
        return iter(tiny_rows())


class Counted(Stream):
    def __len__(self):
        return 22


# 22 rows in batches of 4 are 6 batches, the last one of 2 rows.
CASES = {
    "epochs": ({}, None, (18, 6)),
    "a part of an epoch": ({"num_train_epochs": 1.4}, None, (9, 6)),
    "less than an epoch": ({"num_train_epochs": 0.1}, None, (1, 6)),
    "drop_last": ({"dataloader_drop_last": True}, None, (15, 5)),
    "accumulation": ({"gradient_accumulation_steps": 3}, None, (6, 2)),
    "a window that is not full": ({"gradient_accumulation_steps": 4}, None, (6, 2)),
    "a window that is longer than an epoch": ({"gradient_accumulation_steps": 9}, None, (3, 1)),
    "parts of epochs of such windows": (
        {"gradient_accumulation_steps": 4, "num_train_epochs": 1.2},
        None,
        (3, 2),
    ),
    "drop_last and accumulation": (
        {"dataloader_drop_last": True, "gradient_accumulation_steps": 2},
        None,
        (9, 3),
    ),
    "max_steps": ({"max_steps": 5}, None, (5, 6)),
    "max_steps beyond the epochs": ({"max_steps": 20}, None, (20, 6)),
    "max_steps and accumulation": (
        {"max_steps": 5, "gradient_accumulation_steps": 4},
        None,
        (5, 2),
    ),
    "accumulation by accelerate's name": (
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}},
        None,
        (6, 2),
    ),
    "rows by their length": (BY_LENGTH, None, (18, 6)),
    "a stream": ({"max_steps": 7}, Stream, (7, None)),
    "a stream and accumulation": (
        {"max_steps": 3, "gradient_accumulation_steps": 4},
        Stream,
        (3, None),
    ),
    "a stream of known length": ({}, Counted, (18, 6)),
}  # fmt: skip
of_cases = pytest.mark.parametrize(("changes", "data", "known"), CASES.values(), ids=CASES)


class Counter(TrainerCallback):
    """Counts updates, and how many there were when the first epoch ended."""

    def __init__(self):
        self.updates, self.epoch = 0, None

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.updates += 1

    def on_epoch_end(self, args, state, control, **kwargs):
        self.epoch = self.epoch or self.updates


def run_of(folder, changes, data, **how):
    # A copy, since the Trainer writes into accelerator_config.
    data = data() if data else tiny_rows()
    return trainer_of(folder, data=data, model=OneWeight(), **how, **copy.deepcopy(changes))


@of_cases
def test_the_horizon_is_what_the_trainer_really_does(tmp_path, changes, data, known):
    told = horizon_of(
        arguments(tmp_path, **copy.deepcopy(changes)), data() if data else tiny_rows()
    )
    assert told == Horizon(*known)
    counter = Counter()
    trainer = run_of(tmp_path, changes, data, cls=Trainer, callbacks=[counter])
    assert horizon_of(trainer) == told
    trainer.train()
    assert counter.updates == trainer.state.max_steps == told.total_steps
    if told.steps_per_epoch and told.total_steps >= told.steps_per_epoch:
        assert counter.epoch == told.steps_per_epoch


FALLING = {"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.0}
BY_EPOCH = {"match": "bias", "schedule": {"name": "ExponentialLR", "gamma": 0.5, "every": "epoch"}}


@of_cases
def test_the_schedule_of_a_recipe_spans_the_run(tmp_path, changes, data, known):
    recipe = {
        "optimizer": {"name": "SGD", "lr": 1e-3},
        "groups": [BY_EPOCH] if known[1] else [],
        "schedule": FALLING,
    }
    trace = LearningRateTrace()
    trainer = run_of(tmp_path, changes, data, callbacks=[trace], recipe=recipe)
    trainer.train()
    assert trace.rates == rates_of(recipe, Horizon(*known))
    assert trainer.lr_scheduler.get_last_lr()[0] == 0


def rates_of(recipe, horizon):
    """The rates of as many updates as the horizon has, without a Trainer."""
    optimizer, scheduler = Recipe.load(recipe).build(OneWeight(), horizon)
    trace = PlainTrace()
    trace.attach(optimizer)
    for _ in range(horizon.total_steps):
        optimizer.step()
        scheduler.step()
    return trace.rates


def test_epochs_of_data_without_a_length_are_unknown(tmp_path):
    trainer = trainer_of(tmp_path, data=Stream(), max_steps=12)
    with pytest.raises(RecipeError, match=r"schedule\[0\]\.for: .*Horizon\.steps_per_epoch"):
        trainer.train()


def test_data_without_a_length_needs_max_steps(tmp_path):
    with pytest.raises(ValueError, match="max_steps must be set to a positive value"):
        horizon_of(arguments(tmp_path), Stream())


def test_asking_leaves_everything_as_it_is(tmp_path):
    folder = tmp_path / "out"
    config = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    args = arguments(folder, gradient_accumulation_steps=2, accelerator_config=config)
    before = (args.to_dict(), random.getstate(), torch.get_rng_state().tolist())
    drawn = numpy.random.get_state()[1].tolist()
    assert horizon_of(args, tiny_rows()) == Horizon(9, 3)
    assert before == (args.to_dict(), random.getstate(), torch.get_rng_state().tolist())
    assert drawn == numpy.random.get_state()[1].tolist()
    assert not folder.exists()
    Trainer(model=torch.nn.Linear(1, 1), args=args)  # which refuses a config that it has read


def test_a_horizon_is_what_a_plan_needs(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert horizon_of(args, tiny_rows()) == Horizon(9, 3)
    trainer = trainer_of(tmp_path, RECIPE)
    plan = trainer.recipe.plan(trainer.model, horizon_of(trainer))
    assert plan.horizon == Horizon(18, 6)


SPLIT = {
    "epochs": ({}, 9, 3),
    "drop_last": ({"dataloader_drop_last": True}, 6, 2),
    "accumulation": ({"gradient_accumulation_steps": 2}, 6, 2),
    "max_steps": ({"max_steps": 5}, 5, 3),
    "whole batches shared out": ({"accelerator_config": {"split_batches": True}}, 18, 6),
}


def train_as_one_of_two(rank, folder, port):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    found = {}
    for name, (changes, _, _) in SPLIT.items():
        args = arguments(folder, ddp_backend="gloo", max_grad_norm=0, **copy.deepcopy(changes))
        told = horizon_of(args, tiny_rows())
        model, trace = OneWeight(), LearningRateTrace()
        recipe = {"optimizer": {"name": "SGD", "lr": 1e-3}, "schedule": FALLING}
        Trainer(
            model=model,
            args=args,
            train_dataset=tiny_rows(),
            data_collator=collate,
            callbacks=[trace],
            optimizers=build(model, recipe, args, tiny_rows()),
        ).train()
        found[name] = (told.total_steps, told.steps_per_epoch, *trace.rates.values())
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


@pytest.mark.slow
def test_two_processes_share_an_epoch_and_step_the_schedule_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_as_one_of_two, args=(str(tmp_path), port), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, (_, total, epoch) in SPLIT.items():
            assert found[name][:2] == (total, epoch), name
            assert found[name][2] == pytest.approx(
                [1e-3 * (1 - t / total) for t in range(total)]
            ), name
