"""What the demonstration tells of a node's rows, and when it says that the end has come.

Flow: pytest > [test_story] > story
Never: a node; the rows are recorded by the node's own functions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.database.engine import Database, open_database
from dicomnode.database.jobs import fetch_job
from dicomnode.database.outbox import add_outbox_rows, claim_outbox, record_dead, record_sent
from dicomnode.demo.story import Story, follow
from tests.databases import make_sqlite
from tests.rows import add_finished_job, add_ready_pair, due


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'rows.sqlite'}"
    make_sqlite(url)
    opened = open_database(url)
    yield opened
    opened.close()


def tell(database: Database, within_s: float = 5.0) -> bool:
    return follow(Story(), database, time.monotonic() + within_s)


def owe(database: Database, output_ids: list[int]) -> None:
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=22.0)


def test_delivered_is_the_good_end(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    _, output_ids = add_finished_job(database, ("pt", "reg"))
    owe(database, output_ids)
    while rows := claim_outbox(database, due(now=23.0), limit=10):
        with database.write() as connection:
            record_sent(connection, rows[0], now=24.0)
    assert tell(database)
    told = capsys.readouterr().out
    assert "2 instances to pacs" in told
    assert told.index("paired") < told.index("accept") < told.index("delivered")


def test_what_is_still_owed_is_no_end(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    _, output_ids = add_finished_job(database, ("pt", "reg"))
    owe(database, output_ids)
    assert not tell(database, within_s=0.3)
    told = capsys.readouterr().out
    assert "did not finish in time" in told
    assert "delivered" not in told


def test_a_result_that_a_person_must_see_is_the_bad_end(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    job_id, _ = add_finished_job(database, ("pt",), state="review")
    assert not tell(database)
    with database.read() as connection:
        assert fetch_job(connection, job_id).state == "review"
    assert "did not finish in time" not in capsys.readouterr().out


def test_a_held_pair_is_the_bad_end(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    add_ready_pair(database, state="held")
    assert not tell(database)
    told = capsys.readouterr().out
    assert "held" in told
    assert "did not finish in time" not in told


def test_a_dead_row_is_the_bad_end_and_says_why(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    _, output_ids = add_finished_job(database, ("pt",))
    owe(database, output_ids)
    (row,) = claim_outbox(database, due(now=23.0), limit=10)
    with database.write() as connection:
        record_dead(connection, row, "pacs: 0xA900 does not match")
    assert not tell(database)
    told = capsys.readouterr().out
    assert "0xA900 does not match" in told
    assert "did not finish in time" not in told
