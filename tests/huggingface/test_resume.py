from pathlib import Path

import pytest
import torch
from support.bert import tiny_bert
from support.huggingface_runs import FROM_FACTORIES, RECIPE, StopAfter, trainer_of
from support.rows import each_in_turn
from support.tensors import same_bits, same_weights
from support.trainers import optimizer_of
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
    """Go on with a recipe under adapt; return the trainer and what has changed."""
    trainer = trainer_of(folder, recipe, callbacks=callbacks, resume="adapt", **changes)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, trainer.run.resumption


def same_moments(found, expected):
    return found.keys() == expected.keys() and all(
        kept.keys() == expected[name].keys()
        and all(same_bits(value, expected[name][key]) for key, value in kept.items())
        for name, kept in found.items()
    )


@pytest.mark.parametrize(
    ("stop", "optim"), each_in_turn([2, 6, 11], ["adamw_torch", "adamw_torch_fused"])
)
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
    assert told.update == stop
    assert sorted(told.moved) == sorted(saved)
    assert told.notes == (
        "the checkpoint has no names of parameters: their states were matched by their order, in "
        "which all shapes agree",
    )
    assert [rates.group for rates in told.rates] == [
        g["name"] for g in trainer.run.optimizer.param_groups
    ]
    with pytest.raises(StateError, match=r"weight_decay of .* +0\.1 +0\.01 +adapt"):
        trainer_of(tmp_path).train(resume_from_checkpoint=checkpoint)


def test_torchs_own_optimizer_goes_on_as_well_though_it_is_clipped(tmp_path):
    checkpoint, saved = stock_run(tmp_path, 2)
    clipped = {"name": "torch.optim.AdamW", "lr": 1e-3, "max_grad_norm": 1.0}
    start = AtTheStart()
    trainer, _ = resumed(tmp_path, checkpoint, {"optimizer": clipped}, callbacks=[start])
    assert same_moments(start.moments, saved)
    assert optimizer_of(trainer).max_grad_norm == 1.0


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
    assert told.dropped == dict.fromkeys(saved.keys() - kept.keys(), "the recipe freezes it")


@FROM_FACTORIES
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


@FROM_FACTORIES
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
    assert told.moved
    assert ("schedule", "none of a recipe") in [change[:2] for change in told.schedule]


@FROM_FACTORIES
@pytest.mark.parametrize(
    ("before", "after"),
    [(ADAMW, SGD), (SGD, ADAMW), (ADAMW, TORCHS_SGD), (SGD, ADAFACTOR),
     (ADAMW, {"name": "torch.optim.Adamax", "lr": 1e-2})],
)  # fmt: skip
def test_an_optimizer_that_keeps_another_state_is_refused(tmp_path, before, after):
    checkpoint, _ = own_schedule_run(tmp_path, before)
    trainer = trainer_of(tmp_path, {**RECIPE, "optimizer": after}, resume="adapt")
    kind = before["name"].replace("AdamW", "Adam")
    match = rf"has the state of {kind}, which means nothing to {after['name']}; give the recipe"
    with pytest.raises(StateError, match=match):
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
    assert (told.update, told.moved) == (6, ())
    assert told.notes == ("checkpoint-6 has no state of the optimizer, which begins anew",)
    with pytest.raises(
        StateError, match=r"save_only_model.* go on from update 6, or resume='weights'"
    ):
        trainer_of(tmp_path, recipe).train(resume_from_checkpoint=checkpoint)


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
    ({}, lambda folder: None, {"optimizer": AMSGRAD}, r"has no max_exp_avg_sq, .* the one of optimplug, .* or leave out amsgrad"),
    ({}, fewer_parameters, RECIPE, r"by their order: its groups have \[\d+, \d+\] parameters, and no order"),
    ({}, swapped, RECIPE, r"by their order: .* exp_avg of bert\.embeddings\.\S+ has the shape \(16, 16\), the parameter \(40, 16\)"),
    ({}, lambda folder: None, {"optimizer": {"name": "SGD", "lr": 0.1}}, "state of Adam, which means nothing to SGD"),
    ({"optim": "adafactor"}, lambda folder: None, RECIPE, "which means nothing to AdamW"),
    ({}, lambda folder: (folder / "scheduler.pt").unlink(), RECIPE, r"but no scheduler\.pt: the Trainer would load neither"),
    ({}, lambda folder: (folder / "optimizer.pt").rename(folder / "optimizer.bin"), RECIPE, r"no optimizer\.pt: .* sharded optimizer cannot"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "tamper", "recipe", "message"), REFUSED, ids=range(len(REFUSED))
)
def test_a_state_that_cannot_be_matched_is_refused(tmp_path, changes, tamper, recipe, message):
    checkpoint, _ = stock_run(tmp_path, **changes)
    tamper(Path(checkpoint))
    trainer = trainer_of(tmp_path, recipe, resume="adapt")
    with pytest.raises(StateError, match=message):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert not trainer.optimizer.state
    assert trainer.lr_scheduler.last_epoch == 0


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    trainer_of(tmp_path, callbacks=[StopAfter(6)]).train()
    trainer = trainer_of(tmp_path, {**RECIPE, "schedule": "linear"})
    with pytest.raises(StateError, match=r"schedule +LinearLR"):
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
