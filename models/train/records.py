"""Rows of JSON behind a line that says what they were made by: hours of measuring go on where they were stopped.

Flow: calibrate | benchmarks > [records] > models/calibration.jsonl, docs/benchmarks/registration.jsonl
Never: rows of two versions in one file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def make_version(parts: Iterable[bytes]) -> str:
    """Return a checksum of all that rows depend on."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]


def continue_records(path: Path, version: str) -> list[dict[str, Any]]:
    """Return the rows that a file holds if they are of this version; begin the file anew otherwise."""
    first, *rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else ["{}"]
    if json.loads(first).get("version") == version:
        return [json.loads(row) for row in rows]
    path.write_text(json.dumps({"version": version}) + "\n", encoding="utf-8")
    return []


def append_records(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows, all or, if it is stopped before, none."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
