"""Finds the lines at which the tables and keys of a TOML text stand; tomllib and tomlkit do not tell.

Flow: settings_file|settings_edit > [toml_lines] > tomllib
Never: a text that tomllib has not accepted; a parser of its own, tomllib reads each piece.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Entry:
    """A table's header or one `key = value`; lines count from 1, `end` is the last one."""

    table: Key
    keys: tuple[Key, ...]  # what a `key = value` sets, below the table; none for a header
    start: int
    end: int


def find_entries(text: str) -> Iterator[Entry]:
    """Yield the headers and values of a valid TOML text in their order."""
    table: Key = ()
    counts: dict[Key, int] = {}
    rows = text.splitlines()
    number = 0
    while number < len(rows):
        row = rows[number].strip()
        start = number + 1
        number += 1
        if row.startswith("["):
            table = _table_key(row, counts)
            yield Entry(table, (), start, start)
        elif row and not row.startswith("#"):
            while (value := _try_loads(row)) is None:  # it goes on over several lines
                row += "\n" + rows[number]
                number += 1
            yield Entry(table, tuple(_find_keys(value, ())), start, number)


def find_lines(text: str) -> dict[Key, int]:
    """Return the line, from 1, at which each table and key of a valid TOML text begins."""
    lines: dict[Key, int] = {}
    for entry in find_entries(text):
        for key in entry.keys or ((),):
            lines.setdefault(entry.table + key, entry.start)
    return lines


def _table_key(row: str, counts: dict[Key, int]) -> Key:
    """Return the key of a `[table]` or `[[table]]` row, with the number of each list it stands in."""
    value: Any = tomllib.loads(row)
    key: Key = ()
    while value:
        name, value = next(iter(value.items()))
        key += (name,)
        if isinstance(value, list):
            counts[key] = counts.get(key, -1) + 1
            value = value[0]
        if key in counts:
            key += (counts[key],)
    return key


def _try_loads(row: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(row)
    except tomllib.TOMLDecodeError:
        return None


def _find_keys(value: object, key: Key) -> Iterator[Key]:
    """Yield the key of every value, tables and lists included."""
    if key:
        yield key
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _find_keys(part, (*key, name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _find_keys(part, (*key, number))
