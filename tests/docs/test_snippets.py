"""Every snippet and command of the README and of the pages under docs runs."""

import contextlib
import os
import re
import shlex
import shutil
import sys

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from support import commands, pages
from support.bert import collate, tiny_bert, tiny_rows
from support.pages import ROOT
from torch import nn
from torch.utils.data import DataLoader

from optimplug import Horizon, Recipe, StateError
from optimplug.cli import main

RECIPE = pages.blocks("README.md", "yaml")[0].text
YAML = [(page, block.text) for page in pages.pages() for block in pages.blocks(page, "yaml")]
PARTS = [(page, text) for page, text in YAML if "trainer:" not in text]
CONFIGS = [text for _, text in YAML if "trainer:" in text]
COMMANDS = list(dict.fromkeys(one for page in pages.pages() for one in pages.commands(page)))
RUN = {
    page: blocks
    for page in pages.pages()
    if (blocks := pages.blocks(page, "python", "console", "yaml"))
    and any(b.language == "python" or "$ optimplug" in b.text for b in blocks)
}
MODEL = "import sys; sys.path.insert(0, {!r}); from support.bert import tiny_bert as build"


def model_for(text):
    """A model that has what a recipe speaks of."""
    model = tiny_bert()
    if "lora" in text:
        model.bert.pooler.lora_B = nn.Linear(2, 2)
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "mymodels.py").write_text(MODEL.format(str(ROOT / "tests")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "part"), PARTS, ids=lambda text: text[:40].strip())
def test_a_recipe_or_a_part_of_one_can_be_carried_out(tmp_path, page, part):
    content = pages.read_block(page, part, tmp_path)
    recipe = Recipe.load({"optimizer": {"name": "AdamW"}, **content})
    _, scheduler = recipe.build(model_for(part), Horizon(total_steps=50, steps_per_epoch=10))
    for _ in range(50):
        scheduler.optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_of_lightning_builds_its_callbacks(folder, config):
    parser = ArgumentParser()
    parser.add_argument("--trainer.callbacks", type=list[Callback])
    built = parser.instantiate(parser.parse_string(config)).trainer.callbacks
    assert len(built) == config.count("class_path")


def test_the_recipe_has_at_most_ten_lines():
    assert len(RECIPE.splitlines()) <= 10


def given(page):
    """What a page takes as there: a model, and data for it."""
    names = {
        "model": tiny_bert(),
        "dataset": tiny_rows(),
        "batches": DataLoader(tiny_rows(), 4, collate_fn=collate),
    }
    if page == "docs/loops/trl.md":
        pytest.importorskip("trl")
        from support.language import llama, rows, tokenizer

        names |= {"language_model": llama(), "tokens": rows(), "tokenizer": tokenizer()}
    return names


def marked(page):
    # TRL sets arguments by names that transformers is about to drop.
    of_trl = (pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning"))
    return pytest.param(page, marks=of_trl if "trl" in page else ())


# What the trainers say of their own defaults, which a first snippet leaves as they are.
@pytest.mark.filterwarnings("ignore:.*`tensorboardX` has been removed")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.filterwarnings("ignore:.*`use_cache=True` is incompatible")
@pytest.mark.parametrize("page", [marked(page) for page in RUN])
def test_a_page_from_top_to_bottom(folder, page):
    names = given(page)
    for block in RUN[page]:
        if block.file:
            (folder / block.file).write_text(block.text)
        elif block.language == "python":
            run_snippet(block.text, names, page)
        elif block.language == "console":
            for command in block.text.splitlines():
                if command.startswith("$ optimplug"):
                    run_optimplug(command.removeprefix("$ "), folder)


def run_snippet(snippet, names, page):
    """Run a snippet, and see that it has trained the model if it says so, and else has not."""
    model = names["language_model" if "language_model" in snippet else "model"]
    before = [p.detach().clone() for p in model.parameters()]
    exec(compile(snippet, page, "exec"), names)  # noqa: S102
    trains = ".fit(" in snippet or ".train()" in snippet or ".backward()" in snippet
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert all(moved) if trains else not any(moved)


def run(command, folder, **variables):
    """Run a command as it is written, in a shell."""
    return commands.run_apart("bash", "-c", command, folder=folder, **variables)


def optimplug(command, folder):
    """Run the command, in this process unless a shell has a part in it."""
    if ">" in command:
        return run(command, folder)
    return commands.run(main, *shlex.split(command)[1:], folder=folder)


def run_optimplug(command, folder):
    for file in ("recipe.schema.json", "lr.png", "plan.html"):
        with contextlib.suppress(FileNotFoundError):
            (folder / file).unlink()
    done = optimplug(command, folder)
    assert done.returncode == 0, done.stderr
    for file in re.findall(r"(?:--plot|--html|>) (\S+)", command):
        assert (folder / file).stat().st_size > 1000


(PLATEAU,) = (c for c in COMMANDS if "plateau.yaml" in c)
# `make` finds this environment ready (-o), and is given a small job. Where only what it hands on
# differs from `make demo`, it says what it would run, and that runs in this process.
SMALL_JOB = {
    "make demo": 'ARGS="--train 16 --held-out 8 --batch-size 8 --out {out}"',
    "make test": 'ARGS="--collect-only -q tests/test_errors.py -p no:cacheprovider"',
    PLATEAU: f'{PLATEAU[len("make demo ") : -1]} --train 32 --held-out 8 --batch-size 8 --evaluate-every 2 --out {{out}}"',
    'make demo ARGS="--data file.csv"': 'ARGS="--data {file} --batch-size 8 --out {out}"',
}
DEMO_WRITES = {"lr.png", "plan.html", "plan.txt", "summary.json"}


# Quick is the one that runs in this process on a small file.
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=() if "file.csv" in c else pytest.mark.slow)
        for c in COMMANDS
        if c.startswith("make")
    ],
)
def test_make(tmp_path, command):
    file, out = tmp_path / "file.csv", tmp_path / "out"
    file.write_text("text,label\n" + "".join(f"some text {i},{i % 2}\n" for i in range(12)))
    job = SMALL_JOB[command].format(file=file, out=out)
    make = f"{command} -o {sys.prefix}/.installed VENV={sys.prefix} {job}"
    if "ARGS" in command:
        # Inside of `make test`, make would also say which folder it enters.
        told = run(f"{make} -n --no-print-directory", ROOT, MAKEFLAGS="")
        python, script, *arguments = shlex.split(told.stdout)
        assert python == f"{sys.prefix}/bin/python"
        done = commands.run(commands.script(script), *arguments, folder=ROOT)
    else:
        done = run(make, ROOT, MAKEFLAGS="")
    assert done.returncode == 0, done.stdout + done.stderr
    if command.startswith("make demo"):
        assert {found.name for found in out.iterdir()} == DEMO_WRITES


