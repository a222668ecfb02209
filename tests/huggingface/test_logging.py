import pytest
import torch
from support.bert import tiny_bert, tiny_rows
from support.huggingface_runs import RECIPE, UNCLIPPED, StopAfter, trainer_of
from support.plans import MANY
from support.trainers import arguments
from transformers import (
    HfArgumentParser,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
)

from optimplug import ArgumentError, RecipeError
from optimplug.callbacks.huggingface import LearningRateTrace, OptimizerMonitor
from optimplug.huggingface import RecipeTrainingArguments, build, with_recipe

EVERY = {"logging_strategy": "steps", "logging_steps": 1}
ONE_GROUP = {"optimizer": RECIPE["optimizer"], "schedule": RECIPE["schedule"]}


class Reporter(TrainerCallback):
    """Keeps what a reporter is given."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.logs.append(dict(logs))


def logged(logs, key):
    return [entry[key] for entry in logs if key in entry]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("recipe", [RECIPE, UNCLIPPED], ids=["clipped", "unclipped"])
def test_every_groups_rate_is_logged_as_the_last_update_used_it(
    tmp_path, recipe, every, accumulate
):
    trace, reporter = LearningRateTrace(), Reporter()
    changes = {"logging_steps": every, "gradient_accumulation_steps": accumulate}
    trainer = trainer_of(tmp_path, recipe, callbacks=[trace, reporter], **{**EVERY, **changes})
    trainer.train()
    assert len(trace.rates) > 3
    for logs in (trainer.state.log_history, reporter.logs):
        for name, rates in trace.rates.items():
            assert logged(logs, f"lr/{name}") == rates[every - 1 :: every]
        first = next(iter(trace.rates.values()))
        assert logged(logs, "learning_rate") == first[every - 1 :: every]
        assert len(logged(logs, "grad_norm")) == len(first) // every


def test_the_rate_of_a_single_group_is_logged_once(tmp_path):
    trace = LearningRateTrace()
    trainer = trainer_of(tmp_path, ONE_GROUP, callbacks=[trace], **EVERY)
    trainer.train()
    keys = {key for entry in trainer.state.log_history for key in entry}
    assert "learning_rate" in keys
    assert not [key for key in keys if key.startswith("lr")]


def test_other_logs_are_left_as_they_are(tmp_path):
    trainer = trainer_of(
        tmp_path, eval_strategy="epoch", eval_dataset=tiny_rows()[:4], logging_strategy="epoch"
    )
    trainer.train()
    for entry in trainer.state.log_history:
        has_rates = any(key.startswith("lr/") for key in entry)
        assert has_rates == ("learning_rate" in entry)
    mine = {"mine": 1.0}
    trainer.log(mine)
    assert trainer.state.log_history[-1].keys() == {"mine", "epoch", "step"}


@pytest.mark.parametrize("stop", [2, 6])
def test_a_resumed_run_logs_what_an_uninterrupted_one_does(tmp_path, stop):
    whole = trainer_of(tmp_path / "whole", **EVERY)
    whole.train()
    trainer_of(tmp_path / "part", callbacks=[StopAfter(stop)], **EVERY).train()
    resumed = trainer_of(tmp_path / "part", **EVERY)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{stop}"))
    keys = [key for key in whole.state.log_history[0] if key.startswith(("lr", "grad"))]
    assert len(keys) > 3
    for key in keys:
        assert logged(resumed.state.log_history, key) == logged(whole.state.log_history, key)


def test_a_plateau_that_has_just_cut_the_rate_does_not_change_what_is_logged(tmp_path):
    plateau = {"name": "ReduceLROnPlateau", "monitor": "eval_loss", "mode": "max", "patience": 0}
    recipe = {**RECIPE, "schedule": [{**plateau, "threshold": 1e9}]}
    trace = LearningRateTrace()
    trainer = trainer_of(
        tmp_path, recipe, callbacks=[trace], eval_strategy="steps", eval_steps=2,
        eval_dataset=tiny_rows()[:4], **EVERY,
    )  # fmt: skip
    trainer.train()
    for name, rates in trace.rates.items():
        assert logged(trainer.state.log_history, f"lr/{name}") == rates
        assert rates[-1] < rates[0]


def test_a_trainer_that_logs_more_of_its_own_still_does(tmp_path):
    class Louder(Seq2SeqTrainer):
        def log(self, logs, start_time=None):
            super().log({**logs, "seen": sorted(logs)}, start_time)

    args = Seq2SeqTrainingArguments  # the folder's arguments are those of a plain Trainer
    trainer = trainer_of(tmp_path, cls=with_recipe(Louder), arguments_class=args, **EVERY)
    trainer.train()
    assert any(key.startswith("lr/") for key in trainer.state.log_history[0]["seen"])


def consoles(trainer):
    found = trainer.callback_handler.callbacks
    return [each for each in found if isinstance(each, PrinterCallback | ProgressCallback)]


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_reporters_have_226_groups_and_the_console_short_lines(tmp_path, capsys, disable_tqdm):
    reporter, monitor = Reporter(), OptimizerMonitor(momentum=True, weight_decay=True)
    trainer = trainer_of(
        tmp_path, MANY, model=tiny_bert(28), callbacks=[reporter, monitor], max_steps=2,
        disable_tqdm=disable_tqdm, **EVERY,
    )  # fmt: skip
    trainer.train()
    for logs in (reporter.logs[:2], trainer.state.log_history[:2]):
        for entry in logs:
            for kind in ("lr", "momentum", "weight_decay"):
                assert sum(key.startswith(f"{kind}/") for key in entry) == 226
            assert not any("=" in key for key in entry)
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert sum("lr of 226 groups" in line for line in lines) == 2
    assert max(map(len, lines)) < 200
    for console in consoles(trainer):
        assert "on_log" not in vars(console)
    assert PrinterCallback.on_log.__module__ == ProgressCallback.on_log.__module__
    assert "optimplug" not in PrinterCallback.on_log.__module__


@pytest.mark.parametrize("where", ["trainer", "arguments", "both"])
def test_log_groups_chooses_for_the_trainer_and_its_monitor(tmp_path, where):
    chosen = ["*layer.0*", "model*"]
    given = {"log_groups": chosen}
    own = given if where != "arguments" else {}
    of_args = given if where != "trainer" else {}
    reporter, monitor = Reporter(), OptimizerMonitor(weight_decay=True)
    trainer = trainer_of(
        tmp_path, arguments_class=RecipeTrainingArguments, callbacks=[reporter, monitor], **EVERY,
        max_steps=6, trainer=own, **of_args,
    )  # fmt: skip
    trainer.train()
    names = {group["name"] for group in trainer.optimizer.param_groups}
    kept = {name for name in names if "layer.0" in name or name.startswith("model")}
    assert 1 < len(kept) < len(names)
    found = {key for key in trainer.state.log_history[0] if "/" in key}
    assert found == {f"{kind}/{name}" for kind in ("lr", "weight_decay") for name in kept}
    assert found == {key for key in reporter.logs[0] if "/" in key}


def test_log_groups_that_names_nothing_is_an_error_before_anything_is_trained(tmp_path):
    trainer = trainer_of(tmp_path, trainer={"log_groups": ["clasifier*"]})
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(ArgumentError, match=r"log_groups: 'clasifier\*' matches no"):
        trainer.train()
    assert trainer.run is None
    assert trainer.optimizer is None
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_two_choices_that_differ_are_an_error(tmp_path):
    with pytest.raises(ArgumentError, match="give only one of the two"):
        trainer_of(
            tmp_path, arguments_class=RecipeTrainingArguments, log_groups=["a"],
            trainer={"log_groups": "b"},
        )  # fmt: skip
    with pytest.raises(ArgumentError, match="log_groups must be globs"):
        trainer_of(tmp_path, trainer={"log_groups": 3})


def test_log_groups_is_an_argument_of_the_command_line(tmp_path):
    words = ["--output_dir", str(tmp_path), "--log_groups", "head*", "*.0"]
    (args,) = HfArgumentParser(RecipeTrainingArguments).parse_args_into_dataclasses(words)
    assert args.log_groups == ["head*", "*.0"]


def test_log_groups_in_a_trainer_that_would_not_hear_of_it_is_an_error(tmp_path):
    given = {"arguments_class": RecipeTrainingArguments, "log_groups": ["head"]}
    with pytest.raises(RecipeError, match="log_groups: would not be heard"):
        trainer_of(tmp_path, cls=Trainer, **given).train()
    args = arguments(tmp_path, **given)
    with pytest.raises(ArgumentError, match=r"OptimizerMonitor\(log_groups=...\)"):
        build(tiny_bert(), RECIPE, args, tiny_rows())
