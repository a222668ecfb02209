"""Checkpoints of torch.distributed.checkpoint, of a run in one process or sharded over several."""

import json

import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def shard(model):
    """Shard each part of a model, and the rest, over all processes; in one alone, return it."""
    if dist.is_initialized():
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for part in (*model.children(), model):
            fully_shard(part, mesh=mesh)
    return model


def whole_weights(model):
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def save_parts(path, run, model):
    """Save tensors by name, each process its parts; groups and schedule are plain values."""
    weights, state = get_state_dict(model, run.optimizer)
    plain = json.dumps([state["param_groups"], run.scheduler.state_dict()])
    parts = {"weights": weights, "state": state["state"], "plain": plain}
    checkpoint.save(parts, checkpoint_id=str(path))


def load_parts(path, run, model, resume=None):
    """Go on from it, however many processes have saved it, and however groups were cut."""
    weights, state = get_state_dict(model, run.optimizer)
    parts = {"weights": weights, "state": state["state"], "plain": ""}
    checkpoint.load(parts, checkpoint_id=str(path))
    set_model_state_dict(model, parts["weights"])
    return go_on(run, parts["state"], parts["plain"], resume)


def go_on(run, state, plain, resume):
    groups, schedule = json.loads(plain)
    optimizer = {"state": state, "param_groups": groups}
    return run.load_state_dict({"optimizer": optimizer, "scheduler": schedule}, resume)


WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole_state(run, model):
    """Return all that is needed to go on, with whole tensors; in other processes than the first, {}."""
    weights, state = get_state_dict(model, run.optimizer, options=WHOLE)
    if not state:
        return {}
    plain = json.dumps([state["param_groups"], run.scheduler.state_dict()])
    return {"weights": weights, "state": state["state"], "plain": plain}
