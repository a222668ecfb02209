"""Schedule-free optimizers in Lightning: which weights are trained, validated and saved."""

import pytest
import torch
from support.lightning_package import Callback, LightningOptimizer, ModelCheckpoint
from support.lightning_runs import EPOCH, Tiny, batches, fit, trainer_of
from support.tensors import same_weights

from optimplug import Horizon, ModeError, Recipe
from optimplug.optim import AdamW, ScheduleFreeAdamW

FREE = {"optimizer": {"name": "ScheduleFreeAdamW", "lr": 0.1, "warmup_steps": 4}}


class Modes(Callback):
    """Notes the mode at each update, and while something else than training goes on."""

    def __init__(self):
        self.seen = {}

    def note(self, when, trainer):
        modes = {group["train_mode"] for group in trainer.optimizers[0].param_groups}
        self.seen[when] = self.seen.get(when, set()) | modes

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.note("update", trainer)

    def on_validation_batch_start(self, trainer, module, *args):
        self.note("validation", trainer)

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.note("save", trainer)


EXPECTED = {"update": {True}, "validation": {False}, "save": {False}}


def trained_by_hand(updates):
    model = Tiny(FREE)
    run = Recipe.load(FREE).start(model, Horizon(3 * EPOCH, EPOCH))
    for update in range(updates):
        run.train()
        model.loss(list(batches())[update % EPOCH]).backward()
        run.step()
        run.eval()
    return model


@pytest.mark.parametrize("changes", [{}, {"val_check_interval": 2}, {"accumulate_grad_batches": 2}])
def test_a_fit_trains_validates_and_saves_in_the_right_mode(tmp_path, changes):
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, every_n_train_steps=1)
    modes = Modes()
    module, _ = fit(tmp_path, FREE, keep, modes, enable_checkpointing=True, **changes)
    assert modes.seen == EXPECTED
    assert module.trainer.optimizers[0].param_groups[0]["train_mode"] is False


def test_a_checkpoint_has_the_average(tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", "{step:02d}", save_top_k=-1, every_n_train_steps=1)
    module, _ = fit(tmp_path, FREE, keep, enable_checkpointing=True)
    for step in (1, EPOCH, 3 * EPOCH):
        saved = torch.load(tmp_path / "kept" / f"step={step:02d}.ckpt", weights_only=True)
        assert torch.equal(saved["state_dict"]["head.weight"], trained_by_hand(step).head.weight)
    assert same_weights(module.backbone, trained_by_hand(3 * EPOCH).backbone)


def test_a_checkpoint_that_is_saved_within_a_batch_lets_it_go_on(tmp_path):
    class Saving(Tiny):
        def training_step(self, batch):
            if self.global_step:
                self.trainer.save_checkpoint(tmp_path / "within.ckpt")
            return super().training_step(batch)

    modes = Modes()
    module, _ = fit(tmp_path, FREE, modes, cls=Saving)
    assert modes.seen == EXPECTED
    torch.testing.assert_close(
        module.state_dict()["head.weight"], trained_by_hand(3 * EPOCH).head.weight.detach()
    )


def test_the_best_weights_are_tested_as_they_were_saved(tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", monitor="val_loss", mode="min")
    module = Tiny(FREE)
    trainer = trainer_of(tmp_path, keep, enable_checkpointing=True)
    trainer.fit(module, batches(), batches())
    trainer.test(module, batches(), ckpt_path="best", verbose=False)
    saved = torch.load(keep.best_model_path, weights_only=True)["state_dict"]
    assert torch.equal(module.head.weight, saved["head.weight"])
    assert torch.equal(module.head.weight, trained_by_hand(EPOCH).head.weight)


class Plain(Tiny):
    """Without a recipe, and so without our callback."""

    def configure_optimizers(self):
        return ScheduleFreeAdamW(self.parameters(), lr=0.1)


def test_what_an_optimizer_keeps_is_seen_through_lightnings_wrapper():
    p = torch.nn.Parameter(torch.ones(3))
    ours = AdamW([p], skip_nonfinite=True)
    p.grad = torch.ones(3)
    ours.step()
    wrapped = LightningOptimizer(ours)
    assert wrapped.state[p] is ours.state[p]
    assert wrapped.skipped_steps == 0
    assert not hasattr(wrapped, "no_such_thing")


class Switching(Plain):
    def on_train_batch_start(self, batch, batch_idx):
        self.optimizers().train()

    def on_validation_start(self):
        self.optimizers().eval()


def test_a_module_that_forgets_the_modes_is_told_so(tmp_path):
    trainer = trainer_of(tmp_path)
    with pytest.raises(ModeError, match=r"call optimizer\.train\(\) before step\(\)"):
        trainer.fit(Plain(None), batches(), batches())
    modes = Modes()
    trainer_of(tmp_path, modes).fit(Switching(None), batches(), batches())
    assert modes.seen == {"update": {True}, "validation": {False}}
