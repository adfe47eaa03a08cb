"""The diagrams of states in the pages are those of the tables that the node moves by.

Flow: database/jobs, database/outbox, database/notices > [test_states] > docs/operations.md
Never: a diagram drawn by hand: a failure prints what the page should hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path

import pytest

from dicomnode.cli.arguments import LISTINGS
from dicomnode.database.jobs import JOB_MOVES, JOB_MOVES_BY_PERSON
from dicomnode.database.notices import NOTICE_MOVES, NOTICE_MOVES_BY_PERSON
from dicomnode.database.outbox import OUTBOX_MOVES, OUTBOX_MOVES_BY_PERSON

Moves = Mapping[str, Set[str]]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
TABLES: Mapping[str, tuple[str, Moves, Moves]] = {
    "jobs": ("waiting", JOB_MOVES, JOB_MOVES_BY_PERSON),
    "outbox": ("owed", OUTBOX_MOVES, OUTBOX_MOVES_BY_PERSON),
    "notices": ("owed", NOTICE_MOVES, NOTICE_MOVES_BY_PERSON),
}


def draw(first: str, moves: Moves, by_person: Moves) -> str:
    """Return the diagram of a table of states."""
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    lines += [f"    {old} --> {new}" for old, allowed in moves.items() for new in sorted(allowed)]
    lines += [f"    {old} --> {new}: a person" for old, allowed in by_person.items() for new in sorted(allowed)]
    return "\n".join(lines)


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_the_table(name: str) -> None:
    drawn = draw(*TABLES[name])
    assert drawn in re.findall(r"```mermaid\n(.*?)\n```", PAGE, re.DOTALL), f"docs/operations.md needs\n{drawn}"


@pytest.mark.parametrize("name", TABLES)
def test_every_state_of_the_table_can_be_listed(name: str) -> None:
    _, moves, by_person = TABLES[name]
    reached = {state for allowed in (*moves.values(), *by_person.values()) for state in allowed}
    assert reached | moves.keys() == set(LISTINGS[name][2])
