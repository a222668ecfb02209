import inspect

import pytest
import torch
from support.bert import collate, tiny_bert, tiny_rows
from support.huggingface_runs import RECIPE, SEVERAL, UNCLIPPED, StopAfter, arguments, trainer_of
from support.tensors import same_weights
from support.trainers import Lines, points
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback

from optimplug import ArgumentError, Horizon, Recipe, RecipeError, StateError
from optimplug.callbacks.huggingface import LearningRateTrace
from optimplug.callbacks.trace import LearningRateTrace as PlainTrace
from optimplug.huggingface import RecipeTrainer, RecipeTrainingArguments, with_recipe
from optimplug.huggingface.events.internals import NEEDED
from optimplug.optim import AdamW


def loss_of(model, batch, count, batches):
    """The part that a batch has in the loss of an update, as the Trainer has it.

    It sums the losses and divides by the number of labels, where the model can be told that: BERT
    could not, before transformers 5. Else it is the mean over the batches.
    """
    if "kwargs" in inspect.signature(model.forward).parameters:
        return model(**batch, num_items_in_batch=torch.tensor(count)).loss
    return model(**batch).loss / batches


def plain_loop(recipe, epochs=3, accumulate=1):
    """What the Trainer has to equal: the same batches, each update the mean over its rows."""
    model = tiny_bert()
    rows = tiny_rows()
    batches = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    windows = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
    horizon = Horizon(total_steps=epochs * len(windows), steps_per_epoch=len(windows))
    optimizer, scheduler = Recipe.load(recipe).build(model, horizon)
    trace = PlainTrace()
    trace.attach(optimizer)
    for _ in range(epochs):
        for window in windows:
            count = sum(map(len, window))
            for batch in window:
                loss_of(model, collate(batch), count, len(window)).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model, trace.rates


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(
    "recipe", [RECIPE, UNCLIPPED, SEVERAL], ids=["clipped", "unclipped", "several"]
)
def test_the_trainer_is_the_plain_loop_bit_for_bit(tmp_path, recipe, accumulate):
    trace = LearningRateTrace()
    trainer = trainer_of(
        tmp_path, recipe, callbacks=[trace], gradient_accumulation_steps=accumulate
    )
    trainer.train()
    model, rates = plain_loop(recipe, accumulate=accumulate)
    assert same_weights(trainer.model, model)
    assert trace.rates == rates


def test_the_optimizer_is_the_recipes_and_the_trainers_clipping_does_not_apply(tmp_path):
    """Guards the two private methods of the Trainer that are overridden."""
    trainer = trainer_of(tmp_path, UNCLIPPED, max_grad_norm=1.0)
    trainer.train()
    assert type(trainer.optimizer.optimizer) is AdamW
    assert same_weights(trainer.model, plain_loop(UNCLIPPED)[0])
    clipped = trainer_of(
        tmp_path, {**RECIPE, "optimizer": {**RECIPE["optimizer"], "max_grad_norm": 1e-3}}
    )
    clipped.train()
    assert not same_weights(clipped.model, trainer.model)


def test_the_logged_norm_is_that_of_the_gradients(tmp_path):
    trainer = trainer_of(tmp_path, logging_strategy="steps", logging_steps=1, num_train_epochs=1)
    trainer.train()
    model = tiny_bert()
    model(**collate(tiny_rows()[:4])).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert logged[0] == pytest.approx(norm.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("recipe", "stop"), [(RECIPE, 2), (RECIPE, 6), (RECIPE, 11), (SEVERAL, 2), (SEVERAL, 11)]
)
def test_a_run_resumed_from_a_checkpoint_is_the_uninterrupted_one(tmp_path, recipe, stop):
    whole = LearningRateTrace()
    uninterrupted = trainer_of(tmp_path / "whole", recipe, callbacks=[whole])
    uninterrupted.train()
    trainer_of(tmp_path / "part", recipe, callbacks=[StopAfter(stop)]).train()
    rest = LearningRateTrace()
    resumed = trainer_of(tmp_path / "part", recipe, callbacks=[rest])
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{stop}"))
    assert same_weights(resumed.model, uninterrupted.model)
    assert rest.rates == {name: rates[stop:] for name, rates in whole.rates.items()}


def test_a_second_train_starts_the_schedule_anew(tmp_path):
    trace = LearningRateTrace()
    trainer = trainer_of(tmp_path, callbacks=[trace])
    trainer.train()
    first = trainer.lr_scheduler
    trainer.train()
    assert trainer.lr_scheduler is not first
    assert trainer.lr_scheduler.last_epoch == 18
    for rates in trace.rates.values():
        assert rates[18:] == rates[:18]
        assert len(set(rates)) > 12


