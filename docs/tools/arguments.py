"""The page of all arguments that a recipe may give to optimizers, schedulers and presets."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

from optimplug.optim import lr_scheduler
from optimplug.recipe.json_schema import json_schema

VALUES = {
    "adjust_lr_fn": "match_rms_adamw",
    "beta1": "0.9",
    "beta3": "0.99",
    "decay_type": "cosine",
    "factor": "0.5",
    "foreach": "false",
    "fused": "true",
    "gamma": "0.5",
    "growth_rate": "1.02",
    "line_search_fn": "strong_wolfe",
    "lr_end": "1e-6",
    "max_eval": "25",
    "max_grad_norm": "1.0",
    "momentum": "0.9",
    "milestones": "[40%, 80%]",
    "min_lr": "1e-5",
    "min_lr_rate": "0.1",
    "min_lr_ratio": "0.1",
    "num_cycles": "1",
    "num_decay_steps": "20%",
    "num_stable_steps": "50%",
    "relative_step": "false",
    "split": "2",
    "start_factor": "0.1",
    "state_dtype": "8bit",
    "step_size": "10 steps",
    "step_size_down": "20 steps",
    "step_size_up": "10 steps",
    "t0": "1e6",
    "t_alpha": "100%",
    "t_beta3": "100%",
    "T_0": "1 epoch",
    "T_max": "50 steps",
    "timescale": "100 steps",
    "total_iters": "50 steps",
    "total_steps": "50 steps",
    "warmup_lr_rate": "0.1",
    "warmup_steps": "6%",
    "warmup_type": "cosine",
}
"""Examples of arguments that have no default, or whose default shows nothing."""


def page_of_arguments() -> str:
    """Return the page of all arguments of optimizers, schedulers and presets, by name."""
    parts = json_schema()["$defs"]
    text = (
        "# Arguments of optimizers and schedules\n\nWhat may stand beside `name` or `preset` in "
        "a recipe, with an example, and for whom. What each of them means for an optimizer is on "
        "its page.\n"
    )
    for title, part in (("Under optimizer", "OptimizerSpec"), ("In a schedule", "PhaseSpec")):
        text += f"\n## {title}\n\n| key | example | for |\n|---|---|---|\n"
        every = set(_owners(parts[part]))
        for key, users in sorted(users_of_arguments(parts[part]).items()):
            others = sorted(every - set(users))
            names = ", ".join(f"`{name}`" for name in (others if len(others) < 6 else users))
            owners = f"all but {names}" if 0 < len(others) < 6 else names or "all"
            text += f"| `{key}` | {as_cell(f'`{argument_example(key, users)}`')} | {owners} |\n"
    return text


def _owners(part: dict[str, Any]) -> Iterator[str]:
    for case in part["allOf"]:
        for named in case["if"].get("properties", {}).values():
            yield named["const"]


def users_of_arguments(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the arguments in a part of the schema: each with the form that its classes give it."""
    found: dict[str, dict[str, Any]] = {}
    for case in part["allOf"]:
        named = next(iter(case["if"].get("properties", {}).values()), None)
        for key, form in case["then"].get("properties", {}).items() if named else ():
            found.setdefault(key, {})[named["const"]] = form
    return found


def argument_example(key: str, users: dict[str, dict[str, Any]]) -> str:
    """Return an argument with a value: one of ours, its default, or one of those that it takes."""
    if key in VALUES:
        return f"{key}: {VALUES[key]}"
    for name, form in users.items():
        value = form.get("default", next(iter(form.get("enum", [])), None))
        if value is None and hasattr(lr_scheduler, name):
            found = inspect.signature(getattr(lr_scheduler, name)).parameters[key].default
            value = None if found is inspect.Parameter.empty else found
        if value is not None:
            return f"{key}: {json.dumps(value).strip(chr(34))}"
    raise KeyError(f"the page of arguments needs an example of {key}: give it one in VALUES")


def as_cell(text: str) -> str:
    """Return a text as it can stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ").strip()
