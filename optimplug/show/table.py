"""A plan as a table: in colours in a terminal, or as plain text."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from optimplug._core.optim.memory import Memory
from optimplug.recipe.parameters.groups import Group as ParameterGroup
from optimplug.recipe.plan import Plan, Rates
from optimplug.show.printed import printed
from optimplug.show.summary import bytes_cell, summary, title

__all__ = ["as_text", "render"]


def render(plan: Plan) -> RenderableType:
    """Return what rich prints for a plan: a row for each group, notes below, and what it takes."""
    return Group(_table(plan), *_notes(plan), _memory(plan), *_warnings(plan))


def as_text(plan: Plan) -> str:
    """Return the same without colours, and without the blanks that fill up lines."""
    return printed(render(plan))


def _table(plan: Plan) -> Table:
    others = _hyperparameters(plan)
    table = Table(box=box.SIMPLE_HEAD, title=Text(title(plan)), title_justify="left")
    # In a narrow terminal names are folded, and numbers stay whole.
    table.add_column("group", overflow="fold", min_width=16)
    for column in ("tensors", "parameters", "lr start", "peak", "end", *others):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("rules")
    for group, rates in zip(plan.groups, plan.rates(), strict=True):
        table.add_row(*_row(plan, group, rates, others))
    return table


def _row(
    plan: Plan, group: ParameterGroup, rates: Rates, others: list[str]
) -> Iterator[RenderableType]:
    # A name is wrapped as Text, or rich would take "[bold]" in it for markup.
    yield Text(group.name)
    yield str(len(group.parameters))
    yield f"{group.numel:,}"
    yield from (f"{rate:.3g}" for rate in rates)
    yield from (Text(_cell(plan, group, key)) for key in others)
    yield ", ".join(map(str, group.rules))


def _cell(plan: Plan, group: ParameterGroup, key: str) -> str:
    value = plan.setting(group, key)
    has_none = value is None and key not in group.optimizer.hyperparameters
    return "" if has_none else str(value)


def _hyperparameters(plan: Plan) -> list[str]:
    """Return the hyperparameters with a column: what rules have set, and the weight decay."""
    found = {key for group in plan.groups for key in group.settings if key != "lr"}
    return sorted(found | ({"weight_decay"} & plan.optimizers.hyperparameters.keys()))


def _notes(plan: Plan) -> Iterator[Text]:
    for line in summary(plan):
        yield Text(f"  {line}")
    for name in plan.grouping.frozen:
        yield Text(f"  frozen: {name}")
    for names in plan.tied:
        yield Text(f"  tied: {' = '.join(names)}")


def _memory(plan: Plan) -> Table:
    """Return the bytes of every group. The names come last, as they may be long."""
    table = Table(box=box.SIMPLE_HEAD, title="memory, in bytes", title_justify="left")
    for column in Memory._fields:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("of", overflow="fold", min_width=16)
    for group, memory in zip(plan.groups, plan.memory, strict=True):
        table.add_row(*map(bytes_cell, memory), Text(group.name))
    table.add_section()
    table.add_row(*map(bytes_cell, plan.total_memory), "all groups")
    if plan.grouping.frozen:
        table.add_row(bytes_cell(plan.frozen_bytes), "", "", "what is frozen")
    return table


def _warnings(plan: Plan) -> Iterator[Text]:
    for warning in plan.warnings:
        yield Text(f"  warning: {warning}", style="yellow")
