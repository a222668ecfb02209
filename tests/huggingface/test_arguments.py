import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from support.bert import collate, tiny_bert, tiny_rows
from support.huggingface_runs import RECIPE, arguments, trainer_of
from support.labels import label
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, Trainer

from optimplug import Recipe, RecipeError
from optimplug.huggingface import (
    RecipeArguments,
    RecipeTrainer,
    RecipeTrainingArguments,
    with_recipe,
)

SMALL = {"optimizer": {"name": "AdamW", "lr": 1e-3, "betas": [0.8, 0.99]}}
TEXT = "optimizer:\n  name: AdamW\n  lr: 1e-3\n  betas: [0.8, 0.99]\n"
FLOW = "{optimizer: {name: AdamW, lr: 1e-3, betas: [0.8, 0.99]}}"


@dataclass
class Seq2SeqArguments(RecipeArguments, Seq2SeqTrainingArguments):
    pass


@dataclass
class TurnedAround(Seq2SeqTrainingArguments, RecipeArguments):
    pass


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(TEXT)
    return "recipe.yaml"


def from_command_line(cls, recipe):
    text = json.dumps(recipe) if isinstance(recipe, dict) else recipe
    given = ["--output_dir", "out", "--use_cpu", "--recipe", text]
    return HfArgumentParser(cls).parse_args_into_dataclasses(given, look_for_args_file=False)[0]


def from_yaml(cls, recipe):
    Path("args.yaml").write_text(yaml.safe_dump({"output_dir": "out", "recipe": recipe}))
    return HfArgumentParser(cls).parse_yaml_file("args.yaml")[0]


def from_json(cls, recipe):
    Path("args.json").write_text(json.dumps({"output_dir": "out", "recipe": recipe}))
    return HfArgumentParser(cls).parse_json_file("args.json")[0]


def from_python(cls, recipe):
    return cls(output_dir="out", recipe=recipe)


@pytest.mark.parametrize("cls", [RecipeTrainingArguments, Seq2SeqArguments])
@pytest.mark.parametrize("way", [from_command_line, from_yaml, from_json, from_python])
@pytest.mark.parametrize("recipe", [SMALL, TEXT, FLOW], ids=["mapping", "text", "flow"])
def test_a_recipe_is_a_mapping_among_the_arguments(file, cls, way, recipe):
    args = way(cls, recipe)
    assert args.recipe == SMALL
    assert args.output_dir == "out"


@pytest.mark.parametrize("way", [from_command_line, from_yaml, from_json, from_python])
def test_a_path_begins_at_the_working_directory(file, way):
    assert way(RecipeTrainingArguments, file).recipe == file


def test_a_path_object_is_a_path_whatever_it_looks_like(file):
    assert from_python(RecipeTrainingArguments, Path(file)).recipe == file
    Path("a: b.yaml").write_text(TEXT)
    assert from_python(RecipeTrainingArguments, Path("a: b.yaml")).recipe == SMALL


def test_no_recipe_is_none(file):
    assert RecipeTrainingArguments(output_dir="out").recipe is None


@pytest.mark.parametrize("number", ["1e-3", "1.e-3", "+1E-3", ".1e-2"])
def test_numbers_that_transformers_reads_as_text_are_numbers(file, number):
    Path("args.yaml").write_text(
        f"output_dir: out\nrecipe:\n  optimizer: {{name: AdamW, lr: {number}, betas: [8e-1, 0.99]}}\n"
    )
    assert HfArgumentParser(RecipeTrainingArguments).parse_yaml_file("args.yaml")[0].recipe == SMALL


def test_other_text_that_looks_like_a_number_stays_text(file):
    rules = [{"match": ["1", "e-3"], "lr": 1.0}]
    assert from_yaml(RecipeTrainingArguments, {**SMALL, "groups": rules}).recipe["groups"] == rules


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("{optimizer: {name: AdamW, lr: 1, lr: 2}}", "duplicate key 'lr'"),
        ("{optimizer: {name: AdmW, lr: 1}}", "did you mean 'AdamW'"),
        ("none.yaml", r"none\.yaml: cannot read the recipe: No such file"),
        ("[1", r"\[1: cannot read the recipe"),
        ({"optimiser": {}}, "optimiser: unknown key"),
    ],
)
@pytest.mark.parametrize("way", [from_command_line, from_yaml, from_json, from_python])
def test_a_bad_recipe_fails_as_the_arguments_are_made(file, way, recipe, message):
    with pytest.raises(RecipeError, match=message):
        way(RecipeTrainingArguments, recipe)


