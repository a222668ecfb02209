"""What this package takes of Lightning in private is still there, in the installed release.

Where one of these fails, ``optimplug/lightning/internals.py`` has to be brought in line.
"""

import pytest
import torch
from support.lightning_package import PACKAGE, BatchSizeFinder, Callback, LearningRateFinder, Tuner
from support.lightning_runs import EPOCH, STEPS, Resumable, Tiny, batches, trainer_of
from torch import nn

from optimplug.lightning import internals

VERSION = PACKAGE.__version__


def still(owner, name, needed_by):
    assert hasattr(owner, name), (
        f"Lightning {VERSION} has no {type(owner).__name__}.{name} any more, which "
        f"optimplug.lightning.internals.{needed_by} needs"
    )


class Looking(Callback):
    """Looks in the midst of a fit, when all of it is there."""

    def __init__(self):
        self.pending, self.logs, self.validations = [], [], 0

    def on_train_batch_end(self, trainer, *args):
        still(trainer.fit_loop, "_data_fetcher", "validation_is_pending")
        still(trainer.fit_loop.epoch_loop, "_should_check_val_fx", "validation_is_pending")
        still(trainer._logger_connector, "_first_loop_iter", "run_validation")
        self.pending.append(internals.validation_is_pending(trainer))
        self.logs.append(internals.should_log(trainer))

    def on_validation_end(self, trainer, module):
        self.validations += not trainer.sanity_checking


def test_a_fit_tells_of_a_validation_that_comes_next_and_when_to_log(tmp_path):
    looking = Looking()
    trainer_of(tmp_path, looking, log_every_n_steps=2, max_epochs=2).fit(
        Tiny(STEPS), batches(), batches()
    )
    assert looking.pending == [update % EPOCH == 0 for update in range(1, 2 * EPOCH + 1)], (
        f"validation_is_pending does not foresee what Lightning {VERSION} does"
    )
    assert looking.logs == [bool(update % 2 == 0) for update in range(1, 2 * EPOCH + 1)], (
        f"should_log is not what Lightning {VERSION} logs by"
    )


class Logging(Tiny):
    def training_step(self, batch, batch_idx):
        self.log("train_loss", 2.0 * batch_idx, on_step=True, on_epoch=True)
        return self.loss(batch)


