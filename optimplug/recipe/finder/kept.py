"""What a trial run may change, and is put back after it: to the last bit."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from optimplug._core.internals import buffers_by_name
from optimplug.errors import ArgumentError
from optimplug.recipe.parameters.frozen import kept_freezings

__all__ = ["apart", "kept"]


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Put back what happens to a model, and to the random numbers, within the block.

    That is weights, buffers, gradients, what requires them, modes, extra state, and the states of
    Python's, NumPy's and torch's generators on every device. It takes the memory of the weights and
    buffers once more.
    """
    with ExitStack() as stack:
        _keep_random_numbers(stack)
        stack.enter_context(kept_freezings(model))
        for module in model.modules():
            _keep_module(stack, module)
        for parameter in model.parameters():
            _keep_parameter(stack, parameter)
        yield


def apart(batches: Iterable[Any]) -> Iterable[Any]:
    """Return the same batches, such that iterating over them does not move the given ones on.

    A DataLoader's place is in its sampler and its generators, of which this has copies. It loads in
    this process, as workers that persist would have other random numbers after it.

    Raises:
        ArgumentError: they are an iterator, whose batches would be missing in the run itself.
    """
    if isinstance(batches, DataLoader):
        return _loader_apart(batches)
    if isinstance(batches, Iterator) or not isinstance(batches, Iterable):
        raise ArgumentError(
            "batches must be what gives them anew each time it is iterated over, such as a "
            "DataLoader or a list: of an iterator, those that are taken here would be missing in "
            f"the run (got a {type(batches).__name__})"
        )
    return batches


def _loader_apart(loader: DataLoader[Any]) -> DataLoader[Any]:
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        apart(dataset)
        place: dict[str, Any] = {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    else:
        # Everything but the data themselves, which may be large, and which nobody changes.
        memo = {id(dataset): dataset}
        batched = loader.batch_sampler is not None
        sampler = copy.deepcopy(loader.batch_sampler if batched else loader.sampler, memo)
        place = {"batch_sampler": sampler} if batched else {"batch_size": None, "sampler": sampler}
    return DataLoader(dataset, collate_fn=loader.collate_fn, **place)


def _keep_random_numbers(stack: ExitStack) -> None:
    stack.callback(random.setstate, random.getstate())
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        stack.callback(numpy.random.set_state, numpy.random.get_state())
    device = torch.accelerator.current_accelerator()
    if device is None:
        stack.enter_context(torch.random.fork_rng(devices=[]))
    elif device.type == "mps":  # the one that has a generator, but no number of devices
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
    else:
        devices = range(torch.accelerator.device_count())
        stack.enter_context(torch.random.fork_rng(devices, device_type=device.type))


def _keep_module(stack: ExitStack, module: nn.Module) -> None:
    stack.callback(setattr, module, "training", module.training)
    stack.callback(_put_back_buffers, module, dict(buffers_by_name(module)))
    for buffer in buffers_by_name(module).values():
        if buffer is not None:
            stack.callback(_write, buffer, buffer.detach().clone())
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        stack.callback(module.set_extra_state, copy.deepcopy(module.get_extra_state()))


def _put_back_buffers(module: nn.Module, buffers: dict[str, Tensor | None]) -> None:
    """Put the same tensors in their places; a forward may have put others there, or made some."""
    own = buffers_by_name(module)
    own.clear()
    own.update(buffers)


def _keep_parameter(stack: ExitStack, parameter: nn.Parameter) -> None:
    stack.callback(_write, parameter, parameter.detach().clone())
    stack.callback(setattr, parameter, "grad", parameter.grad)
    parameter.grad = None  # so that nothing is added to the one that was there


@torch.no_grad()
def _write(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value)
