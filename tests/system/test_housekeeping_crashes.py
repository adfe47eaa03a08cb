"""A node that is killed at any step of a deletion: the next one ends it, and no file is left without a row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.database.deletions import fetch_deletions
from dicomnode.database.engine import open_database
from dicomnode.database.migrate import migrate
from dicomnode.settings_file import load_settings
from dicomnode.steps import IN_HOUSEKEEPING, Step
from tests.builders import make_config
from tests.conftest import REPOSITORY
from tests.house import DAY_S, House
from tests.peers_programs import free_port

TIMEOUT_S = 120.0
KEPT = {"days": 1.0}
SECTIONS = {f"retention.{kind}": KEPT for kind in ("paired", "unpaired", "outputs")} | {
    "retention": {"hold_hours": 1.0}
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return make_config(tmp_path, [], free_port(), SECTIONS)


@pytest.fixture
def house(tmp_path: Path, config: Path) -> Iterator[House]:
    url = load_settings(config).database_url
    migrate(url)
    database = open_database(url)
    with House(tmp_path / "storage", database, now=time.time() - 9 * DAY_S) as opened:
        yield opened
    database.close()


def live(config: Path, fault: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", "tests.system.deleting_node", str(config)],
        cwd=REPOSITORY,
        env={**os.environ, "FAULT": fault},
        timeout=TIMEOUT_S,
        check=False,
        capture_output=True,
    ).returncode


def test_a_node_killed_at_any_step_of_a_deletion_leaves_no_file_without_a_row(house: House, config: Path) -> None:
    assert {Step.DOOMED, Step.REMOVED} == IN_HOUSEKEEPING
    for number, step in enumerate(sorted(IN_HOUSEKEEPING, key=lambda one: one.value), start=1):
        house.finish(house.pair(number)[0])
        house.deliver()
        house.settle(house.receive("MR", 50 + number), "unpaired")
        assert live(config, step.value) == -signal.SIGKILL
        assert house.files() <= house.named_files()

    assert live(config, "") == 0

    assert house.files() == house.named_files() == set()
    with house.database.read() as connection:
        deletions = fetch_deletions(connection)
    assert len(deletions) == 4 * len(IN_HOUSEKEEPING)
    assert all(one.done_at is not None for one in deletions)
