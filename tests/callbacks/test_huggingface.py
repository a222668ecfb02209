import functools

import pytest
import torch
from accelerate.scheduler import AcceleratedScheduler
from support.trainers import Lines, StopAfter, arguments, check_resume, points, run
from torch.optim import lr_scheduler as torchs
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from optimplug import ArgumentError, Horizon, Recipe, StateError
from optimplug.callbacks.huggingface import LearningRateTrace, MetricCallback, SchedulerCallback
from optimplug.huggingface import RecipeTrainer
from optimplug.optim import lr_scheduler as ours

STEPS, EPOCH = 18, 6
BY_EPOCH = {"interval": "epoch"}
BY_VALIDATION = {"interval": "validation"}
FOLLOWING = {"interval": "validation", "monitor": "eval_worse"}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 4}


def sgd(model, lr=0.1):
    groups = [{"params": model.body.parameters(), "lr": lr}, {"params": model.head.parameters()}]
    return torch.optim.SGD(groups, lr=lr / 2, momentum=0.9)


def trainer_of(folder, build, stepping, callbacks=(), lazily=False, cls=Trainer, **changes):
    """A stock Trainer whose metric gets worse with every update."""
    model = Lines()
    optimizer = sgd(model)
    callback = SchedulerCallback(build if lazily else build(optimizer), **stepping)
    trainer = cls(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=points(),
        eval_dataset=changes.get("eval_dataset", points(4)),
        compute_metrics=lambda _: {"worse": float(trainer.state.global_step)},
        optimizers=(optimizer, callback.scheduler),
        callbacks=[*callbacks, callback],
    )
    return trainer


def expected(build, times, metrics=None, steps=STEPS):
    """The rates of a plain loop in which the scheduler is stepped after these updates."""
    optimizer = sgd(Lines())
    scheduler = build(optimizer)
    rates = {str(i): [] for i in range(len(optimizer.param_groups))}
    for step in range(1, steps + 1):
        for i, group in enumerate(optimizer.param_groups):
            rates[str(i)].append(float(group["lr"]))
        optimizer.step()
        if step in times:
            scheduler.step(*([float(step)] if metrics else []))
    return rates


def of(module, name, **arguments):
    return functools.partial(getattr(module, name), **arguments)


def warm_then_decay(module, optimizer):
    phases = [
        module.LinearLR(optimizer, start_factor=0.1, total_iters=2),
        module.ExponentialLR(optimizer, gamma=0.8),
    ]
    return module.SequentialLR(optimizer, phases, milestones=[2])


def by_its_own_rate(module, optimizer):
    own = optimizer.param_groups[0]["lr"]
    return module.LambdaLR(optimizer, lambda t: own / (own + 0.1 * t))


def schedulers(module):
    plateau = {"patience": 0, "factor": 0.5}
    return {
        "StepLR": of(module, "StepLR", step_size=1, gamma=0.7),
        "LinearLR": of(module, "LinearLR", start_factor=0.1, total_iters=3),
        "CyclicLR": of(module, "CyclicLR", base_lr=0.01, max_lr=0.2, step_size_up=2),
        "OneCycleLR": of(module, "OneCycleLR", max_lr=0.3, total_steps=STEPS + 1),
        "LambdaLR": functools.partial(by_its_own_rate, module),
        "SequentialLR": functools.partial(warm_then_decay, module),
        "ReduceLROnPlateau": of(module, "ReduceLROnPlateau", **plateau),
    }


BUILDS = {
    f"{module.__name__.split('.')[0]}-{name}": build
    for module in (torchs, ours)
    for name, build in schedulers(module).items()
}
DECAY = BUILDS["torch-StepLR"]
PLATEAU = BUILDS["torch-ReduceLROnPlateau"]
TIMES = [
    ({}, range(1, 19)),
    ({"frequency": 4}, (4, 8, 12, 16)),
    (BY_EPOCH, (6, 12, 18)),
    ({**BY_EPOCH, "frequency": 2}, (12,)),
    (BY_VALIDATION, (4, 8, 12, 16, 18)),
    ({**BY_VALIDATION, "frequency": 2}, (8, 16)),
]


@pytest.mark.parametrize(("stepping", "times"), TIMES)
@pytest.mark.parametrize("lazily", [False, True], ids=["given", "built"])
def test_it_is_stepped_when_it_is_time(tmp_path, stepping, times, lazily):
    trainer = trainer_of(tmp_path, DECAY, stepping, lazily=lazily, **EVALUATED)
    assert run(trainer) == expected(DECAY, times)


