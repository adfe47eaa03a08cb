"""Rows are read again while they are of one version, and never mixed with another's.

Flow: models.train.records > [test_records]
Never: a measurement.
"""

from __future__ import annotations

from pathlib import Path

from models.train.records import append_records, continue_records


def test_rows_are_read_again_only_if_they_are_of_this_version(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert continue_records(path, "one") == []

    append_records(path, [{"kind": "blobs"}, {"kind": "phantom"}])
    append_records(path, [{"kind": "mirrored"}])

    assert [row["kind"] for row in continue_records(path, "one")] == ["blobs", "phantom", "mirrored"]
    assert continue_records(path, "two") == []
    assert continue_records(path, "one") == []