def test_a_fit_tells_what_the_training_has_logged(tmp_path):
    found = []

    class Asking(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            still(trainer.fit_loop.epoch_loop, "_results", "running_results")
            if batch_idx == 0:
                left = internals.add_to_running(trainer, saved)
                assert left == {"elsewhere": {}}, f"Lightning {VERSION} names results otherwise"
            if batch_idx == 2:
                found.extend(internals.running_results(trainer, {"loss"}).items())

        def on_train_epoch_end(self, trainer, module):
            found.extend(internals.trained_metrics(trainer))

    before = {"value": torch.tensor(40.0), "cumulated_batch_size": torch.tensor(4)}
    saved = {"training_step.train_loss": before, "elsewhere": {}}
    trainer = trainer_of(tmp_path, Asking(), max_epochs=1)
    trainer.fit(Logging(STEPS), batches(), batches())
    (key, sums), of_epoch, of_batch = found
    assert key == "training_step.train_loss"
    needed = f"what a mean is made of is not the same in Lightning {VERSION}"
    assert sums == {"value": torch.tensor(40.0 + 4 * 6), "cumulated_batch_size": 16}, needed
    assert of_epoch["train_loss"] == (40.0 + 4 * 30) / 28, needed
    assert of_batch["train_loss"] == 10.0, needed


def test_a_fit_can_be_made_to_validate(tmp_path):
    class Asking(Looking):
        def on_train_start(self, trainer, module):
            internals.run_validation(trainer)
            assert trainer.training

    looking = Asking()
    trainer_of(tmp_path, looking, max_epochs=1).fit(Tiny(STEPS), batches(), batches())
    assert looking.validations == 2, f"run_validation does not validate in Lightning {VERSION}"


def test_the_checkpoint_that_is_resumed_from_is_there_when_optimizers_are_asked_for(tmp_path):
    found = []

    class Asked(Tiny):
        def configure_optimizers(self):
            still(self.trainer, "_checkpoint_connector", "loaded_checkpoint")
            still(self.trainer._checkpoint_connector, "_loaded_checkpoint", "loaded_checkpoint")
            found.append(internals.loaded_checkpoint(self.trainer).get("global_step"))
            return super().configure_optimizers()

    trainer = trainer_of(tmp_path)
    trainer.fit(Asked(STEPS), Resumable(batches()), batches())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer_of(tmp_path).fit(
        Asked(STEPS), Resumable(batches()), batches(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert found == [None, 3 * EPOCH], f"loaded_checkpoint is empty in Lightning {VERSION}"


def test_the_trainer_sets_its_data_up_again(tmp_path):
    trainer = trainer_of(tmp_path)
    still(trainer.fit_loop, "_combined_loader", "forget_data_setup")
    setups = []

    class Asked(Tiny):
        def train_dataloader(self):
            setups.append("train")
            return batches()

        def configure_optimizers(self):
            self.trainer.fit_loop.setup_data()
            self.trainer.fit_loop.setup_data()
            internals.forget_data_setup(self.trainer)
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer.fit(Asked(STEPS), val_dataloaders=batches())
    assert setups == ["train"] * 2, f"forget_data_setup does nothing in Lightning {VERSION}"


@pytest.mark.parametrize("update", [True, False])
def test_a_learning_rate_finder_says_what_it_will_set(update):
    finder = LearningRateFinder(update_attr=update)
    still(finder, "_update_attr", "sets_rates")
    assert internals.sets_rates(finder) is update


def test_a_batch_size_finder_says_whom_it_works_for(tmp_path):
    still(BatchSizeFinder(), "_early_exit", "changes_batch_size_in_fit")
    seen = []

    class Sized(Tiny):
        batch_size = 2

        def train_dataloader(self):
            return batches(self.batch_size)

        val_dataloader = train_dataloader

        def configure_optimizers(self):
            found = [c for c in self.trainer.callbacks if isinstance(c, BatchSizeFinder)]
            seen.extend(map(internals.changes_batch_size_in_fit, found))
            return torch.optim.SGD(self.parameters(), lr=0.1)

    Tuner(trainer_of(tmp_path)).scale_batch_size(Sized(None), steps_per_trial=1, max_trials=1)
    trainer_of(tmp_path, BatchSizeFinder(max_trials=1), max_epochs=1).fit(Sized(None))
    assert seen == [False, True], f"finders are not told apart in Lightning {VERSION}"


def test_what_a_validation_has_logged_is_known(tmp_path):
    class Logging(Tiny):
        def training_step(self, batch):
            loss = super().training_step(batch)
            self.log("mine", loss.detach(), on_epoch=True)
            return loss

        def validation_step(self, batch):
            self.log("seen", torch.tensor(1.0))

    class Asking(Callback):
        def on_validation_end(self, trainer, module):
            still(trainer, "_results", "validated_metrics")
            still(trainer._results, "_forked_name", "validated_metrics")
            found.append(set(internals.validated_metrics(trainer)))

    found = []
    trainer_of(tmp_path, Asking(), max_epochs=2).fit(Logging(STEPS), batches(), batches())
    assert found
    assert all("seen" in names and "mine" not in names for names in found), (
        f"not what Lightning {VERSION} logged then"
    )


def test_callbacks_can_be_added_first_and_removed(tmp_path):
    trainer, own = trainer_of(tmp_path), Callback()
    before = internals.callbacks_of(trainer)
    still(trainer, "callbacks", "callbacks_of")
    kept = list(before)
    internals.add_callback(trainer, own)
    assert trainer.callbacks[0] is own
    assert before == kept  # whoever walks through it is not disturbed
    internals.remove_callback(trainer, own)
    internals.remove_callback(trainer, own)
    assert trainer.callbacks == kept


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_a_compiled_module_leads_to_the_plain_one():
    plain = nn.Linear(2, 2)
    compiled = torch.compile(plain)
    assert internals.uncompiled(compiled) is plain, f"not in torch {torch.__version__}"
    assert internals.uncompiled(plain) is plain


def test_an_optimizer_that_unscales_by_itself_says_so():
    weights = [nn.Parameter(torch.zeros(2))]
    fused = torch.optim.SGD(weights, lr=0.1, fused=True)
    still(fused, "_step_supports_amp_scaling", "unscales_by_itself")
    assert internals.unscales_by_itself(fused)
    assert not internals.unscales_by_itself(torch.optim.SGD(weights, lr=0.1))


def test_a_batch_is_made_ready_for_a_training_step(tmp_path):
    class Halves(Tiny):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [part / 2 for part in batch]

        def training_step(self, batch, batch_idx):
            return self.loss(batch)

    seen = []

    class Ready(Callback):
        def on_train_start(self, trainer, module):
            still(module, "_on_before_batch_transfer", "ready_batch")
            seen.append(internals.ready_batch(trainer, module, [torch.ones(2, 3)]))

    for cls in (Tiny, Halves):
        trainer_of(tmp_path, Ready(), max_epochs=1).fit(cls(STEPS), batches(), batches())
    assert [len(arguments) for arguments in seen] == [1, 2]
    assert [arguments[0][0].mean().item() for arguments in seen] == [1.0, 0.5]