@pytest.mark.parametrize(
    ("build", "monitor"),
    [(PLATEAU, "eval_worse"), (BUILDS["optimplug-ReduceLROnPlateau"], "worse")],
)
@pytest.mark.parametrize("changes", [{}, {"eval_on_start": True}])
def test_a_plateau_takes_each_evaluation_of_the_run_once(tmp_path, build, monitor, changes):
    stepping = {**BY_VALIDATION, "monitor": monitor}
    trainer = trainer_of(tmp_path, build, stepping, **EVALUATED, **changes)
    trainer.evaluate()
    assert run(trainer) == expected(build, (4, 8, 12, 16, 18), metrics=True)
    held = trainer.lr_scheduler.state_dict()
    trainer.evaluate()
    assert trainer.lr_scheduler.state_dict() == held


@pytest.mark.parametrize("accumulate", [3, 4])
def test_an_epoch_is_of_updates_whatever_is_accumulated(tmp_path, accumulate):
    trainer = trainer_of(tmp_path, DECAY, BY_EPOCH, gradient_accumulation_steps=accumulate)
    assert run(trainer) == expected(DECAY, (2, 4, 6), steps=6)


def test_an_epoch_that_the_run_ends_within_is_none(tmp_path):
    trainer = trainer_of(tmp_path, DECAY, BY_EPOCH, max_steps=11)
    run(trainer)
    assert trainer.lr_scheduler.inner.last_epoch == 1


# Of a scheduler, when it is stepped, and whether it is built as training begins.
RESUMED = [
    *((name, "epoch", True) for name in BUILDS if "torch" in name and "Plateau" not in name),
    ("torch-StepLR", "step", True),
    ("torch-StepLR", "validation", True),
    ("torch-OneCycleLR", "step", True),
    ("torch-ReduceLROnPlateau", "validation", True),
    ("torch-StepLR", "epoch", False),
    ("torch-CyclicLR", "epoch", False),
    ("torch-ReduceLROnPlateau", "validation", False),
    ("optimplug-CyclicLR", "epoch", True),
    ("optimplug-StepLR", "epoch", False),
    ("optimplug-ReduceLROnPlateau", "validation", True),
]


@pytest.mark.parametrize(("name", "interval", "lazily"), RESUMED)
def test_a_run_resumes_where_it_was(tmp_path, name, interval, lazily):
    stepping = FOLLOWING if "Plateau" in name else {"interval": interval}
    build, changes = BUILDS[name], {"eval_strategy": "steps", "eval_steps": 2}
    make = functools.partial(trainer_of, build=build, stepping=stepping, lazily=lazily, **changes)
    _, rates = check_resume(make, tmp_path, stops=(5, 6))
    assert len(set(rates["0"])) > 1
    for file in ("scheduler.pt", "optimizer.pt"):
        torch.load(tmp_path / "checkpoint-6" / file, weights_only=True)


@pytest.mark.parametrize("build", [DECAY, PLATEAU])
@pytest.mark.parametrize("frequency", [1, 2])
def test_a_run_resumes_from_what_is_saved_as_an_epoch_ends(tmp_path, build, frequency):
    stepping = {**(FOLLOWING if build is PLATEAU else BY_EPOCH), "frequency": frequency}
    make = functools.partial(trainer_of, build=build, stepping=stepping, eval_strategy="epoch")
    check_resume(make, tmp_path, stops=(6, 12), every="epoch")


def test_a_wrapper_of_accelerates_is_looked_through(tmp_path):
    trainer = trainer_of(tmp_path, DECAY, BY_EPOCH)
    wrapper = AcceleratedScheduler(trainer.lr_scheduler, [], step_with_optimizer=False)
    trainer.lr_scheduler = wrapper
    assert run(trainer) == expected(DECAY, (6, 12, 18))


def test_a_second_train_goes_on(tmp_path):
    trainer = trainer_of(tmp_path, DECAY, BY_EPOCH)
    first = run(trainer)
    second = run(trainer)
    rates = expected(DECAY, range(6, 37, 6), steps=36)
    assert first["0"] == rates["0"][:18]
    assert second["0"] == rates["0"][18:]


class OutOfMemoryOnce(TrainerCallback):
    """Lets ``auto_find_batch_size`` try again, with half the batch."""

    raised = False

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and not self.raised:
            self.raised = True
            raise RuntimeError("CUDA out of memory.")


