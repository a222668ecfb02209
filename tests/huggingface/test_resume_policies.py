"""What may be otherwise as the Trainer goes on from a checkpoint: the same as in a plain loop."""

import copy
from pathlib import Path

import pytest
import torch
from support.resume_cases import BASE, CASES, OTHERS
from support.resuming import through_file
from support.tensors import same_weights
from support.trainers import Lines, SaveAfter, arguments, points
from transformers import HfArgumentParser, Trainer

from optimplug import ArgumentError, Horizon, Recipe, StateError
from optimplug.callbacks.huggingface import LearningRateTrace
from optimplug.huggingface import RecipeTrainer, RecipeTrainingArguments

STOP, TOTAL = 8, 12


def trainer_of(
    folder,
    recipe=BASE,
    cls=RecipeTrainer,
    callbacks=(),
    resume=None,
    rewarm=None,
    args=None,
    **changes,
):
    others = {} if cls is Trainer else {"recipe": recipe, "resume": resume, "rewarm": rewarm}
    return cls(
        model=Lines(),
        args=args or arguments(folder, **{"num_train_epochs": 2, **changes}),
        train_dataset=points(),
        callbacks=list(callbacks),
        **others,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    trainer_of(folder, callbacks=[SaveAfter([STOP])]).train()
    return str(folder / f"checkpoint-{STOP}")


def batches():
    rows = points()
    of = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    return [
        {k: torch.stack([row[k] for row in batch]) for k in ("x", "labels")} for batch in of
    ] * 2


WHOLE = Horizon(TOTAL, 6)


def by_hand(before, after, horizons=(WHOLE, WHOLE), stop=STOP):
    """Train by one recipe, go on by another one, in a plain loop; return the second run."""
    runs = [Recipe(r).start(Lines(), h) for r, h in zip((before, after), horizons, strict=True)]
    for i, batch in enumerate(batches()):
        run = runs[i >= stop]
        if i == stop:
            run.model.load_state_dict(runs[0].model.state_dict())
            run.load_state_dict(through_file(copy.deepcopy(runs[0].state_dict())), resume="adapt")
        run.model(**batch)["loss"].backward()
        run.step()
    return runs[1]


@pytest.mark.parametrize("name", CASES)
def test_exact_refuses_what_is_otherwise(tmp_path, saved, name):
    trainer = trainer_of(tmp_path, CASES[name].recipe)
    with pytest.raises(StateError, match=CASES[name].row):
        trainer.train(resume_from_checkpoint=saved)
    assert not trainer.run.optimizer.state
    assert trainer.lr_scheduler.last_epoch == 0


@pytest.mark.parametrize("name", CASES)
def test_adapt_is_what_a_plain_loop_does(tmp_path, saved, name, caplog):
    trainer = trainer_of(tmp_path, CASES[name].recipe, resume="adapt")
    trainer.train(resume_from_checkpoint=saved)
    told = [r for r in caplog.records if "resumed at update 8 (adapt)" in r.getMessage()]
    assert len(told) == 1
    assert trainer.run.resumption.update == STOP
    assert tuple(trainer.run.resumption.dropped) == CASES[name].dropped
    assert same_weights(trainer.model, by_hand(BASE, CASES[name].recipe).model)


@pytest.mark.parametrize("policy", ["exact", "adapt"])
def test_an_unchanged_one_is_exact(tmp_path, saved, policy):
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    trainer = trainer_of(tmp_path, resume=policy)
    trainer.train(resume_from_checkpoint=saved)
    assert trainer.run.resumption.is_exact
    assert same_weights(trainer.model, whole.model)


@pytest.mark.parametrize("policy", ["exact", "adapt"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_optimizers_state_is_refused(tmp_path, saved, name, policy):
    trainer = trainer_of(tmp_path, OTHERS[name], resume=policy)
    with pytest.raises(StateError, match="state of AdamW, which means nothing to"):
        trainer.train(resume_from_checkpoint=saved)


@pytest.mark.parametrize("recipe", [BASE, *OTHERS.values()], ids=["lr", *OTHERS])
def test_weights_begins_anew_over_the_updates_that_are_left(tmp_path, saved, recipe):
    trace = LearningRateTrace()
    recipe = {**recipe, "schedule": "linear"}
    trainer = trainer_of(tmp_path, recipe, callbacks=[trace], resume="weights")
    trainer.train(resume_from_checkpoint=saved)
    (group, *_) = trainer.run.optimizer.param_groups
    assert trace.rates[group["name"]] == pytest.approx(
        [group["initial_lr"] * x for x in (1, 0.75, 0.5, 0.25)]
    )
    assert trainer.run.scheduler.last_epoch == 4
    assert trainer.run.resumption.policy == "weights"


def test_a_longer_run(tmp_path):
    trainer_of(tmp_path, callbacks=[SaveAfter([4])], num_train_epochs=1).train()
    checkpoint = str(tmp_path / "checkpoint-4")
    with pytest.raises(StateError, match=r"horizon +6 updates, 6 an epoch +12 updates, 6 an epoch"):
        trainer_of(tmp_path).train(resume_from_checkpoint=checkpoint)
    trainer = trainer_of(tmp_path, resume="adapt")
    trainer.train(resume_from_checkpoint=checkpoint)
    longer = by_hand(BASE, BASE, (Horizon(6, 6), Horizon(TOTAL, 6)), stop=4)
    assert same_weights(trainer.model, longer.model)
    assert trainer.run.resumption.horizon == ("6 updates, 6 an epoch", "12 updates, 6 an epoch")


def test_the_policy_may_stand_in_the_recipe_or_in_the_arguments(tmp_path, saved):
    recipe = CASES["lr"].recipe
    expected = by_hand(BASE, recipe).model
    (args,) = HfArgumentParser(RecipeTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--resume", "adapt"]
    )
    assert args.resume == "adapt"
    own = {"arguments_class": RecipeTrainingArguments, "resume": "adapt", "num_train_epochs": 2}
    for trainer in (
        trainer_of(tmp_path, {**recipe, "resume": "adapt"}),
        trainer_of(tmp_path, recipe, args=arguments(tmp_path, **own)),
        trainer_of(tmp_path, recipe, args=arguments(tmp_path, **own), resume="adapt"),
    ):
        trainer.train(resume_from_checkpoint=saved)
        assert same_weights(trainer.model, expected)
    trainer = trainer_of(tmp_path, recipe, args=arguments(tmp_path, **own), resume="exact")
    with pytest.raises(ArgumentError, match=r"resume='exact' and args\.resume='adapt' differ"):
        trainer.train(resume_from_checkpoint=saved)


def test_every_way_takes_a_rewarm_which_survives_another_resume(tmp_path, saved):
    recipe = {**CASES["lr"].recipe, "schedule": []}
    was = Recipe(BASE).start(Lines(), WHOLE).scheduler.rates(STOP)[0]
    climbs = [was + (0.02 - was) * i / 3 for i in range(3)] + [0.02]
    own = {"arguments_class": RecipeTrainingArguments, "num_train_epochs": 2}
    (parsed,) = HfArgumentParser(RecipeTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--resume", "adapt", "--rewarm", "25%"]
    )
    assert (parsed.resume, parsed.rewarm) == ("adapt", "25%")
    for i, given in enumerate(
        [
            {"recipe": {**recipe, "resume": {"policy": "adapt", "rewarm": "25%"}}},
            {"resume": "adapt", "rewarm": 3},
            {"args": arguments(tmp_path / "1", **own, resume="adapt", rewarm="0.5 epochs")},
        ]
    ):
        trace, again = LearningRateTrace(), LearningRateTrace()
        folder = tmp_path / str(i)
        given = {"recipe": recipe, "args": arguments(folder, **own), **given}
        given["args"].output_dir = str(folder)
        trainer_of(folder, callbacks=[trace, SaveAfter([10])], **given).train(
            resume_from_checkpoint=saved
        )
        assert [*trace.rates] == ["body", "head"]
        assert all(rates == pytest.approx(climbs, abs=1e-15) for rates in trace.rates.values())
        trainer_of(folder, recipe, callbacks=[again]).train(
            resume_from_checkpoint=str(folder / "checkpoint-10")
        )
        assert again.rates == {name: rates[2:] for name, rates in trace.rates.items()}


def test_a_rewarm_that_cannot_be(tmp_path, saved):
    with pytest.raises(ArgumentError, match="rewarm: must be a number of steps"):
        trainer_of(tmp_path, rewarm="2 parts")
    with pytest.raises(ArgumentError, match="rewarm: must be a length of its own"):
        arguments(tmp_path, RecipeTrainingArguments, rewarm="rest")
    trainer = trainer_of(tmp_path, rewarm="2%")
    with pytest.raises(ArgumentError, match=r"rewarm='2%' is for resume='adapt'.*got .*'exact'"):
        trainer.train(resume_from_checkpoint=saved)
    own = {"arguments_class": RecipeTrainingArguments, "rewarm": "2%", "num_train_epochs": 2}
    trainer = trainer_of(tmp_path, resume="adapt", rewarm="3%", args=arguments(tmp_path, **own))
    with pytest.raises(ArgumentError, match=r"rewarm='3%' and args\.rewarm='2%' differ"):
        trainer.train(resume_from_checkpoint=saved)


def test_a_policy_that_there_is_not(tmp_path):
    with pytest.raises(ArgumentError, match="resume must be one of"):
        trainer_of(tmp_path, resume="exactly")
    with pytest.raises(ArgumentError, match="resume must be one of"):
        arguments(tmp_path, RecipeTrainingArguments, resume="exactly")


def cut(saved, folder, file, share):
    """Copy a checkpoint, of which a file was written in part; None: not at all."""
    folder.mkdir(parents=True)
    for each in Path(saved).iterdir():
        content = each.read_bytes()
        if each.name != file:
            (folder / each.name).write_bytes(content)
        elif share is not None:
            (folder / each.name).write_bytes(content[: int(len(content) * share)])


FILES = ["optimizer.pt", "scheduler.pt", "model.safetensors", "trainer_state.json", "rng_state.pth"]


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_that_was_not_written_whole_is_told_from_one_that_was(tmp_path, saved, file):
    trainer = trainer_of(tmp_path)
    for share in (0.0, 0.5, 0.99):
        folder = tmp_path / f"{file}-{share}" / "checkpoint-8"
        cut(saved, folder, file, share)
        with pytest.raises(
            StateError,
            match=rf"checkpoint-8 was not written whole, .*: {file} ends too early.*; there is no whole",
        ):
            trainer.train(resume_from_checkpoint=str(folder))
    assert trainer.run is None


@pytest.mark.parametrize("given", [True, "checkpoint-10"])
def test_the_newest_whole_one_is_named(tmp_path, saved, given):
    cut(saved, tmp_path / "checkpoint-6", None, 1)
    cut(saved, tmp_path / "checkpoint-8", None, 1)
    cut(saved, tmp_path / "checkpoint-9", "scheduler.pt", 0.5)
    cut(saved, tmp_path / "checkpoint-10", "trainer_state.json", None)
    trainer = trainer_of(tmp_path)
    with pytest.raises(StateError, match=r"no trainer_state\.json, which is written last") as error:
        trainer.train(resume_from_checkpoint=given if given is True else str(tmp_path / given))
    whole = str(error.value).rpartition("resume_from_checkpoint=")[2].strip("'")
    assert whole == str(tmp_path / "checkpoint-8")
    trainer.train(resume_from_checkpoint=whole)
    assert trainer.run.resumption.is_exact


def test_a_folder_of_a_name_of_its_own_need_not_be_the_trainers(tmp_path, saved):
    cut(saved, tmp_path / "mine", "trainer_state.json", None)
    with pytest.raises(FileNotFoundError, match="trainer_state"):  # the Trainer's own word
        trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "mine"))
