"""Updates that a gradient scaler skips.

accelerate makes a scaler for fp16 alone, which it refuses on a CPU; so here it is handed torch's
own for the CPU, in the place where it keeps it.
"""

import pytest
import torch
from support.trainers import Lines, arguments, points, recipe_trainer, run
from torch.optim.lr_scheduler import StepLR
from transformers import Trainer

from optimplug.callbacks.huggingface import SchedulerCallback

BATCHES = 6


def overflowing(batch):
    """Rows of which one batch has a loss that is not finite."""
    rows = points()
    rows[4 * batch] = {**rows[4 * batch], "labels": torch.tensor([float("inf")])}
    return rows


def scaled(trainer):
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    return trainer


def finite(trainer):
    return all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("batch", [0, 2, 5])
@pytest.mark.parametrize("fused", [{}, {"fused": True}], ids=["", "fused"])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "torch.optim.AdamW"])
def test_a_skipped_update_is_no_step_of_a_recipe(tmp_path, batch, name, fused):
    schedule = [
        {"name": "LinearLR", "start_factor": 0.1, "for": 4},
        {"name": "CosineAnnealingLR"},
    ]
    optimizer = {"name": name, "lr": 0.01, **fused}
    whole = run(recipe_trainer(tmp_path, schedule, optimizer=optimizer))
    trainer = scaled(
        recipe_trainer(tmp_path, schedule, rows=overflowing(batch), optimizer=optimizer)
    )
    rates = run(trainer)
    assert trainer.state.global_step == 18
    assert trainer.accelerator.scaler.get_scale() == 2.0**5  # halved at each of three overflows
    assert trainer.lr_scheduler.last_epoch == 15
    if not fused:  # those are called for a skipped update too, and leave it out by themselves
        assert rates == {group: held[:15] for group, held in whole.items()}
    assert finite(trainer)


@pytest.mark.parametrize("batch", [0, 5])
@pytest.mark.parametrize(("interval", "steps"), [("step", 15), ("epoch", 3)])
def test_a_skipped_update_is_no_step_of_any_scheduler(tmp_path, batch, interval, steps):
    model = Lines()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    callback = SchedulerCallback(StepLR(optimizer, step_size=1, gamma=0.9), interval=interval)
    trainer = scaled(
        Trainer(
            model,
            arguments(tmp_path),
            train_dataset=overflowing(batch),
            optimizers=(optimizer, callback.scheduler),
            callbacks=[callback],
        )
    )
    run(trainer)
    assert callback.scheduler.inner.last_epoch == steps
    assert finite(trainer)
