import pytest
from support.bert import tiny_rows
from support.huggingface_runs import RECIPE, UNCLIPPED, StopAfter, trainer_of
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from optimplug.callbacks.huggingface import LearningRateTrace
from optimplug.huggingface import with_recipe

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