@pytest.mark.parametrize("recipe", [5, Recipe.load(SMALL), [SMALL]])
def test_what_cannot_stand_among_arguments_is_refused(file, recipe):
    with pytest.raises(RecipeError, match=r"recipe: must be a path, YAML or a mapping .*got a "):
        from_python(RecipeTrainingArguments, recipe)


def test_the_arguments_can_be_written_and_read_again(file):
    args = from_command_line(RecipeTrainingArguments, FLOW)
    assert json.loads(args.to_json_string())["recipe"] == SMALL
    assert args.to_sanitized_dict()["recipe"] == str(SMALL)
    torch.save(args, "args.bin")
    assert torch.load("args.bin", weights_only=False).recipe == SMALL
    assert str(SMALL) in str(args)


def trained(args, recipe=None, cls=RecipeTrainer):
    trainer = cls(
        model=tiny_bert(),
        args=args,
        train_dataset=tiny_rows(),
        data_collator=collate,
        recipe=recipe,
    )
    trainer.train()
    return trainer.optimizer.param_groups[0]["lr"]


def few_steps(cls=RecipeTrainingArguments, **changes):
    return cls(
        output_dir="out", use_cpu=True, max_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("recipe", [SMALL, TEXT, "recipe.yaml"], ids=["mapping", "text", "path"])
@pytest.mark.parametrize("cls", [RecipeTrainingArguments, Seq2SeqArguments, TurnedAround])
def test_a_trainer_takes_the_recipe_of_its_arguments(file, cls, recipe):
    assert trained(few_steps(cls, recipe=recipe)) == 1e-3


def test_the_same_recipe_may_be_given_twice(file):
    assert trained(few_steps(recipe=file), recipe=TEXT) == 1e-3


@pytest.mark.parametrize("cls", [RecipeTrainer, with_recipe(Trainer)])
def test_two_recipes_that_differ_are_refused(file, cls):
    other = {"optimizer": {"name": "AdamW", "lr": 1e-3}}
    with pytest.raises(RecipeError, match=r"recipe: recipe= and args\.recipe differ"):
        trained(few_steps(recipe=file), recipe=other, cls=cls)


@pytest.mark.parametrize("cls", [RecipeTrainingArguments, None])
def test_no_recipe_at_all_is_refused(tmp_path, cls):
    args = few_steps(cls) if cls else arguments(tmp_path)
    with pytest.raises(RecipeError, match="there is none; give recipe= to the trainer or to Rec"):
        trained(args)


REPORTED = [
    ({"learning_rate": 0.1}, "learning_rate=0.1 (the recipe's lr is 0.01)"),
    ({"weight_decay": 0.3}, "weight_decay=0.3 (the recipe's weight_decay is 0.01)"),
    ({"adam_beta2": 0.9}, "adam_beta2=0.9 (the recipe's betas[1] is 0.999)"),
    ({"adam_epsilon": 0.1}, "adam_epsilon=0.1 (the recipe's eps is 1e-08)"),
    ({"max_grad_norm": 3.0}, "max_grad_norm=3.0 (the recipe's max_grad_norm is 0.5)"),
    ({"optim": "sgd"}, "optim='sgd' (the recipe's optimizer is AdamW)"),
    (
        {"learning_rate": 0.1, "warmup_steps": 7, "lr_scheduler_type": "cosine"},
        "learning_rate=0.1 (the recipe's lr is 0.01), lr_scheduler_type='cosine', warmup_steps=7 "
        "(the recipe's schedule is LinearLR, CosineAnnealingLR)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), REPORTED, ids=label)
def test_arguments_that_the_recipe_replaces_are_named_once_with_what_wins(tmp_path, changes, told):
    with pytest.warns(UserWarning, match="the recipe replaces") as found:
        trainer_of(tmp_path, **changes)
    assert len(found) == 1
    assert str(found[0].message) == f"the recipe replaces these training arguments: {told}"
    assert found[0].filename == sys.modules["support.huggingface_runs"].__file__


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"adam_beta1": 0.5}, "adam_beta1=0.5 (the recipe's SGD has no betas)"),
        ({"max_grad_norm": 3.0}, "max_grad_norm=3.0 (the recipe does not clip)"),
        ({"warmup_steps": 7}, "warmup_steps=7 (the recipe has no schedule)"),
    ],
)
def test_what_a_recipe_does_not_have_is_said_of_it(tmp_path, changes, told):
    with pytest.warns(UserWarning, match="the recipe replaces") as found:
        trainer_of(tmp_path, {"optimizer": {"name": "SGD", "lr": 1.0}}, **changes)
    assert str(found[0].message).endswith(told)


def test_arguments_as_they_are_by_default_are_not_reported(tmp_path):
    trainer_of(tmp_path, RECIPE)
