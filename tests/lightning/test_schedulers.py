"""Our schedulers in Lightning's hands, without a recipe: as torch's."""

from unittest import mock

import pytest
import torch
import torch.optim.lr_scheduler as torchs
from support.lightning_package import BaseFinetuning, Fabric, LightningModule
from support.lightning_runs import EPOCH, Rates, batches, trainer_of
from support.wrappers import Lookahead

import optimplug.optim.lr_scheduler as ours


class Plain(LightningModule):
    """A backbone and a head, without a recipe."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)

    def training_step(self, batch):
        return self.head(torch.tanh(self.backbone(batch[0]))).square().mean()


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("library", ["here", "pytorch_optimizer"])
def test_lookahead_in_lightning(library, tmp_path):
    wrapper = Lookahead if library == "here" else pytest.importorskip(library).Lookahead

    def run(module):
        class Looking(Plain):
            def configure_optimizers(self):
                optimizer = wrapper(sgd(self.parameters()))
                scheduler = module.LinearLR(optimizer, 0.1, 1.0, 5)
                return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        fitted, rates = Looking(), Rates()
        trainer_of(tmp_path, rates, max_epochs=2).fit(fitted, batches())
        return rates.seen, [p.detach() for p in fitted.parameters()]

    (found, weights), (expected, theirs) = run(ours), run(torchs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(weights, theirs)


def test_a_group_that_finetuning_adds_keeps_the_rate_that_it_came_with(tmp_path):

    class Unfreezing(BaseFinetuning):
        def freeze_before_training(self, module):
            self.freeze(module.backbone)

        def finetune_function(self, module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(module.backbone, optimizer, initial_denom_lr=10)

    def run(module):
        class Tuned(Plain):
            def configure_optimizers(self):
                optimizer = sgd(self.head.parameters())
                scheduler = module.ExponentialLR(optimizer, 0.5)
                return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        rates = Rates()
        trainer = trainer_of(tmp_path, rates, Unfreezing(), max_epochs=2)
        trainer.fit(Tuned(), batches())
        return rates.seen

    found = run(ours)
    assert found == run(torchs)
    came = 0.1 * 0.5**EPOCH
    assert found[EPOCH] == pytest.approx([came, came / 10])


@pytest.mark.parametrize(("interval", "count"), [("epoch", 3), ("step", 13)])
def test_lightning_counts_a_step_of_the_constructor(interval, count, tmp_path):

    class Stepped(Plain):
        def configure_optimizers(self):
            optimizer = sgd(self.parameters())
            scheduler = {"scheduler": ours.StepLR(optimizer, 1), "interval": interval}
            return [optimizer], [scheduler]

    with mock.patch.object(ours.StepLR, "step") as stepped:
        trainer = trainer_of(tmp_path, max_epochs=2, enable_checkpointing=True)
        trainer.fit(Stepped(), batches())
    assert stepped.call_count == count


def test_fabrics_wrapper_of_an_optimizer_is_looked_through():
    model = torch.nn.Linear(2, 2)
    inner = sgd(model.parameters())
    _, wrapper = Fabric(accelerator="cpu", devices=1).setup(model, inner)
    assert wrapper is not inner
    scheduler = ours.StepLR(wrapper, 1)
    assert scheduler.optimizer is inner, "Fabric wraps in another way; mend _core/internals.py"
    wrapper.step()
    scheduler.step()
    assert wrapper.param_groups[0]["lr"] == pytest.approx(0.01)
