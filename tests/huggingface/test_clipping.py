"""Optimizers that do not clip, in a RecipeTrainer: against the Trainer's own clipping."""

import pytest
import torch
from support.tensors import same_weights
from support.trainers import Lines, arguments, optimizer_of, points, recipe_trainer
from transformers import Adafactor, Trainer

MAX = 0.05
LOGGED = {"logging_strategy": "steps", "logging_steps": 1, "num_train_epochs": 2}
FIXED = {"scale_parameter": False, "relative_step": False}
CLASSES = [
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.AdamW, {"eps": 0.1}),
    (torch.optim.AdamW, {"eps": 0.1, "fused": True}),
    (Adafactor, FIXED),
]


def plain(folder, cls, settings):
    """A Trainer that clips by itself."""
    model = Lines()
    groups = [
        {"params": [model.head.weight], "lr": 0.1},
        {"params": [model.body.weight]},
        {"params": [model.head.bias], "lr": 0.1, "weight_decay": 0},
        {"params": [model.body.bias], "weight_decay": 0},
    ]
    optimizer = cls(groups, lr=0.01, weight_decay=0.1, **settings)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    args = arguments(folder, max_grad_norm=MAX, **LOGGED)
    return Trainer(model, args, train_dataset=points(), optimizers=(optimizer, constant))


def with_recipe(folder, cls, settings):
    found = f"{cls.__module__.split('.')[0]}.{'optim.' if cls is not Adafactor else ''}"
    optimizer = {"name": f"{found}{cls.__name__}", "lr": 0.01, "weight_decay": 0.1, **settings}
    clips = {**optimizer, "max_grad_norm": MAX}
    return recipe_trainer(folder, [], optimizer=clips, **LOGGED)


def norms(trainer):
    return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize(("cls", "settings"), CLASSES)
def test_it_is_clipped_as_by_the_trainer(tmp_path, cls, settings, scaled):
    ours, theirs = (make(tmp_path, cls, settings) for make in (with_recipe, plain))
    if scaled:  # by a scale that leaves every bit of a float as it is
        ours.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    ours.train()
    theirs.train()
    assert isinstance(optimizer_of(ours), cls)
    assert max(norms(theirs)) > 10 * MAX, "or little was clipped"
    assert same_weights(ours.model, theirs.model)
    if not scaled:  # accelerate unscales before the norm is logged, but for fp16 alone
        assert norms(ours) == norms(theirs)