def test_a_trace_lists_an_update_once_after_a_batch_that_was_too_big(tmp_path):
    trace, smaller = LearningRateTrace(), OutOfMemoryOnce()
    trainer = trainer_of(
        tmp_path, DECAY, {}, [trace, smaller], auto_find_batch_size=True, max_steps=5
    )
    trainer.train()
    assert smaller.raised
    assert {len(rates) for rates in trace.rates.values()} == {2 + 5}


class Break(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_run_that_was_broken_off_leaves_nothing_behind(tmp_path):
    trainer = trainer_of(tmp_path, DECAY, BY_VALIDATION, eval_on_start=True, **EVALUATED)
    trainer.add_callback(Break)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Break)
    trainer.train()
    whole = trainer_of(tmp_path, DECAY, BY_VALIDATION, eval_on_start=True, **EVALUATED)
    whole.train()
    # Four times in mid-run; transformers 5 evaluates after the last update as well.
    assert trainer.lr_scheduler.inner.last_epoch == whole.lr_scheduler.inner.last_epoch >= 4


def test_several_data_sets_are_one_validation(tmp_path):
    several = {"a": points(4), "b": points(8)}
    for monitor in ("eval_a_worse", "eval_b_worse", "b_worse", "val_b_worse"):
        stepping = {**BY_VALIDATION, "monitor": monitor}
        trainer = trainer_of(tmp_path, PLATEAU, stepping, **EVALUATED)
        trainer.eval_dataset = several
        assert run(trainer) == expected(PLATEAU, (4, 8, 12, 16, 18), metrics=True)
    trainer = trainer_of(tmp_path, DECAY, BY_VALIDATION, **EVALUATED)
    trainer.eval_dataset = several
    assert run(trainer) == expected(DECAY, (4, 8, 12, 16, 18))


@pytest.mark.parametrize("stop", [4, 5, 18])
def test_a_missing_metric_is_an_error_that_lists_those_there_are(tmp_path, stop):
    stepping = {**BY_VALIDATION, "monitor": "f1"}
    trainer = trainer_of(tmp_path, PLATEAU, stepping, [StopAfter(stop)], **EVALUATED)
    trainer.eval_dataset = {"a": points(4), "b": points(8)}
    with pytest.raises(ArgumentError, match=r"'eval_f1' is missing; there are: .*eval_b_worse"):
        run(trainer)


def test_a_trainer_without_the_callbacks_scheduler_is_refused(tmp_path):
    model = Lines()
    optimizer = sgd(model)
    callback = SchedulerCallback(DECAY(optimizer), interval="epoch")
    trainer = Trainer(
        model, arguments(tmp_path), train_dataset=points(), optimizers=(optimizer, None)
    )
    trainer.add_callback(callback)
    with pytest.raises(ArgumentError, match=r"optimizers=\(optimizer, callback\.scheduler\)"):
        trainer.train()


def test_a_scheduler_without_its_callback_is_refused(tmp_path):
    scheduler = SchedulerCallback(DECAY, interval="epoch").scheduler
    trainer = Trainer(
        Lines(), arguments(tmp_path), train_dataset=points(), optimizers=(None, scheduler)
    )
    with pytest.raises(ArgumentError, match=r"callbacks=\[callback\]"):
        trainer.train()


def test_a_scheduler_of_another_optimizer_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, lambda _: DECAY(sgd(Lines())), BY_EPOCH)
    with pytest.raises(ArgumentError, match="must act on the optimizer that the trainer trains"):
        trainer.train()


@pytest.mark.parametrize(
    ("build", "stepping", "message"),
    [
        (DECAY, {"interval": "evaluation"}, "interval must be one of step, epoch, validation"),
        (DECAY, {"frequency": 0}, "frequency must be an int >= 1"),
        (DECAY, FOLLOWING, "monitor must be left out"),
        (PLATEAU, BY_VALIDATION, "monitor must name the metric"),
        (PLATEAU, {"monitor": "loss"}, "interval must be 'validation'"),
        (PLATEAU, {**BY_VALIDATION, "monitor": 3}, "monitor must be the name of a metric"),
        (lambda optimizer: "cosine", {}, r"must be a scheduler of torch or optimplug \(got str"),
    ],
)
def test_bad_arguments_are_refused_at_once(build, stepping, message):
    with pytest.raises(ArgumentError, match=message):
        SchedulerCallback(build(sgd(Lines())), **stepping)


