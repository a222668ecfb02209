"""Runs that are killed at random moments, and go on from what is there.

``python killing.py kind folder seed kills`` prints what became of them, as JSON. The imports, which
take longer than a run, are done once: each life of a run is a fork of this process.
"""

import functools
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from support.resuming import Net, changed, started
from torch.nn.parallel import DistributedDataParallel

from optimplug import Horizon, StateError
from optimplug.recipe.checkpoint.file import newest_whole

TOTAL = 24
HORIZON = Horizon(TOTAL, 6)
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "eval_loss", "patience": 1, "factor": 0.7}
RECIPES = [
    changed(schedule=[{"name": "LinearLR", "start_factor": 0.1, "for": 4}, PLATEAU]),
    changed(optimizer={"name": "ScheduleFreeAdamW"}, schedule=[]),
    changed(optimizer={"name": "SGD", "momentum": 0.9}, schedule="cosine"),
]


class Kind(NamedTuple):
    """A way to train."""

    life: object
    """Trains to the end from what is in a folder; told of each update: ``life(folder, beat)``."""
    processes: int = 1
    exact: bool = True
    """Whether the end is that of a run that was never killed to the last bit."""


def losses(t):
    return (5.0, 4.0, 6.0, 7.0, 3.0, 3.0, 8.0, 1.0)[t % 8]


def go(run, model, t, wrapped=None):
    (wrapped or model)(torch.full((2, 3), 0.1 * (t % 5 + 1))).square().sum().backward()
    run.step()
    run.eval()
    run.validated({"eval_loss": losses(t)})


def write(state, file):
    """Write a checkpoint such that the file is a whole one at any time."""
    part = file.with_suffix(".part")
    torch.save(state, part)
    part.replace(file)


def saved(run, model):
    return {"model": model.state_dict(), "run": run.state_dict()}


def restored(run, model, file):
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        run.load_state_dict(state["run"])


def loop(recipe, folder, beat):
    model = Net()
    run = started(recipe, model, HORIZON)
    restored(run, model, folder / "run.pt")
    for t in range(run.scheduler.last_epoch, TOTAL):
        beat()
        run.train()
        go(run, model, t)
        write(saved(run, model), folder / "run.pt")
    return model.state_dict()


def data_parallel(folder, beat):
    model = Net()
    run = started(RECIPES[0], model, HORIZON)
    restored(run, model, folder / "run.pt")  # before they wait for one another, so none is written
    wrapped = DistributedDataParallel(model)
    for t in range(run.scheduler.last_epoch, TOTAL):
        beat()
        go(run, model, t, wrapped)
        if dist.get_rank() == 0:
            write(saved(run, model), folder / "run.pt")
    return model.state_dict()


def sharded(folder, beat):
    from support.sharding import load_parts, save_parts, shard, whole_weights

    model = shard(Net())
    # What has never been stepped has no state in a checkpoint of torch's, which misses it then.
    run = started({**RECIPES[0], "groups": RECIPES[0]["groups"][1:]}, model, HORIZON)
    # It writes .metadata last.
    found = [path.parent for path in folder.glob("*/.metadata")]
    if found:
        load_parts(max(found), run, model)
    for t in range(run.scheduler.last_epoch, TOTAL):
        beat()
        go(run, model, t)
        save_parts(folder / f"update-{t:03}", run, model)
    return whole_weights(model)


def lightning(folder, beat):
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import ModelCheckpoint
    from support.lightning_runs import FOLLOWING, Resumable, Tiny, batches, trainer_of

    class Beat(Callback):
        def on_train_batch_start(self, *_):
            beat()

    keep = ModelCheckpoint(folder, "{step:02d}", save_top_k=-1, every_n_train_steps=1)
    # One epoch: of one that goes on from its last batch, Lightning itself counts the next ones wrong
    # in whatever it saves then.
    settings = {"enable_checkpointing": True, "max_epochs": 1, "val_check_interval": 4}
    trainer, module = trainer_of(folder, keep, Beat(), **settings), Tiny(FOLLOWING)
    newest = newest_whole(folder / "none.ckpt")
    trainer.fit(module, Resumable([*batches()] * 3), batches(), ckpt_path=newest)
    return module.state_dict()


def trainer(folder, beat):
    from support.trainers import recipe_trainer
    from transformers import TrainerCallback

    class Beat(TrainerCallback):
        def on_step_begin(self, *_, **__):
            beat()

    schedule = [
        {"name": "LinearLR", "start_factor": 0.1, "for": 4},
        {**PLATEAU, "monitor": "eval_worse"},
    ]
    saving = {"save_strategy": "steps", "save_steps": 1}
    evaluating = {"eval_strategy": "steps", "eval_steps": 1}
    made = recipe_trainer(folder, schedule, callbacks=[Beat()], **saving, **evaluating)
    checkpoint = True if [*folder.glob("checkpoint-*")] else None
    try:
        made.train(resume_from_checkpoint=checkpoint)
    except StateError as error:
        (folder / f"refused-{time.time_ns()}").write_text(str(error))
        whole = str(error).rpartition("resume_from_checkpoint=")[2].strip("'")
        made.train(resume_from_checkpoint=whole if Path(whole).is_dir() else None)
    return made.model.state_dict()


