"""What a RecipeTrainer does with its run: when it makes one, closes it, and sets its modes."""

import functools

import pytest
import torch
import yaml
from support.modes import TwoModes
from support.trainers import (
    Lines,
    SaveAfter,
    arguments,
    check_resume,
    optimizer_of,
    points,
    recipe_trainer,
    weights_in,
)
from transformers import Trainer, TrainerCallback

from optimplug import Horizon, Recipe, RecipeError
from optimplug.huggingface import RecipeTrainer, RecipeTrainingArguments

SCHEDULE = [{"name": "CosineAnnealingLR"}]
FREEZING = [
    {"match": "body.weight", "freeze": True},
    {"match": "body.bias", "freeze": {"until": 2}},
]
trainer_of = functools.partial(recipe_trainer, schedule=SCHEDULE, num_train_epochs=1)


def hooks(optimizer):
    kinds = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return [hook for kind in kinds for hook in getattr(optimizer, kind).values()]


def test_a_trainer_has_a_run_once_it_trains(tmp_path):
    trainer = trainer_of(tmp_path)
    assert trainer.run is None
    trainer.train()
    run = trainer.run
    assert optimizer_of(trainer) is trainer.optimizer.optimizer
    assert run.scheduler is trainer.lr_scheduler
    assert run.model is trainer.model
    assert run.recipe is trainer.recipe
    assert run.horizon == Horizon(6, 6)


def test_closing_the_run_leaves_nothing_behind(tmp_path):
    trainer = trainer_of(tmp_path, groups=FREEZING)
    trainer.train()
    raw = trainer.optimizer.optimizer
    assert not trainer.model.body.weight.requires_grad
    assert len(hooks(raw)) > 1
    trainer.run.close()
    assert all(p.requires_grad for p in trainer.model.parameters())
    assert hooks(raw) == []
    fresh = trainer.recipe.build_optimizer(Lines())
    assert vars(raw).keys() == vars(fresh).keys()
    stock = Trainer(Lines(), arguments(tmp_path, num_train_epochs=1), train_dataset=points())
    stock.train()
    for ours, theirs in zip(trainer.model.modules(), stock.model.modules(), strict=True):
        assert vars(ours).keys() == vars(theirs).keys()


def test_a_second_train_goes_on_with_the_run(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    run, scheduler, optimizer = trainer.run, trainer.lr_scheduler, trainer.optimizer.optimizer
    count = len(hooks(optimizer))
    trainer.train()
    assert trainer.run is run
    assert not run.closed
    assert trainer.optimizer.optimizer is optimizer
    assert trainer.lr_scheduler is run.scheduler is not scheduler
    assert len(hooks(optimizer)) <= count


def test_a_second_train_of_another_length_has_lengths_of_its_own(tmp_path):
    trainer = RecipeTrainer(
        Lines(),
        arguments(tmp_path, max_steps=4),
        train_dataset=points(),
        recipe={"optimizer": {"name": "AdEMAMix", "lr": 0.1, "t_alpha": "50%"}},
    )
    found = []
    for steps in (4, 10):
        trainer.args.max_steps = steps
        trainer.train()
        found += [group["t_alpha"] for group in trainer.run.optimizer.param_groups]
    assert found == [2, 5]


def test_a_train_after_the_run_was_closed_begins_another(tmp_path):
    trainer = trainer_of(tmp_path, groups=FREEZING)
    trainer.train()
    first, optimizer = trainer.run, trainer.optimizer.optimizer
    first.close()
    before = trainer.model.body.weight.detach().clone()
    trainer.train()
    assert trainer.run is not first
    assert trainer.optimizer.optimizer is not optimizer
    assert trainer.lr_scheduler is trainer.run.scheduler
    assert torch.equal(trainer.model.body.weight, before)
    names = {name for group in trainer.optimizer.param_groups for name in group["param_names"]}
    assert "body.weight" not in names


def test_another_model_begins_another_run_and_closes_the_one_before(tmp_path):
    runs, models = [], []

    class Noting(RecipeTrainer):
        def create_scheduler(self, *args, **kwargs):
            runs.append(self.run)
            models.append(self.model)
            return super().create_scheduler(*args, **kwargs)

    trainer = Noting(
        model_init=Lines,
        args=arguments(tmp_path, num_train_epochs=1),
        train_dataset=points(),
        recipe={"optimizer": {"name": "SGD", "lr": 0.1}, "groups": FREEZING, "schedule": SCHEDULE},
    )
    trainer.train()
    trainer.train()
    first, second = runs
    assert [first.closed, second.closed] == [True, False]
    assert all(p.requires_grad for p in models[0].parameters())
    assert hooks(getattr(first.optimizer, "optimizer", first.optimizer)) == []
    assert trainer.run is second
    assert second.model is models[1] is not models[0]


@pytest.mark.parametrize("way", ["assigned", "overridden"])
def test_an_optimizer_in_place_of_the_recipes_is_refused(tmp_path, way):
    class Own(RecipeTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            return self.optimizer

    trainer = (RecipeTrainer if way == "assigned" else Own)(
        Lines(),
        arguments(tmp_path),
        train_dataset=points(),
        recipe={"optimizer": {"name": "SGD", "lr": 0.1}},
    )
    if way == "assigned":
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    with pytest.raises(RecipeError, match=r"recipe: .* another optimizer than .* leave create_opt"):
        trainer.train()


@pytest.mark.parametrize("among_arguments", [True, False])
def test_a_recipe_is_read_once(tmp_path, among_arguments, monkeypatch):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"optimizer": {"name": "SGD", "lr": 0.25}}))
    given = {"recipe": str(file)}
    args = arguments(tmp_path, RecipeTrainingArguments, **(given if among_arguments else {}))
    loaded, load = [], Recipe.load
    monkeypatch.setattr(Recipe, "load", lambda source: (loaded.append(source), load(source))[1])
    trainer = RecipeTrainer(
        Lines(), args, train_dataset=points(), **({} if among_arguments else given)
    )
    file.unlink()
    trainer.train()
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.25
    assert [source for source in loaded if not isinstance(source, Recipe)] == [str(file)]


