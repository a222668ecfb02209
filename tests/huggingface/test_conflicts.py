"""What cannot stand beside a recipe is refused by name, and what ends with one is said."""

import pytest
import torch
from support.huggingface_runs import StopAfter
from support.trainers import Lines, arguments, optimizer_of, points, recipe_trainer
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback
from transformers.utils import logging

from optimplug import ArgumentError, Horizon, Recipe, RecipeError, StateError
from optimplug.huggingface import RecipeTrainer, RecipeTrainingArguments, build, with_recipe

SGD = {"optimizer": {"name": "SGD", "lr": 0.1}}
CLIPPED = {"optimizer": {**SGD["optimizer"], "max_grad_norm": 1.0}}


def trainer_of(folder, recipe=SGD, cls=RecipeTrainer, args_class=None, **changes):
    own = {} if args_class is None else {"arguments_class": args_class, "recipe": recipe}
    given = {"recipe": recipe} if args_class is None else {}
    return cls(
        model=Lines(),
        args=arguments(folder, **own, **{"num_train_epochs": 1, **changes}),
        train_dataset=points(),
        **given,
    )


@pytest.mark.parametrize(
    "name",
    [
        "create_optimizer",
        "create_scheduler",
        "get_decay_parameter_names",
        "get_optimizer_cls_and_kwargs",
    ],
)
def test_methods_of_ones_own_that_would_not_be_called_are_refused(name):
    own = type("Own", (Seq2SeqTrainer,), {name: lambda self, *args: None})
    derived = type("Derived", (own,), {})
    with pytest.raises(RecipeError, match=rf"Own\.{name} would not be called: .* is the recipe's"):
        with_recipe(derived)


def test_a_class_derived_from_one_with_a_recipe_may_add_to_it(tmp_path):
    class Own(RecipeTrainer):
        def create_optimizer(self, model=None):
            optimizer = super().create_optimizer(model)
            optimizer.param_groups[0]["lr"] = 0.5
            return optimizer

    trainer = trainer_of(tmp_path, cls=Own)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == 0.5
    assert with_recipe(Own) is Own


def test_an_instance_in_place_of_a_class_is_one_line(tmp_path):
    trainer = Trainer(Lines(), arguments(tmp_path))
    with pytest.raises(
        ArgumentError, match=r"^trainer_class must be a class .*\(got an object: a Tra"
    ):
        with_recipe(trainer)


def test_arguments_that_no_recipe_can_honour_are_refused_by_name(tmp_path):
    with pytest.raises(RecipeError, match=r"args\.optim_target_modules=\['head'\] would not apply"):
        trainer_of(tmp_path, optim_target_modules=["head"])
    trainer = trainer_of(tmp_path)
    trainer.args.optim_target_modules = "all-linear"
    with pytest.raises(RecipeError, match=r"optim_target_modules='all-linear'"):
        trainer.train()
    with pytest.raises(RecipeError, match="optim_target_modules"):
        build(Lines(), SGD, trainer.args, points())


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_recipe_in_a_trainer_that_runs_none_is_an_error(tmp_path, evaluates):
    trainer = trainer_of(tmp_path, cls=Trainer, args_class=RecipeTrainingArguments)
    before = trainer.model.head.weight.detach().clone()
    with pytest.raises(
        RecipeError, match=r"^recipe: would not be run: .*use RecipeTrainer, or with_r"
    ):
        trainer.train()
    assert torch.equal(trainer.model.head.weight, before)
    if evaluates:  # which needs no recipe
        assert "eval_loss" in trainer.evaluate(points(4))