KINDS = {
    **{f"loop {i}": Kind(functools.partial(loop, recipe)) for i, recipe in enumerate(RECIPES)},
    "lightning": Kind(lightning),
    "trainer": Kind(trainer),
    "ddp": Kind(data_parallel, 2, exact=False),
    "fsdp2": Kind(sharded, 2, exact=False),
}


def die_within(save, share, calls):
    """Return a ``torch.save`` that leaves a part of a file, and kills the process, at some call."""
    left = iter(range(calls))

    def dying(state, file, *args, **kwargs):
        if next(left, None) is not None:
            return save(state, file, *args, **kwargs)
        whole = io.BytesIO()
        save(state, whole, *args, **kwargs)
        if isinstance(file, str | os.PathLike):
            Path(file).write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it is dead")

    return dying


def live(kind, folder, rank, store, beat, save):
    """Be a process of a run to its end."""
    try:
        torch.save = save if rank == 0 else torch.save
        if kind.processes > 1:
            files = dist.FileStore(str(store), kind.processes)
            dist.init_process_group("gloo", store=files, rank=rank, world_size=kind.processes)
        weights = kind.life(folder, lambda: os.write(beat, b"."))
        if rank == 0:
            write(weights, folder / "end.pt")
        os._exit(0)
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)


def begin(kind, folder, lives, save=torch.save):
    """Start the processes of a run; return their ids, and where their updates are heard of."""
    heard, beat = os.pipe()
    store, processes = folder / f"store-{lives}", []
    for rank in range(kind.processes):
        process = os.fork()
        if process == 0:
            live(kind, folder, rank, store, beat, save)
        processes.append(process)
    os.close(beat)
    return processes, heard


def failed(end):
    return end[1] not in (0, signal.SIGKILL)


def fail(folder):
    raise SystemExit("\n".join(file.read_text() for file in folder.glob("error-*")))


def killed(kind, folder, lives, source, pause):
    """Begin a run, and kill it at a random moment; return whether it was still under way."""
    within = source.random() < 0.5
    if within:  # as it saves
        save = die_within(torch.save, source.random(), source.randint(0, 5))
        processes, heard = begin(kind, folder, lives, save)
        if failed(os.waitpid(processes.pop(0), 0)):
            fail(folder)
    else:
        processes, heard = begin(kind, folder, lives)
        for _ in range(source.randint(1, 4) * kind.processes):
            os.read(heard, 1)  # nothing, once all have ended
        if [*folder.glob("error-*")]:
            fail(folder)
    os.close(heard)
    source.shuffle(processes)
    for process in processes:
        time.sleep(source.uniform(0, pause))
        os.kill(process, signal.SIGKILL)
    for process in processes:
        os.waitpid(process, 0)
    for error in folder.glob("error-*"):
        error.unlink()  # of one that was waiting for one that was killed
    return not (folder / "end.pt").exists()


def run_on(kind, folder, source, kills, pause):
    """Run to the end, killed on the way; return how often."""
    count = 0
    folder.mkdir()
    while count < kills:
        if not killed(kind, folder, count, source, pause):
            break
        count += 1
    if not (folder / "end.pt").exists():
        processes, heard = begin(kind, folder, count)
        for _ in range(kind.processes):
            end = os.wait()
            processes.remove(end[0])
            if failed(end):
                for process in processes:  # which may wait for the one that has failed
                    os.kill(process, signal.SIGKILL)
                fail(folder)
        os.close(heard)
    return count


def alike(one, other, exact):
    for name, weight in one.items():
        if exact and not torch.equal(weight, other[name]):
            return False
        torch.testing.assert_close(weight, other[name], rtol=1e-6, atol=1e-6)
    return one.keys() == other.keys()


def main(name, folder, seed, kills):
    kind, source = KINDS[name], random.Random(seed)  # noqa: S311 (no secret)
    # What is imported and compiled as it is first used, each fork would import anew.
    with tempfile.TemporaryDirectory() as elsewhere:
        (kind if kind.processes == 1 or name == "fsdp2" else KINDS["loop 0"]).life(
            Path(elsewhere), lambda: None
        )
    begun = time.monotonic()
    run_on(kind, folder / "whole", source, 0, 0.0)
    pause = (time.monotonic() - begun) / TOTAL
    whole = torch.load(folder / "whole" / "end.pt", weights_only=True)
    done = {"kills": 0, "runs": 0, "alike": True}
    while done["kills"] < kills:
        here = folder / f"run-{done['runs']}"
        done["kills"] += run_on(kind, here, source, kills - done["kills"], pause)
        done["runs"] += 1
        done["alike"] &= alike(torch.load(here / "end.pt", weights_only=True), whole, kind.exact)
    done["refused"] = len([*folder.glob("run-*/refused-*")])
    done["seconds"] = round(time.monotonic() - begun)
    print(json.dumps(done))  # noqa: T201 (whoever has started it reads that)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
