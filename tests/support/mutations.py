"""A good state, changed at random into what somebody else might hand over."""

import copy
import math

import torch

ODD = [
    None, True, False, 0, 1, -1, 2**70, 0.5, -0.0, math.nan, math.inf, "", "x", "groups[0]", "é" * 300,
    b"x", (), [], {}, [[]], {"a": 1}, [None], ["x"], {0: 0}, set(), complex(1, 2),
    torch.zeros(()), torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.full((4, 3), math.nan),
    torch.zeros(4, 3, device="meta"), torch.zeros(0), torch.ones(4, 3, dtype=torch.complex64),
    torch.zeros(4, 3).to_sparse(), torch.tensor("x" == "x"), torch.Size([1]), torch.float32,
]  # fmt: skip


def mutated(state, random):
    """Return a copy of a nested state with one to three changes somewhere in it."""
    state = copy.deepcopy(state)
    for _ in range(random.randint(1, 3)):
        _mutate(*random.choice(list(_places(state))), random)
    return state


def _places(node, depth=0):
    """Walk all places of nested dicts and lists: what holds them, and where in it."""
    if isinstance(node, dict | list) and depth < 8:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from _places(node[key], depth + 1)


def _mutate(holder, key, random):
    how = random.randrange(7)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[random.choice([0, 1, "x", "step", "params", "lr", (1,), None, 2.5])] = holder.pop(
            key
        )
    elif how == 2 and isinstance(holder, dict):
        holder[random.choice([99, "y", "param_names", "name", "freeze"])] = random.choice(ODD)
    elif how == 3 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif how == 4 and isinstance(holder[key], dict | list):
        holder[key] = random.choice([{}, [], holder])  # even itself
    else:
        holder[key] = random.choice(ODD)