@pytest.mark.parametrize(
    ("build", "stepping", "message"),
    [
        (DECAY, FOLLOWING, "monitor must be left out"),
        (PLATEAU, {}, "monitor must name the metric"),
        (lambda optimizer: optimizer, {}, "must be a scheduler of torch or optimplug"),
    ],
)
def test_what_a_function_builds_is_judged_as_training_begins(tmp_path, build, stepping, message):
    trainer = trainer_of(tmp_path, build, stepping, lazily=True, **EVALUATED)
    with pytest.raises(ArgumentError, match=message):
        trainer.train()


def test_a_run_without_evaluations_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, DECAY, BY_VALIDATION)
    with pytest.raises(ArgumentError, match="eval_strategy is 'no'; set eval_strategy="):
        trainer.train()


class Endless(IterableDataset):
    def __iter__(self):
        return iter(points())


def test_data_without_a_length_has_no_epochs(tmp_path):
    trainer = trainer_of(tmp_path, DECAY, BY_EPOCH, max_steps=8)
    trainer.train_dataset = Endless()
    with pytest.raises(ArgumentError, match=r"no length.*interval='step' and .* frequency"):
        trainer.train()
    trainer = trainer_of(tmp_path, DECAY, {"frequency": 3}, max_steps=8)
    trainer.train_dataset = Endless()
    assert run(trainer) == expected(DECAY, (3, 6), steps=8)


def test_steps_saved_between_epochs_that_are_evaluated_are_warned_of(tmp_path):
    trainer = trainer_of(
        tmp_path, DECAY, BY_VALIDATION, eval_strategy="epoch", save_strategy="steps"
    )
    with pytest.warns(UserWarning, match="without the validation that follows, which is lost"):
        trainer.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": "step"}, "saved with interval='epoch', but here it is 'step'"),
        ({"frequency": 2}, "saved with frequency=1, but here it is 2"),
    ],
)
@pytest.mark.parametrize("lazily", [False, True], ids=["given", "built"])
def test_a_state_of_other_steps_is_refused(changes, message, lazily):
    saved = SchedulerCallback(DECAY(sgd(Lines())), **BY_EPOCH).scheduler.state_dict()
    build = DECAY if lazily else DECAY(sgd(Lines()))
    other = SchedulerCallback(build, **{**BY_EPOCH, **changes}).scheduler
    with pytest.raises(StateError, match=message):
        other.load_state_dict(saved)


def test_a_state_that_the_trainer_made_is_refused():
    scheduler = SchedulerCallback(DECAY(sgd(Lines())), **BY_EPOCH).scheduler
    before = scheduler.state_dict()
    with pytest.raises(StateError, match="that the trainer stepped itself"):
        scheduler.load_state_dict(DECAY(sgd(Lines())).state_dict())
    assert scheduler.state_dict() == before


@pytest.mark.parametrize("lazily", [False, True], ids=["given", "built"])
def test_loading_leaves_the_state_as_it_is(lazily):
    build = BUILDS["torch-CyclicLR"]
    saved = SchedulerCallback(build(sgd(Lines()))).scheduler.state_dict()
    kept = repr(saved)
    scheduler = SchedulerCallback(build if lazily else build(sgd(Lines()))).scheduler
    scheduler.load_state_dict(saved)
    if lazily:
        scheduler.bind(sgd(Lines()))
    assert repr(saved) == kept


WARM = {"name": "LinearLR", "start_factor": 0.1, "for": 4}
RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 0.01},
    "groups": [{"match": "head.*", "lr_scale": 10}],
    "schedule": [
        WARM,
        {"name": "ReduceLROnPlateau", "monitor": "eval_worse", "patience": 0, "factor": 0.5},
    ],
}


def told(folder, schedule=RECIPE["schedule"], callbacks=None, cls=Trainer, **changes):
    """A recipe in a stock Trainer, or as ``RecipeTrainer`` runs it."""
    model = Lines()
    recipe = Recipe.load({**RECIPE, "schedule": schedule})
    built = recipe.build(model, Horizon(total_steps=STEPS, steps_per_epoch=EPOCH))
    own = {"recipe": recipe} if cls is RecipeTrainer else {"optimizers": built}
    clips = {} if cls is RecipeTrainer else {"max_grad_norm": 0.0}
    trainer = cls(
        model=model,
        args=arguments(folder, **{**EVALUATED, **clips, **changes}),
        train_dataset=points(),
        eval_dataset=points(4),
        compute_metrics=lambda _: {"worse": float(trainer.state.global_step)},
        callbacks=[MetricCallback()] if callbacks is None else callbacks,
        **own,
    )
    return trainer


