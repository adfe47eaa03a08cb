"""Shows rows and records: a table for a person, JSON for a program.

Flow: cli's commands > [output] > standard output
Never: a control character of the data on a terminal: descriptions and reasons come from other machines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
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
    """Write rows as a table of some of their columns, or the line `empty`.

    Where a terminal is too narrow for a table, each row is a record: half a UID cannot be copied into a command.
    """
    if not rows:
        sys.stdout.write(f"{empty}\n")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=column.endswith("_uid"))
    for row in rows:
        table.add_row(*(Text(show(_shorten(column, row[column]))) for column in columns))
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    if console.measure(table, options=console.options.update(max_width=WIDE)).minimum <= console.width:
        console.print(table)
        return
    for row in rows:
        write_record({column: row[column] for column in columns})
        sys.stdout.write("\n")


def _shorten(column: str, value: object) -> object:
    """Return an instant of `show_instants` to the second, any other value as it is."""
    if column.endswith(INSTANT_SUFFIXES) and isinstance(value, str):
        return f"{datetime.fromisoformat(value):%Y-%m-%d %H:%M:%SZ}"
    return value


def write_record(record: Mapping[str, Any]) -> None:
    """Write one record, a line for each of its fields that is not empty, and for each field of what it holds."""
    lines = dict(_flatten(record))
    width = max(map(len, lines), default=0)
    for name, value in lines.items():
        sys.stdout.write(f"{name:<{width}}  {show(value)}\n")


def _flatten(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        shown = f"{prefix}{name}" if prefix else name.replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{shown}: ")
        elif value not in ("", None, []):
            yield shown, value


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
