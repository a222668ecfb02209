"""Functions of a test that run in two processes of one group, and the end of such a process."""

import os
import sys
import tempfile

import torch
import torch.distributed as dist


def in_two_processes(function, *args):
    """Call ``function(*args)`` in two processes of one group; return what either has returned."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_be_one_of_two, (folder, function, args), nprocs=2)
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]


def _be_one_of_two(rank, folder, function, args):
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(function(*args), f"{folder}/{rank}.pt")
    leave()


def leave():
    """End this process, whose work is done and saved.

    A wrapped model may still hold the group, whose threads can abort a process that Python takes
    apart at its end ("terminate called without an active exception"): so Python is not asked to.
    """
    if dist.is_initialized():
        dist.barrier()  # neither leaves while the other still waits for it
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