COUNTED = {"name": "StepLR", "step_size": 2, "gamma": 0.5, "every": "validation"}


@pytest.mark.parametrize("schedule", [RECIPE["schedule"], [WARM, COUNTED]])
@pytest.mark.parametrize("changes", [{}, {"eval_on_start": True}, {"eval_strategy": "epoch"}])
def test_a_recipe_is_told_of_evaluations_as_by_its_own_trainer(tmp_path, schedule, changes):
    own = told(tmp_path, schedule, callbacks=[], cls=RecipeTrainer, **changes)
    rates = run(own)
    assert len(set(rates["head"] if "head" in rates else next(iter(rates.values())))) > 4
    stock = told(tmp_path, schedule, **changes)
    assert run(stock) == rates
    held = stock.lr_scheduler.state_dict()
    assert held == own.lr_scheduler.state_dict()
    stock.evaluate()
    assert stock.lr_scheduler.state_dict() == held


@pytest.mark.parametrize("schedule", [RECIPE["schedule"], [WARM, COUNTED]])
def test_a_recipes_own_trainer_does_not_tell_twice(tmp_path, schedule):
    once = run(told(tmp_path, schedule, callbacks=[], cls=RecipeTrainer))
    both = told(tmp_path, schedule, callbacks=[MetricCallback()], cls=RecipeTrainer)
    assert run(both) == once


def test_a_recipe_is_told_once_of_several_data_sets(tmp_path):
    plateau = RECIPE["schedule"][1]
    following = [WARM, {**plateau, "monitor": "eval_b_worse"}]
    for schedule in (following, [WARM, COUNTED]):
        traces = []
        for cls in (Trainer, RecipeTrainer):
            trainer = told(tmp_path, schedule, cls=cls)
            trainer.eval_dataset = {"a": points(4), "b": points(8)}
            traces.append(run(trainer))
        single = {**plateau, "monitor": "eval_worse"}
        alone = run(told(tmp_path, [WARM, single] if schedule is following else schedule))
        assert traces == [alone, alone]


def test_a_told_recipe_resumes_where_it_was(tmp_path):
    make = functools.partial(told, eval_steps=2)
    check_resume(make, tmp_path, stops=(2, 5, 6, 14))


def test_a_metric_of_a_later_phase_is_not_waited_for(tmp_path):
    plateau = RECIPE["schedule"][1]
    schedule = [{**plateau, "for": "2 epochs"}, {**plateau, "monitor": "eval_late"}]

    def make(folder, **changes):
        trainer = told(folder, schedule, eval_steps=2, **changes)

        def metrics(_):
            step = trainer.state.global_step
            now = {"worse" if step < 2 * EPOCH else "late": float(step)}
            return {**now, "late": float(step)} if step == 2 else now  # the first must have both

        trainer.compute_metrics = metrics
        return trainer

    whole, _ = check_resume(make, tmp_path, stops=(EPOCH, 2 * EPOCH))
    assert whole.lr_scheduler.monitors == {"eval_worse", "eval_late"}
    assert whole.lr_scheduler.monitors_at(EPOCH) == {"eval_worse"}
    assert whole.lr_scheduler.monitors_at(2 * EPOCH) == {"eval_late"}


@pytest.mark.parametrize("several", [False, True])
def test_a_metric_that_a_recipe_misses_is_an_error(tmp_path, several):
    schedule = [{**RECIPE["schedule"][1], "monitor": "eval_f1"}]
    trainer = told(tmp_path, schedule)
    if several:
        trainer.eval_dataset = {"a": points(4), "b": points(8)}
    with pytest.raises(ArgumentError, match=r"'eval_f1' is missing; there are: .*worse"):
        trainer.train()
    assert trainer.state.global_step == 4


def test_evaluations_that_a_recipe_waits_for_in_vain_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="eval_strategy is 'no'"):
        told(tmp_path, eval_strategy="no").train()
    told(tmp_path, schedule="linear", eval_strategy="no", max_steps=1).train()


def test_a_trainer_without_a_recipe_has_nobody_to_tell(tmp_path):
    trainer = Trainer(Lines(), arguments(tmp_path), train_dataset=points())
    trainer.add_callback(MetricCallback())
    with pytest.raises(ArgumentError, match=r"the Trainer's is a LambdaLR; .* SchedulerCallback"):
        trainer.train()
