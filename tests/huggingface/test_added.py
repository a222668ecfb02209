"""Parameters that a loss of sentence-transformers has of its own, against its plain trainer."""

import datasets
import pytest
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from support.tensors import same_weights
from support.trainers import SaveAfter, arguments, run
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from optimplug import RecipeError
from optimplug.huggingface import with_recipe

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "the",
    "cat",
    "dog",
    "sea",
    "boat",
    "storm",
    "sky",
]
OWN = ["loss.classifier.weight", "loss.classifier.bias"]
SGD = {"optimizer": {"name": "SGD", "lr": 0.1}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small random BERT in a folder, as sentence-transformers reads one."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=len(WORDS), intermediate_size=16, **sizes, **dropout)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


def rows(name="label"):
    texts = ["a cat", "the dog", "the sea", "a boat", "a storm", "the sky"]
    return datasets.Dataset.from_dict({"a": texts, "b": texts[::-1], name: [0, 1, 2, 2, 1, 0]})


def trainer_of(saved, folder, cls, several=False, **changes):
    """A trainer with a loss, or with one for each of two data sets."""
    recipe = {"recipe": changes.pop("recipe")} if "recipe" in changes else {}
    model = SentenceTransformer(modules=[Transformer(str(saved)), Pooling(8)], device="cpu")
    torch.manual_seed(0)
    losses = {name: SoftmaxLoss(model, 8, 3) for name in ("one", "two")}
    settings = {"per_device_train_batch_size": 2, "num_train_epochs": 2, **changes}
    args = arguments(folder, SentenceTransformerTrainingArguments, **settings)
    return cls(
        model=model,
        args=args,
        train_dataset=datasets.DatasetDict(dict.fromkeys(losses, rows())) if several else rows(),
        loss=losses if several else losses["one"],
        **recipe,
    )


def recipe_trainer(saved, folder, recipe=SGD, **changes):
    cls = with_recipe(SentenceTransformerTrainer)
    return trainer_of(saved, folder, cls, recipe=recipe, **changes)


def trained(trainer):
    return [name for group in trainer.optimizer.param_groups for name in group["param_names"]]


@pytest.mark.parametrize("several", [False, True])
def test_they_are_trained_as_by_the_plain_trainer(saved, tmp_path, several):
    plain = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    settings = {"max_grad_norm": 0, "several": several}
    theirs = trainer_of(saved, tmp_path, SentenceTransformerTrainer, **plain, **settings)
    ours = recipe_trainer(saved, tmp_path, **settings)
    theirs.train()
    ours.train()
    count = sum(len(group["params"]) for group in theirs.optimizer.param_groups)
    assert len(trained(ours)) == count == 41 + 2 * several
    assert same_weights(ours.model, theirs.model)
    losses = [t.loss if several else {"": t.loss} for t in (ours, theirs)]
    for own, other in zip(losses[0].values(), losses[1].values(), strict=True):
        assert same_weights(own.classifier, other.classifier)


def test_the_logged_norm_has_them_in_it(saved, tmp_path):
    trainer = recipe_trainer(
        saved, tmp_path, logging_strategy="steps", logging_steps=1, max_steps=1
    )
    norms = []

    def before(optimizer, args, kwargs):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm([g for g in grads if g is not None]).item())

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(before)
    trainer.train()
    (logged,) = (row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row)
    assert logged == pytest.approx(norms[0])


RULES = [  # what stands under match, and the tensors that it should find
    ("loss.*", OWN),
    ("*classifier.weight", OWN[:1]),
    ({"type": "linear", "name": "loss.*"}, OWN),
    ("classifier.*", ["classifier.weight", "classifier.bias"]),
    ({"name": "model.*embeddings.word*"}, ["model.0.model.embeddings.word_embeddings.weight"]),
    ("0.*word_embeddings*", ["0.model.embeddings.word_embeddings.weight"]),
]


@pytest.mark.parametrize(("match", "names"), RULES)
def test_they_are_matched_by_rules_and_stand_in_the_plan(saved, tmp_path, match, names):
    recipe = {**SGD, "groups": [{"match": match, "lr": 0.25}]}
    trainer = recipe_trainer(saved, tmp_path, recipe)
    plan = trainer.plan()
    assert sum(len(group.parameters) for group in plan.groups) == 41
    assert plan.tied == ()
    assert [n for g in plan.groups if g.lr == 0.25 for n in g.parameters] == names
    trainer.create_optimizer()
    found = [g["param_names"] for g in trainer.optimizer.param_groups if g["lr"] == 0.25]
    assert found == [names]
    assert trainer.model._modules.keys() == {"0", "1"}  # nothing was put on the user's model


def test_they_are_on_top_of_the_layers(saved, tmp_path):
    trainer = recipe_trainer(saved, tmp_path, {**SGD, "groups": [{"layer_decay": 0.5}]})
    rates = {name: group.lr for group in trainer.plan().groups for name in group.parameters}
    assert rates[OWN[0]] == 0.1
    assert rates["0.model.encoder.layer.1.output.dense.weight"] == 0.05


def test_a_rule_that_fits_by_neither_name_is_told_by_those_beside_the_model(saved, tmp_path):
    recipe = {**SGD, "groups": [{"match": "loss.clasifier.*", "lr": 1}]}
    with pytest.raises(RecipeError, match=r"did you mean 'loss\.classifier\.\*'"):
        recipe_trainer(saved, tmp_path, recipe).create_optimizer()


def test_a_run_that_the_plain_trainer_began_goes_on_by_name(saved, tmp_path):
    theirs = trainer_of(saved, tmp_path, SentenceTransformerTrainer)
    theirs.add_callback(SaveAfter([3]))
    theirs.train()
    recipe = {"optimizer": {"name": "AdamW", "lr": 0.1}, "resume": "adapt"}
    ours = recipe_trainer(saved, tmp_path, recipe)
    run(ours, str(tmp_path / "checkpoint-3"))
    (cut, *_) = ours.run.resumption.schedule
    assert cut[:2] == ("groups", "2: 0, 1")
    names = dict(ours.run.model.named_parameters())
    counts = {name: s["step"] for name, p in names.items() if (s := ours.optimizer.state.get(p))}
    assert set(OWN) < counts.keys()
    assert names.keys() - counts.keys() == {n for n in names if "pooler" in n}  # without gradients
    assert {float(count) for count in counts.values()} == {6.0}


def test_a_loss_without_any_changes_no_name(saved, tmp_path):
    trainer = recipe_trainer(saved, tmp_path)
    trainer.loss = nn.CosineEmbeddingLoss()
    trainer.create_optimizer()
    assert trained(trainer) == [name for name, _ in trainer.model.named_parameters()]


def test_rates_by_pattern_are_refused_by_name(saved, tmp_path):
    with pytest.raises(RecipeError, match=r"args\.learning_rate_mapping=.* would not apply"):
        recipe_trainer(saved, tmp_path, learning_rate_mapping={"classifier": 1e-3})