class Modes(TrainerCallback):
    """Notes the mode of the optimizer at the Trainer's hooks, and what the run says of it."""

    def __init__(self):
        self.seen, self.trainer = {}, None

    def note(self, when, optimizer):
        mode = optimizer.optimizer.mode
        assert self.trainer.run.training == (mode == "train")
        self.seen.setdefault(when, set()).add(mode)

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        self.note("update", optimizer)

    def on_prediction_step(self, args, state, control, optimizer, **kwargs):
        self.note("evaluation", optimizer)

    def on_save(self, args, state, control, optimizer, **kwargs):
        self.note("save", optimizer)


MODES = {"name": "support.modes.TwoModes", "lr": 1e-3}


@pytest.mark.parametrize("evaluated", [{}, {"eval_strategy": "steps", "eval_steps": 2}])
def test_what_is_validated_and_saved_are_the_weights_of_eval_mode(tmp_path, evaluated):
    modes = Modes()
    trainer = trainer_of(tmp_path, optimizer=MODES, callbacks=[modes, SaveAfter([3])], **evaluated)
    modes.trainer = trainer
    trainer.train()
    assert type(trainer.optimizer.optimizer) is TwoModes
    expected = {"update": {"train"}, "save": {"eval"}}
    assert modes.seen == expected | ({"evaluation": {"eval"}} if evaluated else {})
    saved = weights_in(tmp_path / "checkpoint-3")
    assert all(value.min() > 900 for value in saved.values())
    trainer.predict(points(4))
    assert trainer.optimizer.optimizer.mode == "eval"


@pytest.mark.filterwarnings("ignore:.*was saved with other settings.*mode eval")
def test_a_run_resumes_from_what_was_saved_in_eval_mode(tmp_path):
    make = functools.partial(trainer_of, optimizer=MODES, eval_strategy="steps", eval_steps=2)
    check_resume(make, tmp_path, stops=(3, 4))


def test_a_model_that_is_saved_by_hand_is_that_of_eval_mode(tmp_path):
    trainer = trainer_of(tmp_path, optimizer=MODES)
    trainer.save_model(str(tmp_path / "before"))
    trainer.train()
    trainer.save_model(str(tmp_path / "after"))
    assert all(value.max() < 100 for value in weights_in(tmp_path / "before").values())
    assert all(value.min() > 900 for value in weights_in(tmp_path / "after").values())
