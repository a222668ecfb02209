"""What is logged of the updates of a Trainer, beside the loss."""

import pytest
import torch
from support.labels import label
from support.trainers import Lines, arguments, points
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from optimplug import ArgumentError
from optimplug.callbacks import lost_updates
from optimplug.callbacks.huggingface import OptimizerMonitor
from optimplug.huggingface import RecipeTrainer, build

RECIPE = {
    "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.5, "weight_decay": 0.0},
    "groups": [{"match": "body.*", "lr": 3e-4}],
}
BY_STEPS = {"logging_strategy": "steps", "logging_steps": 3}


class Narrow(Lines):
    """The body's rate in RECIPE moves none of its weights, the head's does."""

    def __init__(self):
        super().__init__()
        self.to(torch.bfloat16)
        for p in self.parameters():
            nn.init.constant_(p, 0.5)

    def forward(self, x, labels):
        return super().forward(x.bfloat16(), labels.bfloat16())


class Reporter(TrainerCallback):
    """Hears what is logged as TensorBoard's does, which comes before a user's callbacks."""

    def __init__(self):
        self.heard = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.heard.append({**logs, "step": state.global_step})


def history(trainer):
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


def trainer_of(folder, *callbacks, model=None, recipe=RECIPE, **changes):
    return RecipeTrainer(
        model=model or Narrow(),
        args=arguments(folder, **{**BY_STEPS, **changes}),
        train_dataset=points(),
        callbacks=list(callbacks),
        recipe=recipe,
    )


def check(rows):
    body, head = 16, 5
    for row in rows:
        assert row["lost_updates/body"] == 1.0
        lost = body + head * row["lost_updates/head"]
        assert row["lost_updates"] == pytest.approx(lost / (body + head))


WHEN = [
    ({}, [3, 6, 9, 12, 15, 18]),
    ({"logging_steps": 4, "logging_first_step": True}, [1, 4, 8, 12, 16]),
    ({"logging_steps": 0.25}, [5, 10, 15]),
    ({"logging_strategy": "epoch"}, [6, 12, 18]),
    ({"gradient_accumulation_steps": 4}, [3, 6]),
    ({"logging_strategy": "epoch", "gradient_accumulation_steps": 4}, [2, 4, 6]),
]


@pytest.mark.parametrize(("changes", "steps"), WHEN, ids=label)
def test_the_share_of_each_group_is_in_every_log_and_measured_for_no_other(
    tmp_path, changes, steps, monkeypatch
):
    watched = []
    watch = lost_updates.LostUpdates.watch
    monkeypatch.setattr(lost_updates.LostUpdates, "watch", lambda *own: watched.append(watch(*own)))
    reporter = Reporter()
    trainer = trainer_of(tmp_path, reporter, OptimizerMonitor(lost_updates=True), **changes)
    rows = history(trainer)
    assert [row["step"] for row in rows] == steps
    check(rows)
    check(row for row in reporter.heard if "loss" in row)
    assert len(watched) == len(steps)
    left = trainer.optimizer.optimizer._optimizer_step_post_hooks.values()
    assert not any("LostUpdates" in hook.__qualname__ for hook in left)


def test_with_the_missing_bits_kept_nothing_is_lost(tmp_path):
    recipe = {**RECIPE, "optimizer": {**RECIPE["optimizer"], "rounding": "exact"}}
    rows = history(trainer_of(tmp_path, OptimizerMonitor(lost_updates=True), recipe=recipe))
    assert [row["lost_updates/body"] for row in rows] == [0.0] * 6


def test_frozen_groups_do_not_count_while_they_are_frozen(tmp_path):
    frozen = {"match": "body.*", "freeze": {"until": 10}}
    recipe = {**RECIPE, "groups": [*RECIPE["groups"], frozen]}
    rows = history(trainer_of(tmp_path, OptimizerMonitor(lost_updates=True), recipe=recipe))
    assert ["lost_updates/body" in row for row in rows] == [row["step"] > 10 for row in rows]


def test_a_trainer_without_a_recipe_has_it_in_its_history(tmp_path):
    model, data = Narrow(), points()
    args = arguments(tmp_path, **BY_STEPS, max_grad_norm=0.0)
    late = Reporter()
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data,
        optimizers=build(model, RECIPE, args, data),
        callbacks=[OptimizerMonitor(lost_updates=True), late],
    )
    rows = history(trainer)
    assert len(rows) == 6
    check(rows)
    check(row for row in late.heard if "loss" in row)


def test_rates_and_what_else_is_asked_for(tmp_path):
    monitor = OptimizerMonitor(momentum=True, weight_decay=True)
    rows = history(trainer_of(tmp_path, monitor))
    for row in rows:
        assert (row["lr/body"], row["lr/head"]) == (3e-4, 0.01)
        assert row["momentum/head"] == 0.5
        assert row["weight_decay/body"] == 0.0
        assert not any("lost" in key for key in row)


DEEP = {"optimizer": RECIPE["optimizer"], "groups": [{"layer_decay": 0.5}]}


class Deep(nn.Module):
    """40 layers of one weight each."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(40)])

    def forward(self, x, labels):
        y = x[:, :1]
        for layer in self.layers:
            y = layer(y)
        return {"loss": (y - labels).square().mean()}


@pytest.mark.parametrize("disable_tqdm", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_the_console_of_a_trainer_without_a_recipe_has_short_lines_too(
    tmp_path, capsys, first, disable_tqdm
):
    model, data, reporter = Deep(), points(), Reporter()
    args = arguments(tmp_path, **BY_STEPS, max_grad_norm=0.0, disable_tqdm=disable_tqdm)
    monitor = OptimizerMonitor(weight_decay=True)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data,
        optimizers=build(model, DEEP, args, data),
        callbacks=[monitor, reporter] if first else [reporter, monitor],
    )
    own = [console.on_log for console in (PrinterCallback, ProgressCallback)]
    rows = history(trainer)
    assert [console.on_log for console in (PrinterCallback, ProgressCallback)] == own
    for row in [*rows, *([row for row in reporter.heard if "loss" in row] if first else [])]:
        for kind in ("lr", "weight_decay"):
            assert sum(key.startswith(f"{kind}/") for key in row) == 40
    lines = [line for line in capsys.readouterr().out.splitlines() if "'loss'" in line]
    assert len(lines) == len(rows)
    assert max(map(len, lines)) < 200
    assert all("lr of 40 groups" in line for line in lines)


def test_log_groups_chooses_what_is_logged(tmp_path):
    monitor = OptimizerMonitor(lost_updates=True, log_groups="bo*")
    model, data = Narrow(), points()
    args = arguments(tmp_path, **BY_STEPS, max_grad_norm=0.0)
    trainer = Trainer(
        model=model, args=args, train_dataset=data, optimizers=build(model, RECIPE, args, data),
        callbacks=[monitor],
    )  # fmt: skip
    for row in history(trainer):
        found = {key for key in row if "/" in key or "lost" in key}
        assert found == {"lr/body", "lost_updates/body", "lost_updates"}


def test_log_groups_that_names_nothing_is_an_error_before_the_first_update(tmp_path):
    trainer = trainer_of(tmp_path, OptimizerMonitor(log_groups=["body", "hed"]))
    with pytest.raises(ArgumentError, match=r"log_groups: 'hed' matches no .* 'head'"):
        trainer.train()
    assert trainer.state.global_step == 0
