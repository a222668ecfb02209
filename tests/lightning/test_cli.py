import copy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support.bert import collate, tiny_bert, tiny_rows
from support.commands import run_apart
from support.labels import label
from support.lightning_package import NAME, LightningCLI, LightningModule
from torch.utils.data import DataLoader

from optimplug.lightning import RecipeCLI

# LightningCLI itself calls what jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)

RECIPE = """\
optimizer: {name: AdamW, lr: 2e-3, max_grad_norm: 1.0}
groups:
  - layer_decay: 0.8
  - {match: "classifier.*", lr_scale: 2}
schedule:
  - {name: LinearLR, start_factor: 0.1, for: 50%}
  - {name: CosineAnnealingLR, floor: 0.1}
"""
CONTENT = yaml.safe_load(RECIPE.replace("2e-3", "0.002"))
QUIET = {
    "max_epochs": 1,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Plain(LightningModule):
    """Says nothing of optimizers."""

    def __init__(self, layers: int = 2):
        super().__init__()
        self.model = tiny_bert(layers)

    def training_step(self, batch):
        return self.model(**batch).loss

    def validation_step(self, batch):
        self.log("val_loss", self.model(**batch).loss)

    def train_dataloader(self):
        return DataLoader(tiny_rows(), 4, collate_fn=collate)

    val_dataloader = test_dataloader = train_dataloader
    test_step = validation_step


class Own(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=7.0)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run a command line in a folder with recipe.yaml and config.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write("run.yaml", {"trainer": QUIET, "recipe": "recipe.yaml"})

    def run(*arguments, module=Plain, cls=RecipeCLI, **options):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        return cls(
            module, seed_everything_default=1, save_config_kwargs={"overwrite": True}, **options
        )

    return run


def write(path, content):
    Path(path).write_text(yaml.safe_dump(content))


def groups_of(cli):
    return {g["name"]: g["initial_lr"] for g in cli.trainer.optimizers[0].param_groups}


def test_a_recipe_beside_the_config_trains_a_module_that_says_nothing(command):
    cli = command("fit", "--config", "run.yaml")
    assert groups_of(cli)["classifier"] == 4e-3
    assert cli.trainer.optimizers[0].max_grad_norm == 1.0
    assert cli.trainer.lr_scheduler_configs[0].scheduler.last_epoch == 6


def test_the_path_is_taken_from_the_folder_of_the_file_that_says_it(command, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "recipe.yaml").rename(tmp_path / "configs" / "own.yaml")
    write("configs/run.yaml", {"trainer": QUIET, "recipe": "own.yaml"})
    assert groups_of(command("fit", "--config", "configs/run.yaml"))["classifier"] == 4e-3


def test_a_recipe_may_stand_in_the_config(command):
    write("run.yaml", {"trainer": QUIET, "recipe": CONTENT})
    assert groups_of(command("fit", "--config", "run.yaml"))["classifier"] == 4e-3


@pytest.mark.parametrize(
    ("arguments", "lr"),
    [
        (["--recipe.optimizer.lr=1e-4"], 2e-4),
        (["--recipe.optimizer.lr", "1e-4"], 2e-4),
        (["--recipe.groups[1].lr_scale=3"], 6e-3),
        (["--recipe.groups.1.lr_scale=3", "--recipe.optimizer.lr=1.0"], 3.0),
        (["--recipe", "other.yaml"], 5.0),
        (["--recipe", "other.yaml", "--recipe.optimizer.lr=0.5"], 0.5),
    ],
    ids=label,
)
@pytest.mark.parametrize("inline", [False, True])
def test_single_values_are_said_on_the_command_line(command, arguments, lr, inline):
    if inline:
        write("run.yaml", {"trainer": QUIET, "recipe": CONTENT})
    write(
        "other.yaml",
        {
            "optimizer": {"name": "SGD", "lr": 5.0},
            "groups": [{"match": "classifier.*", "lr_scale": 1}],
        },
    )
    cli = command("fit", "--config", "run.yaml", "--trainer.max_steps=1", *arguments)
    found = {
        p: g["initial_lr"] for g in cli.trainer.optimizers[0].param_groups for p in g["param_names"]
    }
    assert found["classifier.weight"] == pytest.approx(lr, rel=1e-15)


def test_each_of_several_optimizers_is_changed_on_the_command_line(command):
    several = copy.deepcopy(CONTENT)
    several["groups"].append({"match": "*.bias", "optimizer": {"name": "Lion", "lr": 1e-4}})
    write("run.yaml", {"trainer": QUIET, "recipe": several})
    change = "--recipe.groups[2].optimizer.lr=5e-4"
    cli = command("fit", "--config", "run.yaml", "--trainer.max_steps=1", change)
    (optimizer,) = cli.trainer.optimizers
    found = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    assert type(optimizer).__name__ == "MultiOptimizer"
    assert optimizer.max_grad_norm == 1.0
    bias, weight = (found[f"classifier.{name}"] for name in ("bias", "weight"))
    assert (bias["optimizer"], bias["initial_lr"]) == ("Lion", 1e-3)
    assert (weight["optimizer"], weight["initial_lr"]) == ("AdamW", 4e-3)


def test_the_printed_config_holds_the_recipe_in_full_and_runs_again(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command("fit", "--config", "run.yaml", "--recipe.optimizer.lr=1e-4", "--print_config")
    assert not stop.value.code
    printed = yaml.safe_load(capsys.readouterr().out)
    expected = copy.deepcopy(CONTENT)
    expected["optimizer"]["lr"] = 1e-4
    assert printed["recipe"] == expected
    write("printed.yaml", printed)
    assert groups_of(command("fit", "--config", "printed.yaml"))["classifier"] == 2e-4


def test_the_saved_config_holds_the_recipe_in_full_and_runs_again(command, tmp_path):
    logged = {
        **QUIET,
        "logger": {
            "class_path": f"{NAME}.loggers.CSVLogger",
            "init_args": {"save_dir": "logs"},
        },
    }
    write("run.yaml", {"trainer": logged, "recipe": "recipe.yaml"})
    command("fit", "--config", "run.yaml", "--recipe.optimizer.lr=1e-4")
    (saved,) = tmp_path.glob("logs/**/config.yaml")
    assert yaml.safe_load(saved.read_text())["recipe"]["optimizer"]["lr"] == 1e-4
    cli = command("fit", "--config", str(saved), "--trainer.logger=false")
    assert groups_of(cli)["classifier"] == 2e-4


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_the_same_config_serves_the_other_subcommands(command, subcommand):
    cli = command(subcommand, "--config", "run.yaml")
    assert "val_loss" in cli.trainer.callback_metrics


def test_a_recipe_takes_over_a_module_that_configures_itself(command):
    assert groups_of(command("fit", "--config", "run.yaml", module=Own))["classifier"] == 4e-3


def test_without_a_recipe_the_module_configures_itself(command):
    write("run.yaml", {"trainer": QUIET})
    cli = command("fit", "--config", "run.yaml", module=Own)
    assert type(cli.trainer.optimizers[0]) is torch.optim.SGD


def test_run_false_leaves_the_rest_to_the_caller(command):
    cli = command("--config", "run.yaml", "--recipe.optimizer.lr=1e-4", run=False)
    cli.trainer.fit(cli.model)
    assert groups_of(cli)["classifier"] == 2e-4


def test_arguments_given_in_python_count_as_well(command):
    cli = command(args=["fit", "--config", "run.yaml", "--recipe.optimizer.lr=1e-4"])
    assert groups_of(cli)["classifier"] == 2e-4
    cli = command(run=False, args={"trainer": QUIET, "recipe": CONTENT})
    cli.trainer.fit(cli.model)
    assert groups_of(cli)["classifier"] == 4e-3


BAD = {
    "--recipe=none.yaml": "none.yaml: cannot read the recipe",
    "--recipe.optimizer.lrr=1": "optimizer.lrr: unknown key; did you mean 'lr'?",
    "--recipe.groups[5].lr=1": "groups[5].lr: must name one of 2, from 0 (got '5')",
    "--recipe.optimizer.lr": "--recipe.optimizer.lr needs a value",
    "--recipee.optimizer.lr=1": "recipee",
    "--recipe.schedule --trainer.max_epochs=1": "--recipe.schedule needs a value",
    "--optimizer=SGD": "optimizer",
}


@pytest.mark.parametrize("argument", BAD)
def test_what_is_wrong_is_told_before_anything_is_built(command, capsys, argument):
    with pytest.raises(SystemExit) as stop:
        command("fit", "--config", "run.yaml", *argument.split())
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert BAD[argument] in message
    assert "Traceback" not in message


def test_a_change_of_a_recipe_that_is_not_there_is_refused(command, capsys):
    write("run.yaml", {"trainer": QUIET})
    with pytest.raises(SystemExit):
        command("fit", "--config", "run.yaml", "--recipe.optimizer.lr=1", module=Own)
    assert "changes a recipe, but there is none; give --recipe" in capsys.readouterr().err


def test_changes_are_of_the_recipe_that_is_used_and_of_no_other(command):
    rest = {"groups": [{"layer_decay": 0.5}], "schedule": "linear"}
    write("other.yaml", {"optimizer": {"name": "SGD", "lr": 5.0}, **rest})
    changes = ["--recipe.schedule={name: LinearLR, for: 2}", "--recipe.optimizer.momentum=0.5"]
    cli = command("fit", "--config", "run.yaml", "--recipe", "other.yaml", *changes)
    assert cli.trainer.optimizers[0].defaults["momentum"] == 0.5


def test_a_change_that_does_not_fit_names_its_option(command, capsys):
    with pytest.raises(SystemExit):
        command("fit", "--config", "run.yaml", "--recipe.optimizer.lrr=1")
    assert "error: --recipe.optimizer.lrr: unknown key" in capsys.readouterr().err


def test_null_is_no_recipe(command):
    cli = command("fit", "--config", "run.yaml", "--recipe", "null", module=Own)
    assert type(cli.trainer.optimizers[0]) is torch.optim.SGD


def test_a_metric_that_is_missing_ends_in_one_line(command):
    plateau = "{name: ReduceLROnPlateau, monitor: vall_loss}"
    with pytest.raises(SystemExit) as stop:
        command("fit", "--config", "run.yaml", f"--recipe.schedule={plateau}")
    assert stop.value.code == "the metric 'vall_loss' is missing; there are: val_loss"


def test_a_mistake_in_the_config_names_the_file_and_the_key(command, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("layer_decay", "layer_deacy"))
    with pytest.raises(SystemExit):
        command("fit", "--config", "run.yaml")
    message = capsys.readouterr().err
    assert "recipe.yaml: groups[0].layer_deacy: unknown key; did you mean 'layer_decay'?" in message


def test_what_only_the_model_can_tell_ends_in_one_line(command):
    with pytest.raises(SystemExit) as stop:
        command("fit", "--config", "run.yaml", "--recipe.groups[1].match=clasifier.*")
    assert (
        stop.value.code
        == "groups[1].match: 'clasifier.*' matches no parameter; did you mean 'classifier.*'?"
    )


def test_lightnings_own_way_is_refused_by_name(command):
    with pytest.raises(TypeError, match="has no auto_configure_optimizers"):
        command("fit", "--config", "run.yaml", auto_configure_optimizers=True)


def test_a_subclass_that_adds_arguments_of_its_own_still_has_a_recipe(command):
    class Custom(RecipeCLI):
        def add_arguments_to_parser(self, parser):
            parser.add_argument("--greeting", default="hello")

    cli = command("fit", "--config", "run.yaml", "--greeting=bye", cls=Custom)
    assert cli.config.fit.greeting == "bye"
    assert groups_of(cli)["classifier"] == 4e-3


BARE = f"""
import torch
from {NAME} import LightningModule
from {NAME}.cli import LightningCLI

import optimplug.lightning
"""
BARE += """


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch):
        return self.layer(batch).sum()

    def train_dataloader(self):
        return torch.ones(2, 1, 1)


quiet = {"max_steps": 1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
quiet |= {"enable_progress_bar": False, "enable_model_summary": False}
cli = LightningCLI(Model, trainer_defaults=quiet, save_config_callback=None)
[optimizer] = cli.trainer.optimizers
print(type(optimizer).__module__, optimizer.param_groups[0]["lr"])
"""


class TestInLightningsOwnCommandLine:
    """Callbacks in the YAML of a project that knows nothing of recipes."""

    def run(self, command, *callbacks, **rest):
        write("run.yaml", {"trainer": {**QUIET, "callbacks": list(callbacks)}, **rest})
        return command("fit", "--config", "run.yaml", module=Own, cls=LightningCLI)

    @pytest.mark.parametrize("recipe", ["recipe.yaml", CONTENT], ids=["path", "inline"])
    def test_a_recipe_takes_over(self, command, recipe):
        name = "optimplug.callbacks.lightning.RecipeCallback"
        cli = self.run(command, {"class_path": name, "init_args": {"recipe": recipe}})
        assert groups_of(cli)["classifier"] == 4e-3

    @pytest.mark.parametrize("package", ["torch.optim", "optimplug.optim"])
    def test_any_scheduler_is_stepped(self, command, package):
        scheduler = {
            "class_path": f"{package}.lr_scheduler.StepLR",
            "init_args": {"step_size": 2, "gamma": 0.5},
        }
        name = "optimplug.callbacks.lightning.SchedulerCallback"
        cli = self.run(
            command, {"class_path": name, "init_args": {"scheduler_or_factory": scheduler}}
        )
        assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 7.0 / 8

    @pytest.mark.slow
    def test_a_bare_name_of_an_optimizer_still_means_torchs(self, tmp_path):
        # In a process of its own: in this one, other packages may have an AdamW too.
        (tmp_path / "train.py").write_text(BARE)
        optimizer = ["--optimizer", "AdamW", "--optimizer.lr", "0.5"]
        found = run_apart("python", "train.py", "fit", *optimizer, folder=tmp_path)
        assert found.stdout.split() == ["torch.optim.adamw", "0.5"], found.stderr


def test_a_policy_is_said_on_the_command_line(command, tmp_path):
    fit = ("fit", "--config", "run.yaml")
    command(*fit).trainer.save_checkpoint(tmp_path / "last.ckpt")
    on = (*fit, "--ckpt_path", "last.ckpt", "--trainer.max_epochs", "2")
    with pytest.raises(SystemExit, match=r"horizon +6 updates, .* adapt\n"):
        command(*on)
    cli = command(*on, "--resume=adapt", "--recipe.optimizer.lr=1e-4")
    assert cli.trainer.optimizers[0].param_groups[-1]["initial_lr"] == 2e-4
    with pytest.raises(SystemExit):
        command(*on, "--resume=exactly")
    for given, steps in (("50%", 6), ("3", 3)):
        cli = command(*on, "--resume=adapt", f"--rewarm={given}", "--recipe.optimizer.lr=1e-4")
        climb = cli.trainer.lr_scheduler_configs[0].scheduler.climbs[-1]
        assert (climb.begin, climb.steps) == (6, steps)
    with pytest.raises(SystemExit, match="rewarm='2%' is for resume='adapt'"):
        command(*on, "--rewarm=2%")
