"""A process of a fit that the tests of several processes start: ``python lightning_worker.py kind folder``."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from support.lightning_package import Callback, ModelCheckpoint, ModelParallelStrategy
from support.lightning_runs import (
    CALM,
    CLIPPED,
    FOLLOWING,
    Rates,
    Resumable,
    Tiny,
    batches,
    trainer_of,
)
from support.processes import leave
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from optimplug.lightning import horizon_of


class Disagreeing(Tiny):
    """Every process has another metric: one gets better, the mean of both gets worse."""

    def validation_step(self, batch):
        self.log("val_loss", self.validations * (3 if self.global_rank else -1))

    def configure_optimizers(self):
        self.horizon = horizon_of(self.trainer)
        return super().configure_optimizers()


class Sharded(Disagreeing):
    def configure_model(self):
        for part in (self.backbone, self.head):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


class Kill(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(folder):
    keep = ModelCheckpoint(folder, "{step:02d}", save_top_k=-1, every_n_train_steps=1)
    trainer = trainer_of(folder, keep, Kill(), enable_checkpointing=True, val_check_interval=4)
    trainer.fit(Tiny(FOLLOWING), Resumable(batches()), batches())


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def report(folder, trainer, module, rates):
    torch.save(
        {
            "rates": rates.seen,
            "horizon": (module.horizon.total_steps, module.horizon.steps_per_epoch),
            "weights": {name: full(p.detach()) for name, p in module.named_parameters()},
            "shards": [isinstance(p, DTensor) for p in module.parameters()],
        },
        folder / f"{trainer.global_rank}.pt",
    )


def data_parallel(folder):
    rates, module = Rates(), Disagreeing(CALM)
    trainer = trainer_of(folder, rates, strategy="ddp", devices=2)
    trainer.fit(module, batches(), batches())
    report(folder, trainer, module, rates)


def sharded(folder, ckpt_path=None, name="whole", recipe=CALM):
    (folder / name).mkdir(exist_ok=True)
    rates, module = Rates(), Sharded(recipe)
    keep = ModelCheckpoint(folder / "kept", "{epoch}", save_top_k=-1, save_on_train_epoch_end=False)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = trainer_of(
        folder, rates, keep, strategy=strategy, devices=2, enable_checkpointing=True
    )
    trainer.fit(module, batches(), batches(), ckpt_path=ckpt_path)
    report(folder / name, trainer, module, rates)


def resharded(recipe, folder):
    sharded(folder, recipe=recipe)
    sharded(folder, folder / "kept" / "epoch=1.ckpt", "resumed", recipe)


KINDS = {
    "killed": killed,
    "data_parallel": data_parallel,
    "sharded": partial(resharded, CALM),
    "sharded, clipped": partial(resharded, CLIPPED),
}


if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2]))
    leave()
