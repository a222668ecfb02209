"""The project of YAML and one module of Python, from its command line."""

import csv
import re
import shutil
from pathlib import Path

import pytest
import yaml
from support import commands

# LightningCLI itself calls what jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)

FOLDER = Path(__file__).parents[2] / "examples" / "lightning_cli"


@pytest.fixture
def project(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "project", ignore=shutil.ignore_patterns("runs"))


def run(project, what, *arguments):
    main = commands.module("optimplug.lightning")
    return commands.run(main, what, "--config", "config.yaml", *arguments, folder=project)


def rows(project):
    with (project / "runs/lightning_logs/version_0/metrics.csv").open() as lines:
        return list(csv.DictReader(lines))


def rates(project, group):
    return [float(row[f"lr/{group}"]) for row in rows(project) if row[f"lr/{group}"]]


def test_it_trains_and_logs_every_group(project):
    short = [
        "--trainer.max_epochs=1",
        "--recipe.optimizer.lr=1e-3",
        "--trainer.log_every_n_steps=1",
    ]
    done = run(project, "fit", *short)
    assert done.returncode == 0, done.stderr
    warmed = [1e-3 * (0.01 + 0.99 * t / 45) for t in range(45)]
    assert rates(project, "model") == pytest.approx(warmed, rel=1e-5)
    assert rates(project, "head.weight") == pytest.approx([lr / 2 for lr in warmed], rel=1e-5)
    saved = yaml.safe_load((project / "runs/lightning_logs/version_0/config.yaml").read_text())
    assert saved["recipe"]["optimizer"]["lr"] == 1e-3
    assert saved["recipe"]["schedule"][1]["monitor"] == "val_loss"


def test_a_mistake_ends_it_in_one_line(project):
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace('"head.*"', '"haed.*"'))
    done = run(project, "fit")
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == "groups[1].match: 'haed.*' matches no parameter; did you mean 'head.*'?"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The dirpath has changed"
)  # a run of test has a folder of its own
def test_the_whole_of_it_learns_and_the_plateau_falls(project):
    done = run(project, "fit")
    assert done.returncode == 0, done.stderr
    assert max(rates(project, "model")) == pytest.approx(2e-3)
    assert min(rates(project, "model")) <= 1e-3
    last = "runs/lightning_logs/version_0/checkpoints/last.ckpt"
    done = run(project, "test", "--ckpt_path", last)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"test_accuracy\D+([\d.]+)", done.stdout)[1]) > 0.9
