"""A destination that breaks off in the middle, or keeps its answer to itself, gets everything: once, and unchanged.

Flow: SendService > [relay, which fails as told] > Orthanc, storescp
Never: a figure of speed (`make bench` has those).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicomnode.database.engine import Database
from dicomnode.send.service import SendService
from tests.clocks import Clock
from tests.peers_programs import LOOPBACK, Orthanc, StoreScp, data_set_bytes, free_port
from tests.rows import owe_files
from tests.system.test_delivery_outbox import (
    _are_all,
    _hanging_up,
    _rows,
    _settings,
    _step_until_idle,
    clock,
    database,
    start,
)

__all__ = ["clock", "database", "start"]
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: to close is to reset
QUEUED = 500
ACCEPTED, REFUSED = 5, 4
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700  # PS3.4 B.2.3
STATUS = b"\x00\x00\x00\x09\x02\x00\x00\x00"  # (0000,0900), two bytes, as every command set is encoded: PS3.7 6.3.1


class Relay:
    """A TCP port in front of a destination.

    Each connection is reset after so many bytes one way, the next of `resets_after`; and each instance that the
    destination took is answered for with the next status of `says`.
    """

    def __init__(self, to_port: int, resets_after: list[int], *, on_the_way_back: bool, says: list[int]) -> None:
        self.to_port = to_port
        self.resets_after = resets_after
        self.on_the_way_back = on_the_way_back
        self.says = says
        self.listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self.listener.getsockname()[1]

    def serve(self) -> None:
        """Carry connections until the listener is closed, and those that are open until they end."""
        with ThreadPoolExecutor() as threads:
            while True:
                try:
                    client, _ = self.listener.accept()
                except OSError:
                    return
                limit = self.resets_after.pop(0) if self.resets_after else None
                threads.submit(self._carry, client, limit)

    def _carry(self, client: socket.socket, limit: int | None) -> None:
        is_reset = threading.Event()
        there, back = (None, limit) if self.on_the_way_back else (limit, None)
        with client, socket.create_connection((LOOPBACK, self.to_port)) as peer:
            other_way = threading.Thread(target=_pump, args=(peer, client, back, is_reset, self._say))
            other_way.start()
            _pump(client, peer, there, is_reset, bytes)
            other_way.join()

    def _say(self, data: bytes) -> bytes:
        """Put another status into a C-STORE-RSP, which comes as a whole: who asked waits for it."""
        before, found, after = data.partition(STATUS)
        return before + found + struct.pack("<H", self.says.pop(0)) + after[2:] if found and self.says else data


def _pump(
    source: socket.socket,
    sink: socket.socket,
    limit: int | None,
    is_reset: threading.Event,
    change: Callable[[bytes], bytes],
) -> None:
    """Carry bytes until the source ends, or the limit is reached: then both ends are reset when they are closed."""
    carried = 0
    with contextlib.suppress(OSError):  # the other direction ended it
        while data := source.recv(4096):
            carried += len(data)
            if limit is not None and carried > limit:
                is_reset.set()
                for end in (source, sink):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    end.shutdown(socket.SHUT_RD)  # wakes the other direction, and tells the peer nothing
                return
            sink.sendall(change(data))
        if not is_reset.is_set():
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def _relaying(
    to_port: int, resets_after: list[int], *, on_the_way_back: bool = False, says: list[int] | None = None
) -> Iterator[Relay]:
    relay = Relay(to_port, resets_after, on_the_way_back=on_the_way_back, says=says or [])
    thread = threading.Thread(target=relay.serve)
    thread.start()
    try:
        yield relay
    finally:
        relay.listener.shutdown(socket.SHUT_RDWR)
        relay.listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("on_the_way_back", "resets_after"),
    [(False, [900, 3000, 9000]), (True, [250, 400, 600])],
    ids=["reset in the middle of a data set", "takes an instance and resets before it says so"],
)
def test_a_destination_that_resets_gets_everything_once_and_unchanged(
    start: Callable[..., SendService],
    database: Database,
    tmp_path: Path,
    clock: Clock,
    on_the_way_back: bool,
    resets_after: list[int],
) -> None:
    paths = owe_files(database, tmp_path, ["pacs"], slices=24)

    with (
        Orthanc(tmp_path / "orthanc", "PACS") as orthanc,
        _relaying(orthanc.port, resets_after, on_the_way_back=on_the_way_back) as relay,
    ):
        service = start(pacs=relay.port)
        for _ in range(8):
            _step_until_idle(service)
            clock.now += 100.0
        held = [data_set_bytes(file) for file in orthanc.fetch_files().values()]

    assert resets_after == []
    assert _are_all(database, "pacs", "sent")
    assert max(row.attempts for row in _rows(database, "pacs")) > 1
    assert sorted(held) == sorted(data_set_bytes(path.read_bytes()) for path in paths)


def test_five_hundred_queued_instances_cost_one_attempt_a_step_and_are_delivered(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    port = free_port()
    paths = owe_files(database, tmp_path, ["pacs"], slices=QUEUED)
    with _hanging_up() as (dead_port, connections):
        service = start(pacs=dead_port)
        for step in range(1, 4):
            _step_until_idle(service)
            _step_until_idle(service)
            assert len(connections) == step
            clock.now += 100.0
    with StoreScp(tmp_path, "PACS", port) as storescp:
        service.reload(_settings(tmp_path, {"pacs": port}))
        _step_until_idle(service)
        held = [data_set_bytes(path.read_bytes()) for path in storescp.files()]

    assert {(row.state, row.attempts) for row in _rows(database, "pacs")} == {("sent", 4)}
    assert sorted(held) == sorted(data_set_bytes(path.read_bytes()) for path in paths)


def test_a_destination_that_accepts_and_then_fails_gets_everything_once_and_unchanged(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    paths = owe_files(database, tmp_path, ["pacs"], slices=24)
    says = [SUCCESS] * ACCEPTED + [OUT_OF_RESOURCES] * REFUSED

    with Orthanc(tmp_path / "orthanc", "PACS") as orthanc, _relaying(orthanc.port, [], says=says) as relay:
        service = start(pacs=relay.port)
        _step_until_idle(service)
        accepted = [row.sop_instance_uid for row in _rows(database, "pacs") if row.state == "sent"]
        assert len(accepted) == ACCEPTED
        assert orthanc.count_instances() > ACCEPTED, "none of which it says that it failed was taken"
        for _ in range(REFUSED + 1):
            clock.now += 100.0
            _step_until_idle(service)
        held = [data_set_bytes(file) for file in orthanc.fetch_files().values()]

    assert says == []
    assert _are_all(database, "pacs", "sent")
    assert sum(row.attempts for row in _rows(database, "pacs")) == len(paths) + REFUSED
    assert sorted(held) == sorted(data_set_bytes(path.read_bytes()) for path in paths)
