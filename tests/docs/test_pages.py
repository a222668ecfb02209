"""What the pages list is complete, and what is made from the code is right."""

import re
import sys
from importlib.util import find_spec

import pytest
import torch
from support import commands, pages
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, SchedulerType
from transformers.training_args import OptimizerNames

from optimplug import Horizon, Recipe, optim
from optimplug._core.optim.profile import profile_of
from optimplug.cli import app
from optimplug.recipe.text.reader import read

sys.path.insert(0, str(pages.ROOT / "docs"))
from tools import arguments, public
from tools import pages as made

ADAMW = {"name": "AdamW"}
HORIZON = Horizon(total_steps=500, steps_per_epoch=100)
SCHEMA = Recipe.json_schema()
KEYS = pages.sections("docs/recipe.md")
ARGUMENTS = {row[0].strip("`"): row for row in pages.rows(arguments.page_of_arguments())}


def small_bert():
    """A BERT whose matrices are large enough for moments in 8 bits."""
    config = BertConfig(
        vocab_size=40,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    with torch.device("meta"):
        return BertForSequenceClassification(config)


BERT = small_bert()


def plans(recipe, model=BERT):
    """A recipe is right if it can be fitted to a model and a run."""
    return Recipe.load(recipe).plan(model, HORIZON)


def written(text):
    """What a recipe's YAML says, with a recipe's idea of numbers: 1e-3 is one."""
    return read(f"{text}\n")[0]


def value(cell):
    """What a cell of a table says, in backticks."""
    return written(f"value: {cell.strip('`')}")["value"]


# Where each part of the schema stands in a recipe.
PARTS = {
    "": SCHEMA,
    "optimizer.": SCHEMA["$defs"]["OptimizerSpec"],
    "groups[].": SCHEMA["$defs"]["RuleSpec"],
    "groups[].match.": SCHEMA["$defs"]["Match"]["anyOf"][-1],
    "groups[].layer_decay.": SCHEMA["$defs"]["LayerDecay"],
    "groups[].freeze.": SCHEMA["$defs"]["FreezeSpec"],
    "schedule[].": SCHEMA["$defs"]["PhaseSpec"],
    "resume.": SCHEMA["$defs"]["ResumeSpec"],
}
PLACES = [(place, key) for place, part in PARTS.items() for key in part["properties"]]


def test_every_part_of_the_schema_has_a_place():
    same = {"Duration", "FallbackSpec", "RuleOptimizerSpec"}  # a value; and as under optimizer
    named = {
        "OptimizerSpec",
        "RuleSpec",
        "Match",
        "LayerDecay",
        "FreezeSpec",
        "PhaseSpec",
        "ResumeSpec",
    }
    assert SCHEMA["$defs"].keys() == same | named, "a new part needs a row in PARTS"


@pytest.mark.parametrize(("place", "key"), PLACES)
def test_every_key_of_the_schema_is_on_a_page(place, key):
    if f"{place}{key}" not in KEYS:
        has_arguments = place in ("optimizer.", "groups[].", "schedule[].")
        assert has_arguments and key in ARGUMENTS, "docs/recipe.md needs a heading for it"  # noqa: PT018


@pytest.mark.parametrize("title", [t for t in KEYS if not t.startswith("The recipe")])
def test_a_heading_of_the_recipes_page_is_a_key_with_an_example(title):
    assert title in {f"{place}{key}" for place, key in PLACES}
    key = title.rpartition(".")[2]
    *_, (_, _, example) = pages.FENCE.findall(KEYS[title])
    plain = {"groups[].match.name": "match: {name", "groups[].match.all": "match: {all"}
    assert plain.get(title, f"{key}:") in example


# What a phase needs besides.
NEEDED = {
    "ReduceLROnPlateau": {"monitor": "loss"},
    "reduce_lr_on_plateau": {"monitor": "loss"},
    "CyclicLR": {"floor": 0.1, "step_size_up": 10},
    "StepLR": {"step_size": 10},
    "ExponentialLR": {"gamma": 0.9},
    "MultiStepLR": {"milestones": [10]},
    "CosineAnnealingWarmRestarts": {"T_0": 10},
    "warmup_stable_decay": {"num_decay_steps": 10},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
}
PARTS_WITH_ARGUMENTS = {"OptimizerSpec": "optimizer", "PhaseSpec": "schedule"}
ALL_ARGUMENTS = [
    (place, key, users)
    for part, place in PARTS_WITH_ARGUMENTS.items()
    for key, users in arguments.users_of_arguments(SCHEMA["$defs"][part]).items()
]


@pytest.mark.parametrize(("place", "key", "users"), ALL_ARGUMENTS)
def test_an_argument_is_taken_as_the_pages_example_has_it(place, key, users):
    example = written(arguments.argument_example(key, users))
    if place == "optimizer":
        name = next(iter(users))
        cls = getattr(optim, name)
        shortest = written(made.recipe(profile_of(cls)))["optimizer"]
        plans({"optimizer": {**shortest, **example}})
        return
    name = next(iter(users))
    phase = {"preset" if name.islower() else "name": name, **NEEDED.get(name, {}), **example}
    plans({"optimizer": ADAMW, "schedule": phase})


MIGRATION = pages.sections("docs/migration.md")
OPTIM = {row[0].strip("`"): row[1] for row in pages.rows(MIGRATION["optim"])}
SCHEDULES = {row[0].strip("`"): row[1] for row in pages.rows(MIGRATION["lr_scheduler_type"])}
NEEDS_A_DEVICE = {"adamw_torch_xla", "adamw_torch_npu_fused"}


def test_the_table_of_optim_has_every_name_of_the_trainer():
    assert {name.value for name in OptimizerNames} <= OPTIM.keys()


def test_the_table_of_schedules_has_every_name_of_the_trainer():
    assert {name.value for name in SchedulerType} <= SCHEDULES.keys()


@pytest.mark.parametrize("name", OPTIM)
def test_the_recipe_for_an_optim_plans(name):
    optimizer = value(OPTIM[name])
    if name in NEEDS_A_DEVICE:
        with pytest.raises(ValueError, match=optimizer["name"].partition(".")[0]):
            plans({"optimizer": optimizer})
    else:
        assert plans({"optimizer": optimizer}).warnings == ()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_recipe_for_a_schedule_plans(name):
    found = plans({"optimizer": ADAMW, "schedule": value(SCHEDULES[name])})
    assert found.warnings == ()


FRAGMENTS = [
    fragment
    for title in ("The Trainer's arguments", "axolotl", "timm", "mmengine")
    for row in pages.rows(MIGRATION[title])
    for fragment in re.findall(r"`([a-z]+: [^`]+)`", row[-1])
]


class Model(nn.Module):
    """Has what the fragments speak of."""

    def __init__(self):
        super().__init__()
        self.bert, self.classifier = BERT.bert, BERT.classifier
        self.lora_B = nn.Linear(2, 2)


def test_fragments_were_found():
    assert len(FRAGMENTS) > 50


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_of_a_recipe_plans(fragment):
    part = written(fragment)
    needed = {"name": "SGD", "momentum": 0.9} if "of: momentum" in fragment else {"name": "AdamW"}
    plans({"optimizer": needed, **part}, Model())


def test_all_that_is_public_has_a_docstring():
    assert public.undocumented() == []


def test_every_public_package_has_a_page():
    root = pages.ROOT / "optimplug"
    folders = [*root.iterdir(), *(root / "callbacks").iterdir()]
    found = {
        ".".join(folder.relative_to(pages.ROOT).parts)
        for folder in folders
        if (own := folder / "__init__.py").exists() and "__all__" in own.read_text()
    }
    inner = {"optimplug._core", "optimplug.cli", "optimplug.show"}
    assert found - inner <= set(public.MODULES)


def test_a_public_name_without_a_docstring_is_found(monkeypatch):
    def undocumented():
        pass

    monkeypatch.setattr(Recipe, "plan", undocumented)
    assert public.undocumented() == ["optimplug.Recipe.plan"]


@pytest.mark.parametrize("cls", made.optimizers())
def test_the_recipe_on_an_optimizers_page_plans(cls):
    text = made.recipe(profile_of(cls))
    assert text in made.optimizer(cls)
    plans(written(text))


def test_the_command_line_has_every_command():
    text = made.command_line()
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert {f"optimplug {name}" for name in names} <= set(re.findall(r"^## (.+)$", text, re.M))


@pytest.mark.parametrize("folder", made.examples(), ids=lambda folder: folder.name)
def test_an_examples_page_has_all_its_files(folder):
    text = made.example(folder)
    assert all(f"## {file.name}\n" in text for file in folder.iterdir() if file.is_file())


@pytest.mark.parametrize(
    ("page", "link", "there"),
    [
        ("storage.md", "(../examples/low_memory)", "(examples/low_memory.md)"),
        ("loops/plain.md", "(../../examples/fabric_loop)", "(../examples/fabric_loop.md)"),
        ("how.md", "(../CONTRIBUTING.md#habits)", "(contributing.md#habits)"),
        ("how.md", "(storage.md)", "(storage.md)"),
        ("benchmarks.md", "(optimizers.png)", "(optimizers.png)"),
        ("changes.md", "(docs/optimizers.md)", "(optimizers.md)"),
        ("how.md", "(https://example.org)", "(https://example.org)"),
    ],
)
def test_links_to_the_repository_lead_to_pages_of_the_site(page, link, there):
    assert made.rewritten(page, f"[text]{link}") == f"[text]{there}"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds(tmp_path):
    build = ("-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site")
    done = commands.run_apart(sys.executable, *build, folder=pages.ROOT)
    assert done.returncode == 0, done.stderr
    assert all(
        (tmp_path / "site" / f"{page}.html").exists() for page in ("index", "optimizers/SGD")
    )
