"""The recipes to start from: each is run on a small model of its kind."""

import math
from functools import partial

import pytest
import torch
import transformers
from hatchling.builders.wheel import WheelBuilder
from peft import LoraConfig, get_peft_model
from support import commands
from support.bert import tiny_bert

from optimplug import Horizon, Recipe
from optimplug.cli import main
from optimplug.cli.init import starters

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TOKENS = torch.arange(24).view(3, 8) % 20
TEXT = {"input_ids": TOKENS, "labels": TOKENS}


def llama(dtype=torch.float32):
    # Large enough that moments are kept in 8 bits: below 4,096 elements they are not.
    config = transformers.LlamaConfig(**SIZES, vocab_size=80, max_position_embeddings=16)
    return transformers.LlamaForCausalLM(config).to(dtype), TEXT


def lora():
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(llama()[0], config), TEXT


def bert():
    return tiny_bert(), {"input_ids": TOKENS, "labels": torch.tensor([0, 1, 2])}


def vit():
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=3)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return transformers.ViTForImageClassification(config), {
        "pixel_values": images,
        "labels": torch.tensor([0, 1, 2]),
    }


def t5():
    config = transformers.T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config), TEXT


MODELS = {
    "bert-classify": bert,
    "llama-lora": lora,
    "llama-sft": partial(llama, torch.bfloat16),
    "low-memory": partial(llama, torch.bfloat16),
    "muon": llama,
    "plateau": bert,
    "resume-safe": llama,
    "schedule-free": llama,
    "seq2seq": t5,
    "vit": vit,
}


@pytest.fixture
def run(tmp_path):
    return partial(commands.run, main, folder=tmp_path, COLUMNS="200")


def test_every_recipe_has_a_model():
    assert starters().keys() == MODELS.keys()


# PEFT's, with a recent transformers.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_each_runs_on_a_model_of_its_kind(name):
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    recipe, horizon = Recipe(starters()[name]), Horizon(total_steps=400, steps_per_epoch=100)
    plan = recipe.plan(model, horizon)
    assert plan.warnings == ()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    peaks = {group.name: group.lr for group in plan.groups}
    with recipe.start(model, horizon) as going:
        rates, losses = {}, []
        for t in range(1, 41):
            loss = model(**batch).loss
            loss.backward()
            going.step()
            losses.append(loss.item())
            rates = {
                g["name"]: max(g["lr"], rates.get(g["name"], 0.0))
                for g in going.optimizer.param_groups
            }
            if t % 10 == 0:
                going.eval()
                going.validated({"eval_loss": losses[-1]})
                going.train()
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    # What is too small for a bfloat16 weight, such as a norm's of 1, is in its remainder.
    moved = {
        n: not torch.equal(p, before[n]) or bool(going.optimizer.state[p]["remainder"].any())
        for n, p in model.named_parameters()
        if n in before
    }
    assert all(moved.values())
    if name != "resume-safe":  # its warm-up is longer than this
        assert rates == pytest.approx(peaks, rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_each_is_short_and_says_what_it_is_for(name):
    lines = starters()[name].splitlines()
    assert lines[0].startswith("# ")
    assert lines[0].endswith(".")
    assert sum("#" in line for line in lines) >= 3
    assert len(lines) <= 35


def test_without_a_name_it_lists_them(run):
    done = run("init")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == sorted(MODELS)
    assert all(len(line.split("  ")) >= 2 for line in done.stdout.splitlines())


def test_a_recipe_is_printed_or_written_whole(tmp_path, run):
    assert run("init", "muon").stdout == starters()["muon"]
    assert run("init", "muon", "-o", "recipe.yaml").returncode == 0
    assert (tmp_path / "recipe.yaml").read_text() == starters()["muon"]
    assert run("check", "recipe.yaml").returncode == 0


def test_a_file_that_is_there_stays_without_force(tmp_path, run):
    (tmp_path / "recipe.yaml").write_text("mine")
    done = run("init", "vit", "-o", "recipe.yaml")
    assert done.returncode == 2
    assert "recipe.yaml is there already; --force overwrites it" in done.stderr
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert run("init", "vit", "-o", "recipe.yaml", "--force").returncode == 0
    assert (tmp_path / "recipe.yaml").read_text() == starters()["vit"]


BAD_USAGE = [
    (["muo"], "no recipe 'muo'; did you mean 'muon'?"),
    (["muon", "-o", "no/recipe.yaml"], "No such file or directory"),
    (["muon", "-o", ".", "--force"], "Is a directory"),
    (["muon", "--force"], "give --output too"),
    (["-o", "recipe.yaml"], "give its NAME too"),
    (["--force"], "give its NAME too"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_USAGE, ids=lambda x: str(x))
def test_bad_usage_is_status_2(tmp_path, run, arguments, message):
    done = run("init", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_has_them():
    builder = WheelBuilder(str(commands.ROOT))
    included = {file.distribution_path for file in builder.recurse_included_files()}
    assert {f"optimplug/cli/recipes/{name}.yaml" for name in MODELS} <= included
