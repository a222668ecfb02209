"""What the Trainer does by its own arguments, said as a recipe: the same rates, the same weights."""

import pytest
import torch
import transformers
from packaging.version import Version
from support.bert import tiny_rows
from support.huggingface_runs import OneWeight, trainer_of
from support.labels import label
from support.rows import each_in_turn
from support.tensors import same_weights
from transformers import Trainer

from optimplug.callbacks.huggingface import LearningRateTrace
from optimplug.recipe.schedule.presets import PRESETS

SHARE_OF_RUN = "warmup_ratio" if Version(transformers.__version__).major < 5 else "warmup_steps"
SCHEDULES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}),
    ("polynomial", {"power": 2.0, "lr_end": 1e-5}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.2}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.2}),
    ("warmup_stable_decay", {"num_decay_steps": 4}),
]


@pytest.mark.parametrize(
    ("name", "settings", "steps", "warmup", "accumulate"),
    each_in_turn(SCHEDULES, [(0, None, 1), (3, "3 steps", 1), (0.1, "10%", 4)]),
    ids=label,
)
def test_a_preset_is_the_trainers_own_schedule(tmp_path, name, settings, steps, warmup, accumulate):
    runs = {"gradient_accumulation_steps": accumulate, "num_train_epochs": 4}
    own, ours = LearningRateTrace(), LearningRateTrace()
    of_run = SHARE_OF_RUN if isinstance(steps, float) else "warmup_steps"
    trainer_of(
        tmp_path, cls=Trainer, model=OneWeight(), callbacks=[own], learning_rate=1e-3,
        lr_scheduler_type=name, lr_scheduler_kwargs=settings, **{of_run: steps}, **runs,
    ).train()  # fmt: skip
    warm = {} if warmup is None or name == "constant" else {"warmup": warmup}
    recipe = {
        "optimizer": {"name": "AdamW", "lr": 1e-3},
        "schedule": {"preset": name, **settings, **warm},
    }
    trainer_of(tmp_path, recipe, model=OneWeight(), callbacks=[ours], **runs).train()
    expected = next(iter(own.rates.values()))
    assert next(iter(ours.rates.values())) == pytest.approx(expected, rel=1e-12, abs=1e-18)
    assert len(expected) == (24 if accumulate == 1 else 8)


def test_the_plateau_preset_is_the_trainers_own(tmp_path):
    runs = {
        "num_train_epochs": 8,
        "eval_strategy": "epoch",
        "eval_dataset": tiny_rows()[:4],
        "compute_metrics": lambda _: {"level": 1.0},
    }
    own, ours = LearningRateTrace(), LearningRateTrace()
    settings = {"factor": 0.5, "patience": 1}
    trainer_of(
        tmp_path, cls=Trainer, callbacks=[own], learning_rate=1e-3, metric_for_best_model="level",
        lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs=settings, **runs,
    ).train()  # fmt: skip
    schedule = {"preset": "reduce_lr_on_plateau", "monitor": "eval_level", **settings}
    recipe = {"optimizer": {"name": "AdamW", "lr": 1e-3}, "schedule": schedule}
    trainer_of(tmp_path, recipe, callbacks=[ours], **runs).train()
    expected = next(iter(own.rates.values()))
    assert next(iter(ours.rates.values())) == pytest.approx(expected, rel=1e-12)
    assert len({round(rate, 9) for rate in expected}) > 2


def test_every_preset_is_tried():
    assert {name for name, _ in SCHEDULES} == PRESETS.keys()


def weights_after_50_updates(folder, clip, decay, groups, execution):
    """Those of the Trainer, and those of a recipe that says the same."""
    own = trainer_of(
        folder, cls=Trainer, optim="adamw_torch", learning_rate=1e-3, weight_decay=decay,
        max_grad_norm=clip, max_steps=50,
    )  # fmt: skip
    own.train()
    clips = {"max_grad_norm": clip} if clip else {}
    settings = {"name": "AdamW", "lr": 1e-3, "weight_decay": decay, **clips, **execution}
    recipe = {"optimizer": settings, "groups": groups, "schedule": "linear"}
    ours = trainer_of(folder, recipe, max_steps=50)
    ours.train()
    return own, ours


TWO_GROUPS = [{"no_decay": ["norm", "bias"]}]
LOOP = {"foreach": False}  # as torch's own default on the CPU


@pytest.mark.parametrize(
    ("clip", "decay", "groups", "execution"),
    [
        (0, 0.1, TWO_GROUPS, LOOP),
        pytest.param(0, 0.1, TWO_GROUPS, {"foreach": True}, marks=pytest.mark.slow),
        pytest.param(1.0, 0.0, [], LOOP, marks=pytest.mark.slow),
        (0.05, 0.0, [], LOOP),
    ],
)
def test_the_weights_are_the_trainers_own_bit_for_bit(tmp_path, clip, decay, groups, execution):
    own, ours = weights_after_50_updates(tmp_path, clip, decay, groups, execution)
    assert same_weights(own.model, ours.model)
    sizes = sorted(len(group["params"]) for group in ours.optimizer.param_groups)
    if groups:
        assert sizes == sorted(len(group["params"]) for group in own.optimizer.param_groups)


@pytest.mark.parametrize(
    ("clip", "execution"),
    [
        pytest.param(1.0, LOOP, marks=pytest.mark.slow),
        (0.05, LOOP),
        (1.0, {}),
        pytest.param(0, {}, marks=pytest.mark.slow),
    ],
)
def test_the_weights_are_the_trainers_own_to_the_last_bits(tmp_path, clip, execution):
    """Over several groups the norm is summed in another order; the default rounds otherwise."""
    own, ours = weights_after_50_updates(tmp_path, clip, 0.1, TWO_GROUPS, execution)
    for name, p in ours.model.named_parameters():
        torch.testing.assert_close(p, own.model.get_parameter(name), rtol=0, atol=1e-6)
