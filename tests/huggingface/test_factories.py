import pytest
from support.bert import collate, tiny_bert, tiny_rows
from support.huggingface_runs import (
    FROM_FACTORIES,
    RECIPE,
    UNCLIPPED,
    StopAfter,
    arguments,
    trainer_of,
)
from support.tensors import same_weights
from transformers import Trainer

from optimplug import RecipeError
from optimplug.callbacks.huggingface import LearningRateTrace
from optimplug.huggingface import (
    RecipeTrainingArguments,
    build,
    factories,
    optimizer_cls_and_kwargs,
)
from optimplug.optim import AdamW

NO_CLIPPING = {"max_grad_norm": 0}
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "eval_loss"}


def built_trainer_of(folder, recipe=RECIPE, callbacks=(), **changes):
    """The plain Trainer with what ``build`` makes of a recipe."""
    model = tiny_bert()
    args = arguments(folder, **{**NO_CLIPPING, **changes})
    return Trainer(
        model=model,
        args=args,
        train_dataset=tiny_rows(),
        data_collator=collate,
        callbacks=list(callbacks),
        optimizers=build(model, recipe, args, tiny_rows()),
    )


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 4}, {"max_steps": 7}])
@pytest.mark.parametrize("recipe", [RECIPE, UNCLIPPED], ids=["clipped", "unclipped"])
def test_a_plain_trainer_runs_a_recipe_as_the_recipes_own_does(tmp_path, recipe, changes):
    trace, own = LearningRateTrace(), LearningRateTrace()
    trainer = built_trainer_of(tmp_path, recipe, [trace], **changes)
    trainer.train()
    expected = trainer_of(tmp_path, recipe, callbacks=[own], **changes)
    expected.train()
    assert trace.rates == own.rates
    assert same_weights(trainer.model, expected.model)


@pytest.mark.parametrize("stop", [2, 6])
def test_a_plain_trainer_resumes_a_recipe(tmp_path, stop):
    whole, rest = LearningRateTrace(), LearningRateTrace()
    uninterrupted = built_trainer_of(tmp_path / "whole", callbacks=[whole])
    uninterrupted.train()
    built_trainer_of(tmp_path, callbacks=[StopAfter(stop)]).train()
    resumed = built_trainer_of(tmp_path, callbacks=[rest])
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert rest.rates == {name: rates[stop:] for name, rates in whole.rates.items()}
    assert same_weights(resumed.model, uninterrupted.model)


def test_the_recipe_may_be_that_of_the_arguments(tmp_path):
    args = RecipeTrainingArguments(output_dir=str(tmp_path), use_cpu=True, recipe=RECIPE)
    with pytest.warns(UserWarning, match="the Trainer clips"):
        optimizer, scheduler = build(tiny_bert(), None, args, tiny_rows())
    assert type(optimizer) is AdamW
    assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
    with pytest.raises(RecipeError, match="there is none"):
        build(tiny_bert(), None, arguments(tmp_path), tiny_rows())


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (RECIPE, {"max_grad_norm": 1.0}, r"max_grad_norm=1\.0, but the recipe clips to 0\.5"),
        (UNCLIPPED, {"max_grad_norm": 1.0}, r"max_grad_norm=1\.0, but the recipe does not clip"),
        (RECIPE, {"learning_rate": 0.1}, r"^the recipe replaces .*: learning_rate=0\.1 \(the recipe's lr is 0\.01\)$"),
        (
            {**UNCLIPPED, "schedule": [PLATEAU]},
            {"eval_strategy": "epoch"},
            r"tells it only by .*MetricCallback",
        ),
    ],
)  # fmt: skip
def test_what_a_plain_trainer_does_otherwise_is_warned_of(tmp_path, recipe, changes, message):
    args = arguments(tmp_path, **{**NO_CLIPPING, **changes})
    with pytest.warns(UserWarning, match=message) as found:
        build(tiny_bert(), recipe, args, tiny_rows())
    assert len(found) == 1
    assert found[0].filename == __file__


@pytest.mark.parametrize("recipe", [RECIPE, UNCLIPPED], ids=["clipped", "unclipped"])
def test_clipping_to_the_same_norm_or_not_at_all_needs_no_word(tmp_path, recipe):
    norm = recipe["optimizer"].get("max_grad_norm", 0)
    build(tiny_bert(), recipe, arguments(tmp_path, max_grad_norm=norm), tiny_rows())


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (RECIPE, {"auto_find_batch_size": True}, "auto_find_batch_size changes how many updates"),
        ({**RECIPE, "schedule": [PLATEAU]}, {}, "schedule: .* eval_strategy is 'no'"),
        (RECIPE, {"num_train_epochs": 0.1}, r"schedule\[0\]\.for: "),
    ],
)
def test_what_cannot_be_run_so_is_refused(tmp_path, recipe, changes, message):
    with pytest.raises(RecipeError, match=message):
        build(tiny_bert(), recipe, arguments(tmp_path, **NO_CLIPPING, **changes), tiny_rows())


ALONE = {key: value for key, value in RECIPE.items() if key != "schedule"}


@FROM_FACTORIES
def test_the_optimizer_alone_is_the_recipes_under_the_trainers_schedule(tmp_path):
    """With ``model_init``, and with a ``weight_decay`` that an Optimizer class would have got."""
    trace = LearningRateTrace()
    trainer = Trainer(
        model_init=lambda: tiny_bert(),
        args=arguments(tmp_path, **NO_CLIPPING, weight_decay=0.3, lr_scheduler_type="linear"),
        train_dataset=tiny_rows(),
        data_collator=collate,
        callbacks=[trace],
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(ALONE),
    )
    trainer.train()
    assert type(trainer.optimizer.optimizer) is AdamW
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0, 0.01}
    linear = {**ALONE, "schedule": "linear"}
    own = LearningRateTrace()
    expected = trainer_of(tmp_path, linear, callbacks=[own])
    expected.train()
    assert trace.rates.keys() == own.rates.keys()
    for name, rates in trace.rates.items():
        assert rates == pytest.approx(own.rates[name], rel=1e-12)
    assert len(trace.rates) > 3


def test_a_trainer_that_builds_none_from_its_model_is_too_old(monkeypatch):
    monkeypatch.setattr(factories, "TAKES_FACTORIES", False)
    with pytest.raises(ImportError, match=r"transformers>=5\.3\", or use RecipeTrainer or"):
        optimizer_cls_and_kwargs(ALONE)


@FROM_FACTORIES
@pytest.mark.parametrize(
    ("recipe", "paths"),
    [
        (RECIPE, ["schedule"]),
        (
            {
                **ALONE,
                "groups": [
                    {"match": "*.bias", "schedule": "linear"},
                    {"match": "bert.embeddings.*", "freeze": {"until": 3}},
                ],
            },
            ["groups[0].schedule", "groups[1].freeze.until"],
        ),
    ],
)
def test_a_schedule_that_nobody_would_follow_is_refused(recipe, paths):
    with pytest.raises(RecipeError, match="would not be followed: the Trainer builds") as error:
        optimizer_cls_and_kwargs(recipe)
    assert [problem.path for problem in error.value.problems] == paths
