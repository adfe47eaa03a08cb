"""Measurements that took hours are of the code that is shipped, or docs say of which they are.

Flow: models/calibration.jsonl, docs/benchmarks/registration.jsonl > [test_records]
Never: a measurement; those take hours.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from models.train import runs
from tests.benchmarks.registration import run
from tests.benchmarks.registration.cases import People, make_synthetic_person
from tests.benchmarks.registration.methods import ALL

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = (REPOSITORY / "docs/registration.md").read_text(encoding="utf-8")


def list_unseen() -> list[str]:
    """Return the people the shipped network never saw, by its card."""
    card = tomllib.loads((REPOSITORY / "models/cnn_sift.toml").read_text(encoding="utf-8"))
    return list(card["held_out"])


def find_benchmark_version() -> str:
    """Return the version a full run would have now, with every peer installed."""
    names = tuple(list_unseen())
    return run.find_version(ALL, People(names, make_synthetic_person, f"{len(names)} held-out people"))


@pytest.mark.parametrize(
    ("record", "find_version"),
    [
        ("models/calibration.jsonl", lambda: runs.find_version(list_unseen())),
        ("docs/benchmarks/registration.jsonl", find_benchmark_version),
    ],
)
def test_a_record_is_of_this_version_or_docs_say_of_which(record: str, find_version: Callable[[], str]) -> None:
    first, _, _ = (REPOSITORY / record).read_text(encoding="utf-8").partition("\n")
    version = json.loads(first)["version"]

    assert (f"version {version}" in DOCS) is (version != find_version())
