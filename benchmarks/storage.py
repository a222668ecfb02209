"""Moments in eight bits here, in bitsandbytes and in torchao: errors, bytes, and time.

The errors are those of the moments after some updates of MiniLM on real texts, in which everyone
is given the same gradients; the truth is AdamW's moments in float64. Bytes are those of the state.
Times are taken side by side, as in ``optimizers.py``.

bitsandbytes and torchao take part where they are installed: ``pip install --no-deps bitsandbytes
torchao``.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from optimizers import MODELS, Shapes, machine, narrowed, parameters, race, ratio
from rich.console import Console
from rich.table import Table
from torch import Tensor

from optimplug import Horizon, Recipe
from optimplug.optim import AdamW

sys.path.append(str(Path(__file__).parents[1] / "examples" / "docstrings"))

Rows = dict[str, list[Tensor]]
"""Of each parameter, the gradient of every update."""
WATCHED = (
    "embeddings.word_embeddings.weight",
    "layer.0.attention.self.query.weight",
    "layer.2.intermediate.dense.weight",
    "layer.3.attention.output.dense.weight",
    "layer.5.output.dense.weight",
)
SLICE = 128 * 1024
"""The elements of each that are watched, from its middle."""
BETAS = (0.9, 0.999)


class Contender(NamedTuple):
    """An optimizer with small states, and how its moments are read."""

    name: str
    build: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    moments: Callable[[dict[str, Any]], tuple[Tensor, Tensor]]


def contenders() -> Iterator[Contender]:
    """Return ours, and whoever else is installed."""
    for dtype in ("float32", "bfloat16", "8bit"):
        yield Contender(
            f"ours, {dtype}", ours(dtype), lambda kept: (kept["exp_avg"], kept["exp_avg_sq"])
        )
    if importlib.util.find_spec("torchao"):
        from torchao.optim import AdamW8bit

        def dequantized(kept: dict[str, Any]) -> tuple[Tensor, Tensor]:
            return kept["exp_avg"].dequantize(), kept["exp_avg_sq"].dequantize()

        yield Contender(
            "torchao, AdamW8bit", lambda params: AdamW8bit(params, lr=1e-4), dequantized
        )
    if importlib.util.find_spec("bitsandbytes"):
        from bitsandbytes.functional import dequantize_blockwise
        from bitsandbytes.optim import AdamW8bit as BitsAndBytes

        def decoded(kept: dict[str, Any]) -> tuple[Tensor, Tensor]:
            first, second = (
                dequantize_blockwise(
                    kept[f"state{i}"],
                    absmax=kept[f"absmax{i}"],
                    code=kept[f"qmap{i}"],
                    blocksize=256,
                )
                for i in (1, 2)
            )
            return first, second

        yield Contender(
            "bitsandbytes, AdamW8bit", lambda params: BitsAndBytes(params, lr=1e-4), decoded
        )


def ours(dtype: str, **options: Any) -> Callable[[list[torch.nn.Parameter]], AdamW]:
    """Return what builds ours."""
    return lambda params: AdamW(params, lr=1e-4, state_dtype=dtype, **options)


def gradients(updates: int) -> Rows:
    """Fine-tune MiniLM on docstrings and return the gradients of some of its parameters."""
    import task

    parser = task.arguments("")
    given = parser.parse_args(["--train", "400", "--held-out", "8"])
    work = task.task_from(parser, given)
    model = work.model().train()
    watched = {n: p for n, p in model.named_parameters() if n.endswith(WATCHED)}
    run = Recipe.load(work.recipe).start(model, Horizon(updates, updates))
    found: Rows = {name: [] for name in watched}
    while True:
        for batch in work.train_batches():
            model(**batch).loss.backward()
            for name, p in watched.items():
                flat = p.grad.flatten()
                start = max(0, (len(flat) - SLICE) // 2) // 256 * 256
                found[name].append(flat[start : start + SLICE].clone())
            if len(found[name]) == updates:
                return found
            run.step()


def errors(grads: Rows) -> Iterator[tuple[str, str, float, float, float]]:
    """Yield for each contender and parameter the errors of both moments, and of the update.

    Each is the mean error as a share of the mean magnitude.
    """
    for contender in contenders():
        params = [torch.nn.Parameter(torch.zeros(len(rows[0]))) for rows in grads.values()]
        optimizer = contender.build(params)
        for row in zip(*grads.values(), strict=True):
            for p, g in zip(params, row, strict=True):
                p.grad = g.clone()
            optimizer.step()
        saved = optimizer.state_dict()["state"] if isinstance(optimizer, AdamW) else None
        for i, (p, (name, rows)) in enumerate(zip(params, grads.items(), strict=True)):
            kept = optimizer.state[p] if saved is None else saved[i]
            m, v = (value.double().flatten() for value in contender.moments(kept))
            exact_m, exact_v = truth(rows)
            update, exact = step_of(m, v, len(rows)), step_of(exact_m, exact_v, len(rows))
            yield (
                contender.name,
                name.removeprefix("bert.").removesuffix(".weight"),
                *(share(a, b) for a, b in ((m, exact_m), (v, exact_v), (update, exact))),
            )


def truth(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return AdamW's moments in float64."""
    m = torch.zeros(len(rows[0]), dtype=torch.float64)
    v = torch.zeros_like(m)
    for g in rows:
        m.mul_(BETAS[0]).add_(g.double(), alpha=1 - BETAS[0])
        v.mul_(BETAS[1]).addcmul_(g.double(), g.double(), value=1 - BETAS[1])
    return m, v


