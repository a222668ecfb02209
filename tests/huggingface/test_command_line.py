"""Single values of a recipe among the Trainer's arguments."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import trl
from transformers import HfArgumentParser

from optimplug import RecipeError
from optimplug.huggingface import RecipeArguments, RecipeTrainingArguments

TEXT = """\
optimizer: {name: AdamW, lr: 1e-3}
groups:
  - {match: "*.bias", lr_scale: 1}
schedule:
  - {name: LinearLR, start_factor: 0.1, for: 4}
"""

# TRL's own defaults.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")


@dataclass
class ModelArguments:
    model_name: str = "tiny"


@dataclass
class SFTArguments(RecipeArguments, trl.SFTConfig):
    pass


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(TEXT)


def parsed(given, parse):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *given])
        return parse()


def of_trainer(given):
    types = (ModelArguments, RecipeTrainingArguments)
    return parsed(given, lambda: HfArgumentParser(types).parse_args_into_dataclasses())


def of_trl(given):
    types = (ModelArguments, SFTArguments)
    return parsed(given, lambda: trl.TrlParser(types).parse_args_and_config())


def of_trl_config(given):
    """The recipe comes from the YAML of the arguments, and the single values from beside it."""
    Path("config.yaml").write_text("recipe: recipe.yaml\n")
    rest = [item for item in given if item not in ("--recipe", "recipe.yaml")]
    return of_trl(["--config", "config.yaml", *rest])


WAYS = [of_trainer, of_trl, of_trl_config]
GIVEN = ["--output_dir", "out", "--use_cpu", "--recipe", "recipe.yaml", "--model_name", "small"]


@pytest.mark.parametrize("way", WAYS)
def test_single_values_are_put_into_the_recipe(way):
    model, args = way(
        [
            "--recipe.optimizer.lr", "1e-4",  # before the recipe, too
            *GIVEN,
            "--recipe.groups.0.lr_scale", "2",
            "--recipe.schedule[0].for=6%",
            "--recipe.optimizer.betas=[0.8,0.9]",
        ]
    )  # fmt: skip
    assert model.model_name == "small"
    assert args.recipe == {
        "optimizer": {"name": "AdamW", "lr": 1e-4, "betas": [0.8, 0.9]},
        "groups": [{"match": "*.bias", "lr_scale": 2}],
        "schedule": [{"name": "LinearLR", "start_factor": 0.1, "for": "6%"}],
    }


@pytest.mark.parametrize("way", WAYS)
def test_without_single_values_the_recipe_is_as_it_was_given(way):
    assert way(GIVEN)[1].recipe == "recipe.yaml"


def test_a_value_may_make_a_recipe_right():
    Path("recipe.yaml").write_text(TEXT.replace("lr: 1e-3", "lr: -1"))
    assert of_trainer([*GIVEN, "--recipe.optimizer.lr=1"])[1].recipe["optimizer"]["lr"] == 1


def test_other_unknown_options_are_still_refused():
    with pytest.raises(ValueError, match=r"not used by the HfArgumentParser: \['--recipes.x'"):
        of_trainer([*GIVEN, "--recipes.x", "1"])


@pytest.mark.parametrize("way", [of_trainer, of_trl])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--recipe.optimizer.lr", "x"], "--recipe.optimizer.lr: must be a finite number (got 'x')"),
        (["--recipe.optimizer.lrr", "1"], "--recipe.optimizer.lrr: unknown key; did you mean 'lr'?"),
        (["--recipe.optimiser.lr", "1"], "--recipe.optimiser.lr: optimiser: unknown key; did you mean 'optimizer'?"),
        (["--recipe.groups.3.lr_scale", "2"], "--recipe.groups.3.lr_scale: must name one of 1, from 0 (got '3')"),
        (["--recipe.schedule", "[{name: StepL}]"], "--recipe.schedule: schedule[0].name: "),
    ],
)  # fmt: skip
def test_an_error_names_the_option(way, given, message):
    with pytest.raises(RecipeError, match="^" + re.escape(message)):
        way([*GIVEN, *given])


def test_an_option_without_a_value_is_refused(capsys):
    with pytest.raises(SystemExit):
        of_trainer([*GIVEN, "--recipe.optimizer.lr"])
    assert "recipe.optimizer.lr: expected one argument" in capsys.readouterr().err


def test_what_else_is_wrong_names_the_file():
    Path("recipe.yaml").write_text(TEXT.replace("lr_scale", "lr_scal"))
    with pytest.raises(RecipeError, match=r"^recipe\.yaml: groups\[0\]\.lr_scal: "):
        of_trainer([*GIVEN, "--recipe.optimizer.lr=1e-4"])


def test_without_a_recipe_there_is_nothing_to_change():
    expected = r"^--recipe\.optimizer\.lr changes a recipe, but there is none; give --recipe"
    with pytest.raises(RecipeError, match=expected):
        of_trainer(["--output_dir", "out", "--recipe.optimizer.lr=1e-4"])


def test_arguments_that_are_not_the_programs_have_no_single_values():
    given = [*GIVEN, "--recipe.optimizer.lr=1e-4"]
    parser = HfArgumentParser((ModelArguments, RecipeTrainingArguments))
    with pytest.raises(ValueError, match=r"not used .* \['--recipe\.optimizer\.lr=1e-4'\]"):
        parser.parse_args_into_dataclasses(given, look_for_args_file=False)
