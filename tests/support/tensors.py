"""Tensors and optimizers that several tests share; no trainer is imported for them."""

import torch
from torch import nn


def parameters(shapes=((3, 4), (7,), (5, 5, 2), ()), dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(s, generator=generator, device="cpu") for s in shapes]
    return [nn.Parameter(value.to(device, dtype)) for value in values]


def descend(optimizer, steps, skip=True, seed=2, rounding=torch.float32):
    """Step with random gradients, that ``rounding`` can hold; each is missing now and then."""
    generator = torch.Generator().manual_seed(seed)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=generator).to(rounding).to(p.device, p.dtype)
            p.grad = None if skip and (step + i) % 5 == 0 else g
        optimizer.step()
    return [p.detach().clone() for p in params]


def same_bits(a, b):
    """Equal in every bit: a NaN equals the same NaN, and 0.0 is not -0.0."""
    return a.dtype == b.dtype and a.shape == b.shape and bytes_of(a) == bytes_of(b)


def bytes_of(tensor):
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same_weights(model, other):
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    return all(n == m and same_bits(a, b) for (n, a), (m, b) in pairs)