@pytest.mark.parametrize(("marker", "installs"), [(None, True), (0, True), (2**31, False)])
@pytest.mark.parametrize("target", ["demo", "docs", "test", "test-slow"])
def test_make_installs_what_is_missing_and_nothing_twice(tmp_path, target, marker, installs):
    if marker is not None:
        (tmp_path / ".installed").touch()
        os.utime(tmp_path / ".installed", (marker, marker))
    done = run(f"make -n {target} VENV={tmp_path}", ROOT, MAKEFLAGS="")
    assert done.returncode == 0, done.stderr
    assert ("pip install" in done.stdout) is installs


SHOWN = {
    (page, block.text.strip()): None
    for page in pages.pages()
    for block in pages.blocks(page, "text")
}
MISSPELT = {text for _, text in SHOWN if text.startswith("recipe.yaml: groups[2].match")}
OTHER_RUN = {text for _, text in SHOWN if text.startswith("the checkpoint is not of this run")}


def test_the_error_shown_is_the_one_that_comes(folder):
    (shown,) = MISSPELT
    (folder / "recipe.yaml").write_text(RECIPE.replace("classifier", "clasifier"))
    done = optimplug("optimplug plan recipe.yaml --model mymodels:build --steps 10", folder)
    assert (done.returncode, done.stderr.strip()) == (1, shown)


def test_the_differences_shown_are_those_that_come():
    (shown,) = OTHER_RUN
    optimizer = {"name": "AdamW", "lr": 1.0, "weight_decay": 0.01}
    rules = [{"match": "head.*", "weight_decay": 0.1, "lr_scale": 2}]
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    old = Recipe.load({"optimizer": optimizer, "groups": rules})
    new = Recipe.load(
        {"optimizer": optimizer, "groups": [*rules, {"match": "head.bias", "weight_decay": 0.01}]}
    )
    horizon = Horizon(total_steps=10)
    state = old.start(model, horizon).state_dict()
    with pytest.raises(StateError) as error:
        new.start(model, horizon).load_state_dict(state)
    assert str(error.value) == shown


def test_every_text_shown_has_a_test():
    assert {text for _, text in SHOWN} == MISSPELT | OTHER_RUN


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m pip")])
def test_pip(command):
    done = run(f"{command} --dry-run --no-deps --no-build-isolation", ROOT)
    assert done.returncode == 0, done.stderr


# LightningCLI itself calls what jsonargparse is about to drop.
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.parametrize("command", [c for c in COMMANDS if "optimplug.lightning" in c])
def test_lightnings_command_line(tmp_path, command):
    project = shutil.copytree(ROOT / "examples" / "lightning_cli", tmp_path / "project")
    python, m, name, *arguments = shlex.split(command)
    assert (python, m) == ("python", "-m")
    main = commands.module(name)
    done = commands.run(main, *arguments, "--trainer.fast_dev_run=true", folder=project)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python train.py")])
def test_the_trainers_command_line(tmp_path, command):
    for name in ("docstrings", "huggingface_cli"):
        shutil.copytree(ROOT / "examples" / name, tmp_path / name)
    # As many updates as leave some to the phase that follows the evaluation.
    small = "--train 16 --held_out 8 --max_steps 3 --use_cpu True --report_to none"
    project = tmp_path / "huggingface_cli"
    _, script, *arguments = shlex.split(f"{command} {small}")
    done = commands.run(commands.script(project / script), *arguments, folder=project)
    assert done.returncode == 0, done.stderr


def test_every_kind_of_command_has_a_test():
    tested = (
        "make",
        "optimplug",
        "python -m pip",
        "python -m optimplug.lightning",
        "python train.py",
    )
    assert all(c.startswith(tested) for c in COMMANDS)
    assert {c.split()[0] for c in COMMANDS} == {"make", "optimplug", "python"}


def test_every_block_is_of_a_kind_that_is_tested():
    kinds = {block.language for page in pages.pages() for block in pages.blocks(page)}
    assert kinds == {"console", "python", "text", "yaml"}
    for text in pages.pages().values():
        assert text.count("\n```") == 2 * len(pages.FENCE.findall(text))


def anchors(text):
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", t).strip().lower().replace(" ", "-") for t in titles]


def test_the_readmes_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", pages.pages()["README.md"]):
        page, _, anchor = target.partition("#")
        assert (ROOT / page).exists()
        assert not anchor or anchor in anchors((ROOT / page).read_text())