def step_of(m: Tensor, v: Tensor, t: int) -> Tensor:
    """Return AdamW's update, for a rate of 1."""
    return m / (1 - BETAS[0] ** t) / ((v / (1 - BETAS[1] ** t)).sqrt() + 1e-8)


def share(found: Tensor, exact: Tensor) -> float:
    """Return the mean error as a share of the mean magnitude."""
    return float((found - exact).abs().mean() / exact.abs().mean())


def weight(shapes: Shapes) -> Iterator[tuple[str, float]]:
    """Yield the bytes per parameter of weight and state, of each way to keep them."""
    for name, dtype, options in (
        ("float32", torch.float32, {}),
        ("float32, 8bit", torch.float32, {"state_dtype": "8bit"}),
        ("bfloat16, exact, 8bit", torch.bfloat16, {"rounding": "exact", "state_dtype": "8bit"}),
        (
            "bfloat16, stochastic, 8bit",
            torch.bfloat16,
            {"rounding": "stochastic", "state_dtype": "8bit"},
        ),
        ("bfloat16, exact", torch.bfloat16, {"rounding": "exact"}),
    ):
        params = narrowed(parameters(shapes, "cpu"), dtype)
        optimizer = AdamW(params, lr=1e-4, **options)
        optimizer.step()
        kept = sum(v.nbytes for state in optimizer.state.values() for v in state.values())
        count = sum(p.numel() for p in params)
        yield name, (kept + sum(p.nbytes for p in params)) / count


def times(shapes: Shapes, rounds: int, everyone: bool) -> Iterator[tuple[str, str, float]]:
    """Yield who, against whom, and the median of the ratios of their times."""
    narrow = torch.bfloat16
    ways: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
        "float32": (torch.float32, {}),
        "8bit": (torch.float32, {"state_dtype": "8bit"}),
        "bfloat16": (narrow, {}),
        "bfloat16, exact": (narrow, {"rounding": "exact"}),
        "bfloat16, exact, 8bit": (narrow, {"rounding": "exact", "state_dtype": "8bit"}),
    }
    steps = [
        AdamW(narrowed(parameters(shapes, "cpu"), dtype), lr=1e-4, **options).step
        for dtype, options in ways.values()
    ]
    taken = dict(zip(ways, race(steps, rounds, lambda: None), strict=True))
    yield "8bit", "float32", ratio(taken["8bit"], taken["float32"])
    yield "bfloat16, exact", "bfloat16", ratio(taken["bfloat16, exact"], taken["bfloat16"])
    yield (
        "bfloat16, exact, 8bit",
        "float32",
        ratio(taken["bfloat16, exact, 8bit"], taken["float32"]),
    )
    for other in contenders() if everyone else ():
        if not other.name.startswith("ours"):
            step = other.build(parameters(shapes, "cpu")).step
            here, there = race([steps[1], step], 4, lambda: None)
            yield other.name, "8bit", ratio(there, here)


def show(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]], out: Path) -> None:
    """Print a table, and append it to a file."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if isinstance(rows[0][i], str) else "right")
    texts = [[cell if isinstance(cell, str) else f"{cell:.4f}" for cell in row] for row in rows]
    for text in texts:
        table.add_row(*text)
    Console(width=120).print(table)
    lines = [f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(text)} |" for text in texts]
    with out.open("a") as file:
        file.write("\n".join([*lines, "", ""]))


def main() -> None:
    """Measure everything, print the tables, and leave them in the folder given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--fast", action="store_true", help="do not wait for the others' steps")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out / "storage.md"
    out.write_text(f"{machine('cpu')}\n\n")
    shapes = MODELS["MiniLM"]
    show(
        "Bytes per parameter, AdamW on MiniLM",
        ("weight, storage", "bytes"),
        list(weight(shapes)),
        out,
    )
    found = list(errors(gradients(given.updates)))
    columns = ("optimizer", "parameter", "first moment", "second moment", "update")
    show(f"Mean errors after {given.updates} updates", columns, found, out)
    rows = list(times(shapes, given.rounds, not given.fast))
    show("Times, MiniLM's shapes", ("step", "against", "time / time"), rows, out)


if __name__ == "__main__":
    main()
