"""A destination that is slow gets each instance once, however long it takes; one that hardly moves is given up.

Flow: SendService > [relay, which carries as fast as told] > a storage SCP
Never: a figure of speed (`make bench` has those).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pynetdicom import evt
from pynetdicom.pdu import A_RELEASE_RQ
from sqlalchemy import update
from structlog.testing import capture_logs

from dicomnode.database.engine import Database
from dicomnode.database.outbox import Due, claim_outbox
from dicomnode.database.schema import outputs
from dicomnode.digests import digest_file, seek_data_set
from dicomnode.send.service import SendService
from tests.clocks import Clock
from tests.peers_programs import LOOPBACK
from tests.rows import owe_files
from tests.system.test_delivery_outbox import (
    DELIVERY_TIMEOUT_S,
    _answering,
    _are_all,
    _rows,
    _settings,
    _states,
    _step_until_idle,
    clock,
    database,
)
from tests.waiting import wait_until

__all__ = ["clock", "database"]
PIECE_BYTES = 4096
MIB = 1 << 20


@contextmanager
def _slowed(to_port: int, bytes_per_s: float, *, is_wide_area: bool = True) -> Iterator[int]:
    """A TCP port in front of a destination that carries to it at most so fast; gives it.

    Over a wide area network the segments are small, and so is what the system takes from the sender ahead.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
    if is_wide_area:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
    listener.bind((LOOPBACK, 0))
    listener.listen()
    threads: list[threading.Thread] = []
    ends: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            peer = socket.create_connection((LOOPBACK, to_port))
            ends.extend((client, peer))
            for source, sink, limit in ((client, peer, bytes_per_s), (peer, client, None)):
                threads.append(threading.Thread(target=_carry, args=(source, sink, limit)))
                threads[-1].start()

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        server.join()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for end in ends:
            end.close()


def _carry(source: socket.socket, sink: socket.socket, bytes_per_s: float | None) -> None:
    """Carry bytes until the source ends, never ahead of what the rate allows."""
    carried, started = 0, time.monotonic()
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE_BYTES):
            sink.sendall(data)
            carried += len(data)
            if bytes_per_s:
                time.sleep(max(started + carried / bytes_per_s - time.monotonic(), 0.0))
        sink.shutdown(socket.SHUT_WR)


def _enlarge(database: Database, root: Path, path: Path, size_bytes: int) -> None:
    """Let an output have so many bytes."""
    os.truncate(path, size_bytes)
    with database.write() as connection:
        is_it = outputs.c.path == str(path.relative_to(root))
        connection.execute(update(outputs).where(is_it).values(sha256=digest_file(path)))


@pytest.fixture
def start(tmp_path: Path, database: Database) -> Iterator[Callable[..., SendService]]:
    """Give a function that starts a sender to the "pacs" at a port; it is stopped with the test."""
    started: list[SendService] = []

    def start_service(port: int, clock: Callable[[], float], **send: Any) -> SendService:
        settings = _settings(tmp_path, {"pacs": port})
        settings = settings.model_copy(update={"send": settings.send.model_copy(update=send)})
        started.append(SendService(settings, database, clock, np.random.default_rng(0)))
        return started[-1]

    yield start_service
    for service in started:
        service.stop(5.0)


def test_an_instance_that_takes_longer_than_a_lease_is_sent_once_and_holds_those_beside_it(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    paths = owe_files(database, tmp_path, ["pacs"], slices=4)
    _enlarge(database, tmp_path, paths[1], 8 * MIB)
    received: list[str] = []

    def store(event: Any) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def hurried() -> float:  # the instance takes 40 s of these, a lease is over after 15
        return 1000.0 + 10.0 * time.monotonic()

    with _answering(store) as scp, _slowed(scp, 2 * MIB) as port, capture_logs() as logs:
        service = start(port, hurried)

        def is_done() -> bool:
            service.step()
            return _are_all(database, "pacs", "sent") and service.is_idle()

        wait_until(is_done, DELIVERY_TIMEOUT_S, "all is sent")

    rows = _rows(database, "pacs")
    assert received == [row.sop_instance_uid for row in rows]
    assert [(row.attempts, row.token) for row in rows] == [(1, 1)] * 4
    assert "send.lost" not in [line["event"] for line in logs]


def test_an_instance_that_hardly_moves_is_given_up_as_any_other(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    [path] = owe_files(database, tmp_path, ["pacs"], slices=1)
    _enlarge(database, tmp_path, path, 8 * MIB)

    with _answering(lambda _event: 0x0000) as scp, _slowed(scp, MIB / 5) as port:
        service = start(port, clock, timeout_s=1.0, attempts=2)
        for state, attempts, end in (("retry", 1, "is needed"), ("dead", 2, "attempt 2 of 2 was the last")):
            _step_until_idle(service)
            [row] = _rows(database, "pacs")
            assert (row.state, row.attempts, row.lease_until) == (state, attempts, None)
            assert row.reason.startswith("pacs: it is too slow: ")
            assert f"of {path.stat().st_size - _header_bytes(path)} bytes went in " in row.reason
            assert "1 MiB in each 1 s (send.timeout_s) is needed" in row.reason
            assert row.reason.endswith(end)
            clock.now += 100.0


def test_what_the_system_took_ahead_of_a_slow_line_is_waited_for(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    [path] = owe_files(database, tmp_path, ["pacs"], slices=1)
    _enlarge(database, tmp_path, path, 6 * MIB)

    with _answering(lambda _event: 0x0000) as scp, _slowed(scp, 1.5 * MIB, is_wide_area=False) as port:
        _step_until_idle(start(port, clock, timeout_s=1.2))

    assert [(row.state, row.reason) for row in _rows(database, "pacs")] == [("sent", "")]


def test_what_another_sender_claimed_while_the_association_was_opened_is_left_to_it(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"])
    received: list[str] = []

    def store(event: Any) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def claim(_event: Any) -> None:
        clock.now += 50.0
        assert len(claim_outbox(database, Due("pacs", clock.now, 15.0, 100.0), 3)) == 3

    with _answering(store, further=[(evt.EVT_REQUESTED, claim)]) as port:
        _step_until_idle(start(port, clock))

    rows = _rows(database, "pacs")
    assert received == [row.sop_instance_uid for row in rows[3:5]]  # the last refers to the others, and waits
    assert [row.state for row in rows] == ["owed"] * 3 + ["sent"] * 2 + ["owed"]
    assert [row.token for row in rows] == [2, 2, 2, 1, 1, 0]


def test_what_became_of_an_instance_is_recorded_before_the_release_is_waited_for(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"], slices=2)
    seen: list[list[str]] = []

    def look(event: Any) -> None:
        if isinstance(event.pdu, A_RELEASE_RQ):
            seen.append(_states(database, "pacs"))

    with _answering(lambda _event: 0xA700, further=[(evt.EVT_PDU_RECV, look)]) as port:
        _step_until_idle(start(port, clock))

    assert seen == [["retry", "owed"]]


def _header_bytes(path: Path) -> int:
    """Return how much of a file stands before its data set."""
    with path.open("rb") as file:
        seek_data_set(file)
        return file.tell()
