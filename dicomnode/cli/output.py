"""Shows rows and records: a table for a person, JSON for a program.

Flow: cli's commands > [output] > standard output
Never: a control character of the data on a terminal: descriptions and reasons come from other machines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicomnode.logs import escape

WIDE = 400  # characters of a line that no terminal shows: a row is one line, for grep
INSTANT_SUFFIXES = ("_at", "_until", "not_before")


def write_json(value: object) -> None:
    """Write one JSON value to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")


def write_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], empty: str) -> None:
    """Write rows as a table of some of their columns, or the line `empty`."""
    if not rows:
        sys.stdout.write(f"{empty}\n")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(row[column])) for column in columns))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def write_record(record: Mapping[str, Any]) -> None:
    """Write one record, a line for each of its fields that is not empty."""
    width = max(len(name) for name in record)
    for name, value in record.items():
        if value not in ("", None, [], {}):
            sys.stdout.write(f"{name.replace('_', ' '):<{width}}  {show(value)}\n")


def show_instants(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its instants, UTC epoch seconds, as ISO 8601."""
    return {
        name: datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds")
        if isinstance(value, float) and name.endswith(INSTANT_SUFFIXES)
        else value
        for name, value in record.items()
    }


def show(value: object) -> str:
    """Return a value as one line without control characters."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return escape(text)