def optimizers_of(model, kind, args):
    """An optimizer and a schedule for a plain Trainer, made in several ways."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    own = torch.optim.lr_scheduler.ConstantLR
    ours = Recipe.load(SGD).build_optimizer(model)
    return {
        "own": lambda: (sgd, own(sgd)),
        "build": lambda: build(model, None, args, points()),
        "the recipe's": lambda: Recipe.load(SGD).build(model, Horizon(18)),
        "the recipe's optimizer": lambda: (ours, own(ours)),
    }[kind]()


@pytest.mark.parametrize("kind", ["own", "build", "the recipe's", "the recipe's optimizer"])
def test_optimizers_of_ones_own_beside_a_recipe_that_they_are_not_of(tmp_path, kind):
    args = arguments(tmp_path, RecipeTrainingArguments, recipe=SGD, max_grad_norm=0)
    model = Lines()
    optimizers = optimizers_of(model, kind, args)
    trainer = Trainer(model, args, train_dataset=points(), optimizers=optimizers)
    before = model.head.weight.detach().clone()
    if kind == "own":
        with pytest.raises(
            RecipeError, match=r"^recipe: would not be run: the trainer was given an opt"
        ):
            trainer.train()
    else:
        trainer.train()
    assert torch.equal(model.head.weight, before) is (kind == "own")
    assert "eval_loss" in trainer.evaluate(points(4))


def test_deepspeed_may_ask_for_what_a_trainer_of_its_own_schedule_asks_for(tmp_path):
    args = arguments(tmp_path, RecipeTrainingArguments, recipe=SGD, warmup_steps=3)
    with pytest.raises(RecipeError, match="would not be run"):
        args.get_warmup_steps(10)
    args.deepspeed = {"optimizer": {}}
    assert args.get_warmup_steps(10) == 3


def test_arguments_without_a_recipe_are_as_any_other(tmp_path):
    trainer_of(tmp_path, None, Trainer, RecipeTrainingArguments, warmup_steps=3).train()


def test_a_plain_trainer_may_be_given_what_the_recipe_of_its_arguments_builds(tmp_path):
    args = arguments(tmp_path, RecipeTrainingArguments, recipe=CLIPPED, num_train_epochs=1)
    model = Lines()
    optimizers = build(model, None, args, points())
    trainer = Trainer(model, args, train_dataset=points(), optimizers=optimizers)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == 0.1


class Heard:
    """What transformers' users read."""

    def __init__(self):
        self.lines = []

    def __enter__(self):
        self._handler = logging.logging.Handler()
        self._handler.emit = lambda record: self.lines.append(record.getMessage())
        logging.add_handler(self._handler)
        # Another test of this process may have made it quieter.
        self._verbosity = logging.get_verbosity()
        logging.set_verbosity_warning()
        return self

    def __exit__(self, *_):
        logging.set_verbosity(self._verbosity)
        # transformers' own remove_handler takes away none, before 5.
        logging.logging.getLogger("transformers").removeHandler(self._handler)

    def of_clipping(self):
        return [line for line in self.lines if "max_grad_norm=1.0 does not apply" in line]


def test_the_end_of_the_default_clipping_is_said_once(tmp_path):
    with Heard() as heard:
        trainer = trainer_of(tmp_path)
        trainer.train()
        trainer.train()
        assert len(heard.of_clipping()) == 1
        trainer.run.close()
        trainer.train()  # another run
        assert len(heard.of_clipping()) == 2


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [(CLIPPED, {}), (SGD, {"max_grad_norm": 0.0}), (CLIPPED, {"max_grad_norm": 0.0})],
)
@pytest.mark.filterwarnings("ignore:the recipe replaces")
def test_where_nothing_ends_nothing_is_said(tmp_path, recipe, changes):
    with Heard() as heard:
        trainer_of(tmp_path, recipe, **changes).train()
    assert not heard.of_clipping()


def test_a_threshold_that_means_the_same_is_none_that_is_replaced(tmp_path):
    trainer_of(tmp_path, SGD, max_grad_norm=0.0)  # a warning would be an error here
    trainer_of(
        tmp_path, {"optimizer": {**SGD["optimizer"], "max_grad_norm": 3.0}}, max_grad_norm=3.0
    )


@pytest.mark.parametrize(
    "same",
    [{"learning_rate": 0.1}, {"weight_decay": 0.2}, {"adam_epsilon": 1e-6}, {"adam_beta2": 0.9}],
    ids=str,
)
def test_an_argument_that_says_what_the_recipe_says_is_none_that_is_replaced(tmp_path, same):
    settings = {"lr": 0.1, "weight_decay": 0.2, "eps": 1e-6, "betas": [0.8, 0.9]}
    recipe = {"optimizer": {"name": "AdamW", "max_grad_norm": 1.0, **settings}}
    trainer_of(tmp_path, recipe, **same)  # a warning would be an error here
    with pytest.warns(UserWarning, match="the recipe replaces"):
        trainer_of(tmp_path, recipe, **{name: value / 2 for name, value in same.items()})


def test_other_processes_say_nothing(tmp_path, monkeypatch):
    with Heard() as heard:
        trainer = trainer_of(tmp_path)
        monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
        trainer.create_optimizer()
    assert not heard.of_clipping()


