"""Optimizers that do not clip, in a fit with a recipe: against Lightning's own clipping."""

import pytest
import torch
from support.lightning_package import Callback, MixedPrecision
from support.lightning_runs import Tiny, batches, trainer_of
from support.tensors import same_weights

from optimplug.callbacks.lightning import OptimizerMonitor

MAX = 0.01
RULE = {"match": "head.*", "lr_scale": 0.5}
SETTINGS = [
    ("SGD", {"momentum": 0.9}),
    ("AdamW", {"eps": 0.1}),
    ("AdamW", {"eps": 0.1, "fused": True}),
]


class Plain(Tiny):
    """The same optimizer, made by hand."""

    def configure_optimizers(self):
        name, settings = self.recipe
        groups = [
            {"params": list(self.backbone.parameters())},
            {"params": list(self.head.parameters()), "lr": 0.05},
        ]
        return getattr(torch.optim, name)(groups, lr=0.1, **settings)


class Norms(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(trainer.callback_metrics["grad_norm"])


def fitted(folder, module, scaled=False, **changes):
    if scaled:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        changes["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
    norms = Norms()
    monitor = OptimizerMonitor()
    trainer = trainer_of(folder, monitor, norms, max_epochs=1, log_every_n_steps=1, **changes)
    trainer.fit(module, batches(), batches())
    return module, norms.seen


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_it_is_clipped_as_by_the_trainer(tmp_path, name, settings, scaled):
    optimizer = {"name": f"torch.optim.{name}", "lr": 0.1, **settings, "max_grad_norm": MAX}
    recipe = {"optimizer": optimizer, "groups": [RULE]}
    ours, norms = fitted(tmp_path, Tiny(recipe), scaled)
    # Lightning refuses to clip for an optimizer that unscales by itself.
    clip = {} if scaled and settings.get("fused") else {"gradient_clip_val": MAX}
    theirs, expected = fitted(tmp_path, Plain((name, settings)), scaled, **clip)
    assert max(norms) > 10 * MAX, "or little was clipped"
    if clip:
        assert norms == expected
        assert same_weights(ours, theirs)
    else:
        apart, _ = fitted(tmp_path, Tiny(recipe))
        for p, q in zip(ours.parameters(), apart.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0.02, atol=1e-3)  # of half precision