def test_a_run_that_begins_again_with_smaller_batches_has_the_whole_schedule(tmp_path):
    class Large(Lines):
        calls = 0

        def forward(self, x, labels):
            Large.calls += 1
            if Large.calls == 3:
                raise RuntimeError("CUDA out of memory. tried")
            return super().forward(x, labels)

    rates = []

    class Noting(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    args = arguments(tmp_path, auto_find_batch_size=True, num_train_epochs=1)
    recipe = {"optimizer": {"name": "AdamW", "lr": 0.5}, "schedule": "linear"}
    RecipeTrainer(
        model=Large(), args=args, train_dataset=points(), callbacks=[Noting()], recipe=recipe
    ).train()
    again = rates[2:]
    assert len(again) > 6
    assert again == pytest.approx([0.5 * (1 - t / len(again)) for t in range(len(again))])


def test_a_refused_run_leaves_no_schedule_behind(tmp_path):
    trainer = trainer_of(tmp_path, FOLLOWING)
    for _ in range(2):
        with pytest.raises(RecipeError, match="eval_strategy is 'no'"):
            trainer.train()


def test_a_checkpoint_of_another_length_is_refused_before_anything_is_loaded(tmp_path):
    trainer_of(tmp_path, callbacks=[StopAfter(6)]).train()
    trainer = trainer_of(tmp_path, num_train_epochs=5)
    with pytest.raises(
        StateError, match=r"horizon +18 updates, 6 an epoch +30 updates, 6 an epoch +adapt"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert not trainer.optimizer.state


def test_settings_that_are_otherwise_than_in_a_checkpoint_are_refused_or_the_recipes(tmp_path):
    trainer_of(tmp_path, callbacks=[StopAfter(6)]).train()
    changed = {**RECIPE, "optimizer": {**RECIPE["optimizer"], "lr": 0.5, "betas": [0.5, 0.9]}}
    checkpoint = str(tmp_path / "checkpoint-6")
    with pytest.raises(StateError, match=r"betas of .* +\(0\.9, 0\.999\) +\(0\.5, 0\.9\) +adapt"):
        trainer_of(tmp_path, changed).train(resume_from_checkpoint=checkpoint)
    trainer = trainer_of(tmp_path, changed, resume="adapt")
    trainer.train(resume_from_checkpoint=checkpoint)
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.5, 0.9)}
    assert {change.setting for change in trainer.run.resumption.changed} == {"lr", "betas"}


def test_arguments_that_change_before_a_run_apply(tmp_path):
    args = arguments(tmp_path, RecipeTrainingArguments, recipe=RECIPE, num_train_epochs=1)
    trainer = RecipeTrainer(
        model_init=lambda: tiny_bert(), args=args, train_dataset=tiny_rows(), data_collator=collate
    )
    args.learning_rate = 0.5
    args.recipe = {"optimizer": {"name": "SGD", "lr": 0.25}}
    with pytest.warns(UserWarning, match=r"learning_rate=0\.5 \(the recipe's lr is 0\.25\)"):
        trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == 0.25


def test_any_trainer_can_take_a_recipe(tmp_path):
    cls = with_recipe(Seq2SeqTrainer)
    assert issubclass(cls, Seq2SeqTrainer)
    assert cls.__name__ == "RecipeSeq2SeqTrainer"
    assert issubclass(RecipeTrainer, Trainer)
    assert with_recipe(cls) is cls


def test_recipe_and_optimizers_together_are_refused(tmp_path):
    model = tiny_bert()
    common = {"model": model, "args": arguments(tmp_path), "recipe": RECIPE}
    with pytest.raises(RecipeError, match="either recipe= or optimizers="):
        RecipeTrainer(**common, optimizers=(AdamW(model.parameters()), None))
    with pytest.raises(RecipeError, match="either recipe= or optimizer_cls_and_kwargs="):
        RecipeTrainer(**common, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 1.0}))


def test_a_transformers_without_what_is_overridden_is_refused():
    class Old:
        """A Trainer without the step that all releases have."""

    for name in NEEDED:
        setattr(Old, name, None)
    del Old._evaluate

    with pytest.raises(ImportError, match=r"no Trainer\._evaluate.*transformers>="):
        with_recipe(Old)