@pytest.mark.parametrize("way", ["arguments", "attribute"])
def test_another_recipe_between_two_trainings_has_its_own_optimizer(tmp_path, way):
    if way == "arguments":
        trainer = trainer_of(tmp_path, CLIPPED, args_class=RecipeTrainingArguments)
    else:
        trainer = trainer_of(tmp_path, CLIPPED)
    trainer.train()
    first = trainer.run
    changed = {"optimizer": {"name": "AdamW", "lr": 0.25, "max_grad_norm": 1.0}}
    if way == "arguments":
        trainer.args.recipe = changed
    else:
        trainer.recipe = type(trainer.recipe).load(changed)
    trainer.train()
    assert first.closed
    assert type(optimizer_of(trainer)).__name__ == "AdamW"
    assert trainer.optimizer.param_groups[0]["lr"] == 0.25
    assert trainer.run.updates is not first.updates


def test_another_schedule_alone_goes_on_with_the_same_optimizer(tmp_path):
    trainer = trainer_of(tmp_path, CLIPPED, args_class=RecipeTrainingArguments)
    trainer.train()
    first = trainer.run
    trainer.args.recipe = {**CLIPPED, "schedule": "linear"}
    trainer.train()
    assert trainer.run is first
    assert trainer.lr_scheduler.get_last_lr() == [0.0]


def test_a_run_that_is_closed_while_it_trains_is_an_error(tmp_path):
    class Close(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.run.close()

    frozen = [{"match": "head.*", "freeze": {"until": 5}}]
    trainer = recipe_trainer(tmp_path, "linear", groups=frozen, callbacks=[Close()])
    before = trainer.model.head.weight.detach().clone()
    with pytest.raises(ArgumentError, match=r"trainer\.run was closed during train"):
        trainer.train()
    assert torch.equal(trainer.model.head.weight, before)


def test_a_schedule_without_any_optimizer_says_so(tmp_path):
    with pytest.raises(RecipeError, match=r"no optimizer yet; call create_optimizer\(\) before"):
        trainer_of(tmp_path).create_scheduler(10)
    trainer = trainer_of(tmp_path)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
    with pytest.raises(RecipeError, match="another optimizer than the recipe's"):
        trainer.train()


class Counting(torch.optim.SGD):
    """Keeps a count and its highest rate in its groups, as schedule-free optimizers do."""

    def __init__(self, params, lr=0.1, momentum=0.0):
        super().__init__(params, lr, momentum)
        for group in self.param_groups:
            group.update(k=0, lr_max=-1.0)

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            group["lr_max"] = max(group["lr_max"], group["lr"])
        return super().step(closure)


def counting(folder, momentum=0.9, **changes):
    name = f"{__name__}.Counting"
    recipe = {"optimizer": {"name": name, "momentum": momentum, "max_grad_norm": 1.0}}
    return trainer_of(folder, recipe, **changes)


def test_what_changes_by_itself_in_a_group_is_no_difference(tmp_path):
    trainer = counting(tmp_path)
    trainer.add_callback(StopAfter(3))
    trainer.train()
    checkpoint = str(tmp_path / "checkpoint-3")
    again = counting(tmp_path)
    again.train(resume_from_checkpoint=checkpoint)
    assert again.optimizer.param_groups[0]["k"] == 6
    assert again.run.resumption.is_exact
    with pytest.raises(StateError, match=r"momentum of model +0\.9 +0\.5 +adapt"):
        counting(tmp_path, momentum=0.5).train(resume_from_checkpoint=checkpoint)


SCHEDULED = {**CLIPPED, "schedule": [{"name": "LinearLR"}]}


class WithItsOwnSchedule(RecipeTrainer):
    """A class that somebody has derived from RecipeTrainer."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer)
        return self.lr_scheduler


@pytest.mark.parametrize("derived", [True, False])
def test_a_schedule_in_the_place_of_the_recipes_is_refused_before_it_trains(tmp_path, derived):
    trainer = trainer_of(tmp_path, SCHEDULED, WithItsOwnSchedule if derived else RecipeTrainer)
    if not derived:
        optimizer = trainer.create_optimizer()
        trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(RecipeError, match=r"^schedule: the trainer has another one, of ConstantLR"):
        trainer.train()
    assert all(map(torch.equal, trainer.model.parameters(), before))
