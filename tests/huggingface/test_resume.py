from pathlib import Path

import pytest
import torch
from support.bert import tiny_bert
from support.huggingface_runs import RECIPE, StopAfter, trainer_of
from support.tensors import same_bits, same_weights
from transformers import Trainer, TrainerCallback

from optimplug import StateError
from optimplug.callbacks.huggingface import LearningRateTrace
from optimplug.huggingface import build, optimizer_cls_and_kwargs

STOCK = {"learning_rate": 1e-2, "optim": "adamw_torch", "lr_scheduler_type": "linear"}
# What the Trainer does by itself, as a recipe.
SAME = {
    "optimizer": {"name": "AdamW", "lr": 1e-2, "weight_decay": 0.0, "max_grad_norm": 1.0},
    "schedule": "linear",
}


def stock_run(folder, stop=6, **changes):
    """Train a plain Trainer up to a checkpoint; return its path, and the moments by name."""
    trainer = trainer_of(folder, cls=Trainer, callbacks=[StopAfter(stop)], **{**STOCK, **changes})
    trainer.train()
    return str(Path(folder) / f"checkpoint-{stop}"), moments(trainer.model, trainer.optimizer)


def moments(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    owner = getattr(optimizer, "optimizer", optimizer)
    return {
        names[p]: {key: torch.as_tensor(value).clone() for key, value in kept.items()}
        for p, kept in owner.state.items()
    }


class AtTheStart(TrainerCallback):
    """Keeps the moments that a run begins with."""

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        self.moments = moments(model, optimizer)


def resumed(folder, checkpoint, recipe=RECIPE, callbacks=(), **changes):
    """Go on with a recipe; return the trainer and what it was warned of."""
    trainer = trainer_of(folder, recipe, callbacks=callbacks, **changes)
    with pytest.warns(UserWarning, match="^checkpoint-") as found:
        trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, [str(warning.message) for warning in found]


def same_moments(found, expected):
    return found.keys() == expected.keys() and all(
        kept.keys() == expected[name].keys()
        and all(same_bits(value, expected[name][key]) for key, value in kept.items())
        for name, kept in found.items()
    )


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
@pytest.mark.parametrize("stop", [2, 6, 11])
def test_a_recipe_goes_on_where_a_plain_trainer_stopped(tmp_path, stop, optim):
    checkpoint, saved = stock_run(tmp_path, stop, optim=optim, weight_decay=0.1)
    start, rest, whole = AtTheStart(), LearningRateTrace(), LearningRateTrace()
    trainer, told = resumed(tmp_path, checkpoint, callbacks=[start, rest])
    assert same_moments(start.moments, saved)
    assert {int(kept["step"]) for kept in start.moments.values()} == {stop}
    trainer_of(tmp_path / "whole", callbacks=[whole]).train()
    assert rest.rates == {name: rates[stop:] for name, rates in whole.rates.items()}
    own = moments(trainer.model, trainer.optimizer)
    assert {int(kept["step"]) for kept in own.values()} == {18}
    assert len(told) == 1
    assert "\n" not in told[0]
    count = len(trainer.optimizer.param_groups)
    assert f"checkpoint-{stop} is of a run without a recipe, with 2 groups, lr 0.0" in told[0]
    assert f"from update {stop} on the recipe applies, with {count} groups, lr 0.0" in told[0]
    assert told[0].endswith("the optimizer's state is taken over by parameter name")


def test_torchs_own_optimizer_goes_on_as_well_though_it_is_clipped(tmp_path):
    checkpoint, saved = stock_run(tmp_path, 2)
    clipped = {"name": "torch.optim.AdamW", "lr": 1e-3, "max_grad_norm": 1.0}
    start = AtTheStart()
    trainer, _ = resumed(tmp_path, checkpoint, {"optimizer": clipped}, callbacks=[start])
    assert same_moments(start.moments, saved)
    assert trainer.run.optimizer.optimizer.max_grad_norm == 1.0


@pytest.mark.parametrize("stop", [2, 6, 11])
def test_a_recipe_that_says_what_the_trainer_did_changes_nothing(tmp_path, stop):
    uninterrupted = trainer_of(tmp_path / "whole", cls=Trainer, **STOCK)
    uninterrupted.train()
    checkpoint, _ = stock_run(tmp_path, stop)
    trainer, _ = resumed(tmp_path, checkpoint, SAME)
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(p, uninterrupted.model.get_parameter(name), rtol=0, atol=2e-5)
    assert not same_weights(trainer.model, trained_anew(tmp_path / "anew", checkpoint))


def trained_anew(folder, checkpoint):
    """The weights if the moments were lost, and nothing else."""
    for name in ("optimizer.pt", "scheduler.pt"):
        (Path(checkpoint) / name).unlink()
    trainer, _ = resumed(folder, checkpoint, SAME)
    return trainer.model


def test_what_the_recipe_freezes_is_left_out(tmp_path):
    checkpoint, saved = stock_run(tmp_path)
    recipe = {**RECIPE, "groups": [{"match": "*embeddings*", "freeze": True}]}
    start = AtTheStart()
    _, told = resumed(tmp_path, checkpoint, recipe, [start])
    kept = {name: state for name, state in saved.items() if "embeddings" not in name}
    assert same_moments(start.moments, kept)
    assert told[0].endswith(f"but for {len(saved) - len(kept)} parameters that the recipe freezes")


def test_groups_that_a_recipe_made_for_a_plain_trainer_are_known_by_their_names(tmp_path):
    alone = {key: value for key, value in RECIPE.items() if key != "schedule"}
    trainer = trainer_of(
        tmp_path, cls=Trainer, callbacks=[StopAfter(6)], max_grad_norm=0,
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(alone),
    )  # fmt: skip
    trainer.train()
    start = AtTheStart()
    resumed(tmp_path, str(tmp_path / "checkpoint-6"), {**RECIPE, "groups": []}, [start])
    assert same_moments(start.moments, moments(trainer.model, trainer.optimizer))


def own_schedule_run(folder, optimizer):
    """Train a plain Trainer with a recipe's optimizer; return its checkpoint and the moments."""
    trainer = trainer_of(
        folder, cls=Trainer, callbacks=[StopAfter(6)], max_grad_norm=0,
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs({"optimizer": optimizer}),
    )  # fmt: skip
    trainer.train()
    return str(folder / "checkpoint-6"), moments(trainer.model, trainer.optimizer)


ADAMW = {"name": "AdamW", "lr": 1e-2}
SGD = {"name": "SGD", "lr": 1e-2, "momentum": 0.9}
TORCHS_SGD = {**SGD, "name": "torch.optim.SGD"}
ADAFACTOR = {"name": "torch.optim.Adafactor", "lr": 1e-2}


@pytest.mark.parametrize(
    ("before", "after"),
    [(ADAMW, ADAMW), (SGD, SGD), (TORCHS_SGD, TORCHS_SGD), (TORCHS_SGD, SGD), (ADAFACTOR, ADAFACTOR)],
)  # fmt: skip
def test_any_optimizer_of_a_recipe_goes_on_after_the_trainers_own_schedule(tmp_path, before, after):
    checkpoint, saved = own_schedule_run(tmp_path, before)
    start = AtTheStart()
    recipe = {**RECIPE, "optimizer": after}
    _, told = resumed(tmp_path, checkpoint, recipe, [start])
    assert saved
    assert same_moments(start.moments, saved)
    assert "checkpoint-6 is of a run whose schedule was the Trainer's own, with 1 group" in told[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [(ADAMW, SGD), (SGD, ADAMW), (ADAMW, TORCHS_SGD), (SGD, ADAFACTOR),
     (ADAMW, {"name": "torch.optim.Adamax", "lr": 1e-2})],
)  # fmt: skip
def test_an_optimizer_that_keeps_another_state_is_refused(tmp_path, before, after):
    checkpoint, _ = own_schedule_run(tmp_path, before)
    trainer = trainer_of(tmp_path, {**RECIPE, "optimizer": after})
    name = after["name"].split(".")[-1]
    with pytest.raises(StateError, match=f"cannot be taken over by {name}: .* same optimizer"):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert not trainer.optimizer.state
    assert trainer.lr_scheduler.last_epoch == 0


def test_a_checkpoint_of_a_recipe_in_a_plain_trainer_is_one_of_a_recipe(tmp_path):
    model, args = tiny_bert(), {"max_grad_norm": 0}
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    plain = trainer_of(tmp_path, cls=Trainer, model=model, callbacks=[StopAfter(6)], **args)
    plain.optimizer, plain.lr_scheduler = build(model, RECIPE, plain.args, plain.train_dataset)
    plain.train()
    trainer = trainer_of(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert same_weights(trainer.model, whole.model)


@pytest.mark.parametrize("recipe", [SAME, RECIPE], ids=["same", "recipe"])
def test_without_any_state_the_schedule_still_goes_on(tmp_path, recipe):
    checkpoint, _ = stock_run(tmp_path, save_only_model=True)
    start, rest, whole = AtTheStart(), LearningRateTrace(), LearningRateTrace()
    _, told = resumed(tmp_path, checkpoint, recipe, [start, rest])
    trainer_of(tmp_path / "whole", recipe, callbacks=[whole]).train()
    assert start.moments == {}
    assert rest.rates == {name: rates[6:] for name, rates in whole.rates.items()}
    assert told == [
        "checkpoint-6 has no state of the optimizer or the schedule: the optimizer starts anew, "
        "the schedule goes on from update 6"
    ]


def fewer_parameters(folder):
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    saved["param_groups"][0]["params"].pop()
    torch.save(saved, folder / "optimizer.pt")


def swapped(folder):
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    state = saved["state"]
    state[0], state[1] = state[1], state[0]
    torch.save(saved, folder / "optimizer.pt")


AMSGRAD = {"name": "torch.optim.AdamW", "lr": 0.1, "amsgrad": True}
REFUSED = [
    ({}, lambda folder: None, {"optimizer": AMSGRAD}, r"has no max_exp_avg_sq, .* AdamW of optimplug, .* or leave out amsgrad"),
    ({}, fewer_parameters, RECIPE, r"cannot be matched: its groups have \[\d+, \d+\] parameters, but those"),
    ({}, swapped, RECIPE, r"cannot be matched: exp_avg of bert\.embeddings\.\S+ has the shape \(16, 16\), the parameter \(40, 16\)"),
    ({}, lambda folder: None, {"optimizer": {"name": "SGD", "lr": 0.1}}, "cannot be taken over by SGD; .* needs AdamW or Adam"),
    ({"optim": "adafactor"}, lambda folder: None, RECIPE, "whose optimizer was not AdamW"),
    ({}, lambda folder: (folder / "scheduler.pt").unlink(), RECIPE, r"but no scheduler\.pt: the Trainer would load neither"),
    ({}, lambda folder: (folder / "optimizer.pt").rename(folder / "optimizer.bin"), RECIPE, r"no optimizer\.pt: .* sharded optimizer cannot"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "tamper", "recipe", "message"), REFUSED, ids=range(len(REFUSED))
)
def test_a_state_that_cannot_be_matched_is_refused(tmp_path, changes, tamper, recipe, message):
    checkpoint, _ = stock_run(tmp_path, **changes)
    tamper(Path(checkpoint))
    trainer = trainer_of(tmp_path, recipe)
    with pytest.raises(StateError, match=message):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert not trainer.optimizer.state
    assert trainer.lr_scheduler.last_epoch == 0


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    trainer_of(tmp_path, callbacks=[StopAfter(6)]).train()
    trainer = trainer_of(tmp_path, {**RECIPE, "schedule": "linear"})
    with pytest.raises(StateError, match="saved under another schedule"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_what_was_frozen_before_the_recipe_was_in_no_group(tmp_path):
    def with_frozen_embeddings():
        model = tiny_bert()
        model.bert.embeddings.requires_grad_(False)
        return model

    trainer = trainer_of(
        tmp_path, cls=Trainer, model=with_frozen_embeddings(), callbacks=[StopAfter(6)], **STOCK
    )
    trainer.train()
    start = AtTheStart()
    resumed(
        tmp_path, str(tmp_path / "checkpoint-6"), callbacks=[start], model=with_frozen_embeddings()
    )
    assert same_moments(start.moments, moments(trainer.model, trainer.optimizer))
