"""What the adapter takes from the inside of transformers and accelerate is still there.

When a new release breaks the adapter, look here first: a failure names what broke, and the release.
"""

import inspect

import pytest
import torch
import transformers
from accelerate.scheduler import AcceleratedScheduler
from support.bert import tiny_bert
from support.trainers import RELEASE, Lines, arguments, check_inside, points
from transformers import Trainer, TrainingArguments

from optimplug import Horizon
from optimplug.huggingface import horizon_of
from optimplug.huggingface.events.internals import NEEDED
from optimplug.huggingface.internals import (
    UnbuiltTrainer,
    beginning_to_train,
    loss_of,
    model_without_weights,
    unwrapped,
)


class Asked(TrainingArguments):
    """Notes the trainers that ask for the device as they begin to train."""

    asking = ()

    @property
    def device(self):
        self.asking = (*self.asking, beginning_to_train(inspect.currentframe()))
        return super().device


class AskedThroughAnother(Asked):
    """Has the property once more, as a user's class may."""

    @property
    def device(self):
        return super().device


@pytest.mark.parametrize("cls", [Asked, AskedThroughAnother])
def test_a_trainer_that_begins_to_train_asks_for_the_device(tmp_path, cls):
    args = arguments(tmp_path, cls, num_train_epochs=1)
    trainer = Trainer(Lines(), args, train_dataset=points(), eval_dataset=points(4))
    trainer.evaluate()
    check_inside(
        set(args.asking) == {None}, "it looks as if a trainer that does not train began to"
    )
    trainer.train()
    found = [one for one in args.asking if one is not None]
    check_inside(found, "the training loop asks for args.device")
    check_inside(set(found) == {trainer}, "it is the trainer that its frame has as self")


def test_a_trainer_without_a_model_tells_how_long_it_will_run(tmp_path):
    trainer = UnbuiltTrainer(arguments(tmp_path), points())
    told = [4] if "_inner_training_loop" in NEEDED else []  # before 5.3: the rows of an update
    loader = trainer.get_train_dataloader()
    values = trainer.set_initial_training_values(trainer.args, loader, *told)
    check_inside(
        len(values) == 7, f"set_initial_training_values returns 7 values, not {len(values)}"
    )
    check_inside(
        (values[1], values[6]) == (6, 18), f"the second and the last are updates, not {values}"
    )
    assert horizon_of(arguments(tmp_path), points()) == Horizon(18, 6)


def test_accelerates_wrapper_holds_the_scheduler():
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(Lines().parameters()), 1)
    wrapper = AcceleratedScheduler(scheduler, [], step_with_optimizer=False)
    check_inside(unwrapped(wrapper) is scheduler, "AcceleratedScheduler.scheduler is what it wraps")
    assert unwrapped(scheduler) is scheduler


def test_a_model_of_a_config_has_no_weights():
    config = tiny_bert().config
    model = model_without_weights(transformers.BertForSequenceClassification, config)
    check_inside(
        {p.device.type for p in model.parameters()} == {"meta"}, "_from_config builds on meta"
    )
    config.dtype = "bfloat16"
    half = model_without_weights(transformers.BertForSequenceClassification, config)
    check_inside(
        {p.dtype for p in half.parameters()} == {torch.bfloat16}, "_from_config heeds the dtype"
    )


def test_the_trainer_gives_the_loss_of_a_batch(tmp_path):
    trainer = Trainer(Lines(), arguments(tmp_path, gradient_accumulation_steps=4))
    assert hasattr(trainer, "_prepare_inputs"), f"{RELEASE} has no Trainer._prepare_inputs any more"
    batch = {key: torch.stack([row[key] for row in points(4)]) for key in ("x", "labels")}
    loss = loss_of(trainer, batch)
    assert loss.requires_grad
    assert loss.item() == Lines()(**batch)["loss"].item()  # the accumulation does not scale it
