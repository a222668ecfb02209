"""Schedule-free optimizers in a Trainer: which weights are trained, validated and saved."""

import functools

import pytest
import torch
from accelerate import Accelerator
from support.trainers import (
    Lines,
    StopAfter,
    arguments,
    check_resume,
    points,
    recipe_trainer,
    weights_in,
)
from transformers import Trainer, TrainerCallback

from optimplug import ModeError
from optimplug.huggingface import build
from optimplug.optim import ScheduleFreeAdamW

FREE = {"name": "ScheduleFreeAdamW", "lr": 0.05, "warmup_steps": 4, "max_grad_norm": 1.0}
trainer_of = functools.partial(recipe_trainer, schedule=[], optimizer=FREE)
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


def weights_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Modes(TrainerCallback):
    """Notes the mode before each update, and while it evaluates."""

    def __init__(self):
        self.seen = {"update": set(), "evaluation": set()}

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        self.seen["update"] |= {group["train_mode"] for group in optimizer.param_groups}

    def on_prediction_step(self, args, state, control, optimizer, **kwargs):
        self.seen["evaluation"] |= {group["train_mode"] for group in optimizer.param_groups}


EXPECTED = {"update": {True}, "evaluation": {False}}


@pytest.mark.parametrize(
    "changes", [{}, EVALUATED, {"gradient_accumulation_steps": 2}], ids=["", "evaluated", "acc"]
)
def test_a_run_resumes_exactly(tmp_path, changes):
    check_resume(functools.partial(trainer_of, **changes), tmp_path, stops=(3, 4, 6))


def test_a_run_trains_and_evaluates_in_the_right_mode(tmp_path):
    modes = Modes()
    trainer = trainer_of(tmp_path, callbacks=[modes], **EVALUATED)
    trainer.train()
    trainer.predict(points(4))
    assert modes.seen == EXPECTED


def test_after_training_the_weights_to_validate_are_in_place(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    assert [group["train_mode"] for group in trainer.optimizer.param_groups] == [False] * len(
        trainer.optimizer.param_groups
    )
    before = weights_of(trainer)
    trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    assert same(weights_of(trainer), before)
    assert same(weights_in(tmp_path / "saved"), before)


def test_the_best_weights_stay_what_they_are(tmp_path):
    # It stops after an update that nothing follows, so in the mode of training.
    trainer = trainer_of(
        tmp_path,
        callbacks=[StopAfter(5)],
        **EVALUATED,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_worse",
        greater_is_better=False,
    )
    trainer.train()
    best = weights_in(tmp_path / "checkpoint-2")
    assert same(weights_of(trainer), best)
    trainer.evaluate()
    assert same(weights_of(trainer), best)


@pytest.mark.parametrize("way", ["optimizers", "build"])
def test_a_plain_trainer_calls_the_modes_itself(tmp_path, way):
    model, args = Lines(), arguments(tmp_path, **EVALUATED, max_grad_norm=0)
    if way == "build":
        optimizers = build(model, {"optimizer": FREE}, args, points())
    else:
        optimizers = (ScheduleFreeAdamW(model.parameters(), lr=0.05), None)
    modes = Modes()
    trainer = Trainer(
        model,
        args,
        train_dataset=points(),
        eval_dataset=points(4),
        optimizers=optimizers,
        callbacks=[modes],
    )
    trainer.train()
    assert modes.seen == EXPECTED


def test_accelerates_wrapper_passes_the_modes_on():
    model = Lines()
    optimizer = ScheduleFreeAdamW(model.parameters(), lr=0.05)
    wrapped = Accelerator(cpu=True).prepare(optimizer)
    with pytest.raises(ModeError):
        wrapped.step()
    wrapped.train()
    assert optimizer.param_groups[0]["train_mode"]
    wrapped.step()
    wrapped.eval()
    assert not optimizer.param_groups[0]["train_mode"]
