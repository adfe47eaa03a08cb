"""Reports on what is kept safe, of nodes that share a database, alike on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, update

from dicomnode.commitment import Reference, Request
from dicomnode.database.commitment_requests import UNREPORTED, has_due_requests, record_request
from dicomnode.database.engine import Database
from dicomnode.database.schema import commitment_requests, outputs
from dicomnode.digests import digest_file
from dicomnode.send.association import make_caller
from dicomnode.send.committing import Work
from dicomnode.send.reporting import report_due
from dicomnode.settings import NodeSettings, PeerSettings, SendSettings, Settings
from tests.clocks import Clock
from tests.commitment_peers import Modality, Named, read_names
from tests.peers_programs import LOOPBACK, free_port
from tests.rows import owe_files

MIB = 1 << 20


@pytest.fixture
def modality() -> Modality:
    """Give a scanner that is away; it is there within a `with` of it."""
    return Modality(node_port=free_port())


@pytest.fixture
def kept(database: Database, tmp_path: Path) -> list[Named]:
    """Keep two instances, the first of 64 MiB, that the scanner asks about in a transaction for each."""
    paths = owe_files(database, tmp_path, [], slices=2)
    named = read_names(paths)
    os.truncate(paths[0], 64 * MIB)
    with database.write() as connection:
        is_first = outputs.c.sop_instance_uid == named[0][1]
        connection.execute(update(outputs).where(is_first).values(sha256=digest_file(paths[0])))
        for number, one in enumerate(named):
            record_request(connection, "scanner", Request(f"1.2.{number}", (Reference(*one),)), 900.0, 10)
    return named


def make_work(root: Path, database: Database, port: int, clock: Callable[[], float]) -> Work:
    """What one node reports with."""
    settings = Settings(
        node=NodeSettings(storage_root=root),
        peers=(PeerSettings(name="scanner", ae_title="SCANNER", host=LOOPBACK, port=port, may=("store",)),),
        send=SendSettings(retry_first_s=10.0, timeout_s=5.0),
    )
    return Work(
        database, clock, np.random.default_rng(0), settings, make_caller(settings), threading.Event(), open=set()
    )


def test_what_one_node_reads_back_for_long_no_other_takes_up(
    database: Database, tmp_path: Path, modality: Modality, kept: list[Named]
) -> None:
    clock = Clock()
    found: list[bool] = []

    def look() -> float:
        """Another node looks whenever this one does, and 5 s have gone by: after four such times a lease is over."""
        clock.now += 5.0
        with database.read() as connection:
            found.append(has_due_requests(connection, another.make_turn("scanner")))
        return clock.now

    another = make_work(tmp_path, database, modality.port, clock)
    work = make_work(tmp_path, database, modality.port, look)
    with modality:
        assert report_due(work, work.settings.peers[0])

    assert found[0], "before it is claimed"
    assert len(found) > 60
    assert not any(found[1:])
    assert [report.committed for report in modality.reports] == [[one] for one in kept]


def test_what_another_node_took_up_is_left_to_it(
    database: Database, tmp_path: Path, modality: Modality, kept: list[Named]
) -> None:
    clock = Clock()
    looks: list[float] = []

    def look() -> float:
        """While the first is read back this machine is suspended, and the other node reports on both."""
        looks.append(clock.now)
        if len(looks) == 3:
            clock.now += 1000.0
            assert report_due(another, another.settings.peers[0])
        return clock.now

    another = make_work(tmp_path, database, modality.port, clock)
    work = make_work(tmp_path, database, modality.port, look)
    with modality:
        report_due(work, work.settings.peers[0])

    assert [report.committed for report in modality.reports] == [[one] for one in kept]


def test_nothing_is_read_back_again_for_a_modality_that_is_still_away(
    database: Database, tmp_path: Path, modality: Modality, kept: list[Named]
) -> None:
    clock = Clock()
    work = make_work(tmp_path, database, modality.port, clock)

    def promised() -> list[float]:
        with database.read() as connection:
            return list(connection.execute(select(outputs.c.committed_at).order_by(outputs.c.id)).scalars())

    def states() -> list[tuple[str, int]]:
        table = commitment_requests
        with database.read() as connection:
            rows = connection.execute(select(table.c.state, table.c.attempts).order_by(table.c.id)).all()
        return [(row.state, row.attempts) for row in rows]

    for attempts in (1, 2, 3):
        assert not report_due(work, work.settings.peers[0])
        assert states() == [("retry", attempts)] * 2
        clock.now += 100.0
    assert promised() == [1000.0, 1000.0]
    with modality:
        assert report_due(work, work.settings.peers[0])

    assert promised() == [1300.0, 1300.0]
    assert [state for state, _ in states() if state in UNREPORTED] == []
    assert [report.committed for report in modality.reports] == [[one] for one in kept]
