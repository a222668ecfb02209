"""Each operation of the table alone: how it is called, and a rule that is nothing else."""

from dataclasses import dataclass

import torch

from optimplug._core.optim.batch import Batch, Cell, Form
from optimplug._core.optim.executions.ops import apply
from optimplug._core.optim.rule import Rule, StateSpec

# Those of the bits of a number, through which nothing flows; see test_bits.py.
ON_BITS = {
    "finite_or": lambda x, y, z, k: x(y),
    "narrowed": lambda x, y, z, k: x(),
    "visible": lambda x, y, z, k: x(),
    "hidden": lambda x, y, z, k: x(),
    "joined": lambda x, y, z, k: x(y),
    "drawn": lambda x, y, z, k: x(y),
}
# How each is called: on x, with the operands y and z, and the number k.
CALLS = {
    "copy": lambda x, y, z, k: x(y),
    "neg": lambda x, y, z, k: x(),
    "abs": lambda x, y, z, k: x(),
    "sqrt": lambda x, y, z, k: x(),
    "rsqrt": lambda x, y, z, k: x(),
    "reciprocal": lambda x, y, z, k: x(),
    "sign": lambda x, y, z, k: x(),
    "add": lambda x, y, z, k: x(y, alpha=k),
    "mul": lambda x, y, z, k: x(k),
    "div": lambda x, y, z, k: x(k),
    "lerp": lambda x, y, z, k: x(y, k),
    "maximum": lambda x, y, z, k: x(y),
    "minimum": lambda x, y, z, k: x(y),
    "clamp_min": lambda x, y, z, k: x(y),
    "clamp_max": lambda x, y, z, k: x(y),
    "addcmul": lambda x, y, z, k: x(y, z, value=k),
    "addcdiv": lambda x, y, z, k: x(y, z, value=k),
    **ON_BITS,
}
MORE = {
    "at least a number": ("clamp_min", lambda x, y, z, k: x(k)),
    "at most a number": ("clamp_max", lambda x, y, z, k: x(k)),
    "a number is added": ("add", lambda x, y, z, k: x(k)),
    "one is added as it is": ("add", lambda x, y, z, k: x(y)),
    "one is multiplied by another": ("mul", lambda x, y, z, k: x(y)),
}
CASES = {**{name: (name, call) for name, call in CALLS.items()}, **MORE}


def call(case, x, y, z, k, in_place=False):
    name, how = CASES[case]
    if name == "copy" and isinstance(x, torch.Tensor):
        return y.clone()  # a tensor's own is in place alone
    if isinstance(x, torch.Tensor) and name in ON_BITS:
        return how(lambda *others: apply(name, x, *others), y, z, k)
    return how(getattr(x, name + "_" * in_place), y, z, k)


def values(case):
    generator = torch.Generator().manual_seed(0)
    x, *others = [[torch.rand(n, generator=generator) + 0.5 for n in (1, 4, 9)] for _ in range(3)]
    if CASES[case][0] in ("abs", "neg", "sign"):
        x = [t * torch.tensor([-1.0, 1.0]).repeat(9)[: len(t)] for t in x]
    if CASES[case][0] in ("joined", "drawn"):  # with whole numbers
        others = [[(t * 10_000).floor() for t in ts] for ts in others]
    return [x, *others]


@dataclass(frozen=True)
class OneOperation(Rule):
    """A rule that is a single operation, so that what is compiled is that alone."""

    case: str
    state = (StateSpec("z"),)

    def coefficients(self, hyper, t):
        return {"k": 0.3}

    def update(self, p, g, state, k):
        result = call(self.case, p, g, state["z"], k["k"])
        p.mul_(0.0).add_(result)


def check_alone(execution, case, dtype, device="cpu"):
    """Hold an execution of a single operation to Tensor's own."""
    x, y, z = (row[2].to(device, dtype) for row in values(case))
    expected = call(case, x, y, z, 0.3)
    cell = Cell(0, None, False, part=slice(0, 1))
    batch = Batch(
        OneOperation(case), [cell], [{}], [x], [y], {"z": [z]}, [], False, {}, [x], Form.of(x)
    )
    execution.prepare(batch).run(None, None)
    tight = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(x, expected, rtol=tight, atol=0)
