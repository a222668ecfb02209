"""Write the tables of optimizers.md: `make optimizers`.

What the optimizers are comes from their classes; the laws, and what an optimizer refuses, from the
tests that hold each of them to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.laws import IN_TWO_PROCESSES, LAWS
from support.optimizer_runs import public, row_of, under_laws

from optimplug._core.optim.profile import Profile, profile_of
from optimplug.show.optimizers import rate, state

PAGE = Path(__file__).parent / "optimizers.md"


def facts() -> str:
    """Return the table of what each optimizer is for, and what it costs."""
    return "\n".join(
        [
            "| optimizer | for | not for | lr / AdamW's | state bytes / parameter | executions "
            "| sharding | paper |",
            "|---|---|---|---|---|---|---|---|",
            *(_facts_row(profile_of(cls)) for cls in public()),
        ]
    )


def _facts_row(profile: Profile) -> str:
    own = profile.facts
    executions, sharding = ", ".join(profile.executions), ", ".join(profile.sharding) or "none"
    cells = [f"`{profile.name}`", own.purpose, own.not_for, rate(profile), state(profile)]
    return f"| {' | '.join([*cells, executions, sharding, f'[{own.paper}]({own.link})'])} |"


def laws() -> str:
    """Return the table of laws: a row for each, a column for each optimizer, notes below."""
    classes, notes = under_laws(), dict[str, int]()
    lines = [
        f"| law | {' | '.join(cls.__name__ for cls in classes)} |",
        f"|---|{'---|' * len(classes)}",
    ]
    for name, law in {**LAWS, **IN_TWO_PROCESSES}.items():
        cells = []
        for cls in classes:
            refusal = row_of(cls).refuses.get(name)
            note = refusal and notes.setdefault(refusal.reason, len(notes) + 1)
            cells.append(f"no ({note})" if note else "yes")
        lines.append(f"| {law.__doc__} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_notes(notes)]).rstrip()


def _notes(notes: dict[str, int]) -> Iterator[str]:
    for reason, number in notes.items():
        yield f"{number}. {reason}"


TABLES = {"facts": facts, "laws": laws}


def written(page: str) -> str:
    """Return the page with its tables written anew, each between two comments of its name."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        around = re.compile(rf"(?<={re.escape(begin)}).*(?={re.escape(end)})", re.DOTALL)
        page, found = around.subn(lambda _, table=table: f"\n{table()}\n\n", page)
        if found != 1:
            raise SystemExit(f"{PAGE.name} must have {begin.strip()} and {end} once")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