def test_a_bad_recipe_fails_before_anything_is_trained(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'AdamW'"):
        trainer_of(tmp_path, {"optimizer": {"name": "AdmW"}})


PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "eval_worse", "patience": 0, "factor": 0.5}
FOLLOWING = {**RECIPE, "schedule": [{**RECIPE["schedule"][0], "for": 4}, PLATEAU]}
EVERY_THIRD = {"eval_strategy": "steps", "eval_steps": 3}


def evaluated(folder, callbacks=(), eval_dataset=None, resume=None, recipe=FOLLOWING, **changes):
    """Train with a metric that gets worse with every update."""
    trace = LearningRateTrace()
    trainer = RecipeTrainer(
        model=tiny_bert(),
        args=arguments(folder, **{**EVERY_THIRD, **changes}),
        train_dataset=tiny_rows(),
        eval_dataset=tiny_rows()[:4] if eval_dataset is None else eval_dataset,
        data_collator=collate,
        callbacks=[trace, *callbacks],
        compute_metrics=lambda _: {"worse": float(trainer.state.global_step)},
        recipe=recipe,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, next(iter(trace.rates.values()))


@pytest.mark.parametrize("changes", [{}, {"eval_on_start": True}])
def test_a_plateau_takes_one_step_for_each_evaluation(tmp_path, changes):
    _, rates = evaluated(tmp_path, **changes)
    own = rates[5]
    assert rates[4:] == [own] * 5 + [own / 2] * 3 + [own / 4] * 3 + [own / 8] * 3


def test_several_data_sets_are_one_evaluation(tmp_path):
    several = {"a": tiny_rows()[:4], "b": tiny_rows()[4:8]}
    following = {**PLATEAU, "monitor": "eval_b_worse"}
    recipe = {**RECIPE, "schedule": [{**RECIPE["schedule"][0], "for": 4}, following]}
    _, rates = evaluated(tmp_path, eval_dataset=several, recipe=recipe)
    own = rates[5]
    assert rates[4:] == [own] * 5 + [own / 2] * 3 + [own / 4] * 3 + [own / 8] * 3


def test_evaluating_by_hand_is_no_step(tmp_path):
    trainer, _ = evaluated(tmp_path)
    held = trainer.lr_scheduler.get_last_lr()
    trainer.evaluate()
    assert trainer.lr_scheduler.get_last_lr() == held


@pytest.mark.parametrize("stop", [3, 6, 12])
def test_a_plateau_resumes_where_it_was(tmp_path, stop):
    saves = {"save_strategy": "steps", "save_steps": 3}
    whole, rates = evaluated(tmp_path / "whole", **saves)
    evaluated(tmp_path / "part", [StopAfter(stop)], **saves)
    resumed, rest = evaluated(
        tmp_path / "part", resume=str(tmp_path / "part" / f"checkpoint-{stop}"), **saves
    )
    assert rest == rates[stop:]
    assert same_weights(whole.model, resumed.model)


def test_a_run_without_evaluations_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"schedule: .* eval_strategy is 'no'"):
        evaluated(tmp_path, eval_strategy="no")


def test_a_metric_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path):
    recipe = {**RECIPE, "schedule": [{**PLATEAU, "monitor": "eval_f1"}]}
    with pytest.raises(ArgumentError, match=r"'eval_f1' is missing; there are: .*eval_worse"):
        evaluated(tmp_path, recipe=recipe)


def test_saves_between_evaluations_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="one saved after an epoch's last step is without the"):
        evaluated(tmp_path, eval_strategy="epoch", save_strategy="steps", save_steps=3)


@pytest.mark.parametrize("monitor", ["worse", "val_worse"])
def test_a_metric_may_have_the_name_of_another_runtime(tmp_path, monitor):
    _, expected = evaluated(tmp_path)
    schedule = [FOLLOWING["schedule"][0], {**PLATEAU, "monitor": monitor}]
    _, rates = evaluated(tmp_path, recipe={**RECIPE, "schedule": schedule})
    assert rates == expected


def test_a_metric_that_only_a_late_phase_follows_is_missed_at_the_first_evaluation(tmp_path):
    late = {**PLATEAU, "monitor": "eval_worst"}
    recipe = {**RECIPE, "schedule": [{"name": "LinearLR", "for": 12}, late]}
    seen = []

    class Counting(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    with pytest.raises(ArgumentError, match="'eval_worst' is missing; there are: eval_worse, "):
        evaluated(tmp_path, [Counting()], recipe=recipe)
    assert seen[-1] == 3
