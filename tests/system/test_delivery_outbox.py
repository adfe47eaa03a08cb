"""What is owed is delivered: to real peers, one of them down, slow or full, and never by hammering it."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.pdu import P_DATA_TF
from sqlalchemy import update

from dicomnode.database.damages import fetch_damages
from dicomnode.database.engine import Database, open_database
from dicomnode.database.jobs import JobClaim, claim_job, fetch_outputs, move_claimed_job, record_outputs
from dicomnode.database.outbox import OutboxRow, add_outbox_rows, cancel_outputs, fetch_outbox
from dicomnode.database.schema import outputs
from dicomnode.digests import digest_file
from dicomnode.jobs.reprocess import reprocess_job
from dicomnode.send.delivery import WORTH_ONE
from dicomnode.send.service import SendService
from dicomnode.settings import DestinationSettings, NodeSettings, PeerSettings, SendSettings, Settings
from tests.certificates import Authority
from tests.clocks import Clock
from tests.databases import make_sqlite
from tests.house import spoil
from tests.peers_programs import LOOPBACK, Orthanc, StoreScp, data_set_bytes, free_port
from tests.rows import owe_files
from tests.waiting import wait_until

DELIVERY_TIMEOUT_S = 60.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = _settings(tmp_path).database_url
    make_sqlite(url)
    opened = open_database(url)
    yield opened
    opened.close()


@pytest.fixture
def start(tmp_path: Path, database: Database, clock: Clock) -> Iterator[Callable[..., SendService]]:
    """Give a function that starts a sender to peers named with their ports; it is stopped with the test."""
    started: list[SendService] = []

    def start_service(**ports: int) -> SendService:
        service = SendService(_settings(tmp_path, ports), database, clock, np.random.default_rng(0))
        started.append(service)
        return service

    yield start_service
    for service in started:
        service.stop(5.0)


def _settings(root: Path, ports: dict[str, int] | None = None) -> Settings:
    ports = ports or {}
    return Settings(
        node=NodeSettings(storage_root=root),
        peers=tuple(
            PeerSettings(name=name, ae_title=name.upper(), host=LOOPBACK, port=port, may=("receive",))
            for name, port in ports.items()
        ),
        destinations=tuple(DestinationSettings(peer=name) for name in ports),
        send=SendSettings(attempts=4, retry_first_s=10.0, retry_ceiling_s=100.0, timeout_s=5.0),
    )


def _rows(database: Database, destination: str) -> list[OutboxRow]:
    with database.read() as connection:
        return [row for row in fetch_outbox(connection) if row.destination == destination]


def _states(database: Database, destination: str) -> list[str]:
    return [row.state for row in _rows(database, destination)]


def _are_all(database: Database, destination: str, state: str) -> bool:
    return set(_states(database, destination)) == {state}


def _step_until_idle(service: SendService) -> None:
    service.step()
    wait_until(service.is_idle, DELIVERY_TIMEOUT_S, "the senders are idle")


@contextmanager
def _answering(
    answer: Callable[[Any], int], associations: int = 10, further: Sequence[evt.EventHandlerType] = ()
) -> Iterator[int]:
    """A peer that answers each C-STORE with the status that `answer` returns; gives its port."""
    entity = AE("ANSWERING")
    entity.maximum_associations = associations
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.4", [ExplicitVRLittleEndian])
    server = entity.start_server((LOOPBACK, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer), *further])
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@contextmanager
def _hanging_up() -> Iterator[tuple[int, list[int]]]:
    """A port that ends every connection at once; gives it and a list that grows with each."""
    connections: list[int] = []
    listener = socket.create_server((LOOPBACK, 0))

    def hang_up() -> None:
        while True:
            try:
                client, address = listener.accept()
            except OSError:
                return
            connections.append(address[1])
            client.close()

    thread = threading.Thread(target=hang_up)
    thread.start()
    try:
        yield listener.getsockname()[1], connections
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_orthanc_and_storescp_get_everything_the_same(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    paths = owe_files(database, tmp_path, ["pacs", "archive"])

    with Orthanc(tmp_path / "orthanc", "PACS") as orthanc, StoreScp(tmp_path) as storescp:
        service = start(pacs=orthanc.port, archive=storescp.port)
        _step_until_idle(service)
        at_orthanc = {data_set_bytes(file) for file in orthanc.fetch_files().values()}
        at_storescp = {data_set_bytes(path.read_bytes()) for path in storescp.files()}

    assert at_orthanc == at_storescp == {data_set_bytes(path.read_bytes()) for path in paths}
    assert [(row.state, row.attempts, row.reason) for row in _rows(database, "pacs")] == [("sent", 1, "")] * 6


def test_the_registration_object_goes_last(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    received: list[str] = []

    def store(event: Any) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    owe_files(database, tmp_path, ["pacs"])
    owe_files(database, tmp_path, ["pacs"])

    with _answering(store) as port:
        _step_until_idle(start(pacs=port))

    rows = _rows(database, "pacs")
    assert sorted(received) == sorted(row.sop_instance_uid for row in rows)
    for job_id in {row.job_id for row in rows}:
        *others, last = sorted(
            (row for row in rows if row.job_id == job_id), key=lambda row: received.index(row.sop_instance_uid)
        )
        assert ([row.kind for row in others], last.kind) == (["pt"] * 5, "reg")


def test_a_destination_that_was_down_gets_everything_when_it_is_back(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    port = free_port()
    owe_files(database, tmp_path, ["pacs", "archive"])

    with StoreScp(tmp_path) as up:
        service = start(pacs=port, archive=up.port)
        _step_until_idle(service)
        assert (_states(database, "archive"), _states(database, "pacs")) == (["sent"] * 6, ["retry"] * 6)
        assert "nobody listens there" in _rows(database, "pacs")[0].reason
        with Orthanc(tmp_path / "orthanc", "PACS", port) as orthanc:
            clock.now += 10.0
            _step_until_idle(service)
            assert orthanc.count_instances() == 6

    assert _are_all(database, "pacs", "sent")


def test_a_dead_destination_costs_one_connection_for_each_step_of_its_back_off(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"], slices=300)

    with _hanging_up() as (port, connections):
        service = start(pacs=port)
        for _ in range(5):
            _step_until_idle(service)
        assert len(connections) == 1
        clock.now += 10.0
        for _ in range(5):
            _step_until_idle(service)
        assert len(connections) == 2

    assert {(row.state, row.attempts, row.lease_until) for row in _rows(database, "pacs")} == {("retry", 2, None)}


def test_what_a_new_job_owes_does_not_wake_a_destination_that_is_down(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"])

    with _hanging_up() as (port, connections):
        service = start(pacs=port)
        _step_until_idle(service)
        owe_files(database, tmp_path, ["pacs"])
        clock.now += 1.0
        _step_until_idle(service)

        assert len(connections) == 1


def test_used_up_attempts_end_in_dead(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"])
    service = start(pacs=free_port())

    for _ in range(4):
        _step_until_idle(service)
        clock.now += 100.0

    assert {(row.state, row.attempts) for row in _rows(database, "pacs")} == {("dead", 4)}


def test_a_refused_instance_is_dead_at_once_and_the_others_arrive(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    owe_files(database, tmp_path, ["pacs"])
    answers = iter([0x0000, 0xC000, 0xB000, 0x0000, 0x0000, 0x0000])

    with _answering(lambda _event: next(answers)) as port:
        _step_until_idle(start(pacs=port))

    rows = _rows(database, "pacs")
    assert [row.state for row in rows] == ["sent", "dead", "sent", "sent", "sent", "sent"]
    assert rows[1].reason == "pacs: 0xC000 cannot understand"
    assert rows[2].reason == "pacs: 0xB000 coercion of data elements"


def test_a_full_destination_is_left_alone_and_resumed_with_what_is_missing(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"])
    received: list[str] = []
    room_for = 2

    def store(event: Any) -> int:
        if len(received) == room_for:
            return 0xA700
        received.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    with _answering(store) as port:
        service = start(pacs=port)
        _step_until_idle(service)
        rows = _rows(database, "pacs")
        assert [row.state for row in rows] == ["sent", "sent", "retry", "owed", "owed", "owed"]
        assert [row.lease_until for row in rows] == [None] * 6
        room_for = 100
        clock.now += 10.0
        _step_until_idle(service)

    assert _are_all(database, "pacs", "sent")
    assert sorted(received) == sorted(row.sop_instance_uid for row in _rows(database, "pacs"))


def test_an_instance_that_always_fails_does_not_hold_up_the_others(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"])
    poison = _rows(database, "pacs")[0].sop_instance_uid

    with _answering(lambda event: 0x0110 if event.request.AffectedSOPInstanceUID == poison else 0) as port:
        service = start(pacs=port)
        for _ in range(12):
            _step_until_idle(service)
            clock.now += 10.0

    assert _states(database, "pacs")[1:] == ["sent"] * 5


def test_a_file_that_is_missing_is_told_and_the_others_arrive(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    owe_files(database, tmp_path, ["pacs"])[2].unlink()

    with _answering(lambda _event: 0x0000) as port:
        _step_until_idle(start(pacs=port))

    # The registration object refers to the one that is missing, and waits for it.
    assert _states(database, "pacs") == ["sent", "sent", "retry", "sent", "sent", "owed"]
    assert "0002.dcm" in _rows(database, "pacs")[2].reason


def test_a_file_that_becomes_shorter_while_it_is_sent_costs_no_other_an_attempt(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    path = owe_files(database, tmp_path, ["pacs"], slices=3)[0]
    os.truncate(path, 1 << 26)  # more than lies between the node and a peer that does not read on
    with database.write() as connection:
        is_first = outputs.c.path == str(path.relative_to(tmp_path))
        connection.execute(update(outputs).where(is_first).values(sha256=digest_file(path)))

    def shorten(event: Any) -> None:
        if isinstance(event.pdu, P_DATA_TF) and path.stat().st_size == 1 << 26:
            os.truncate(path, 1 << 25)

    with _answering(lambda _event: 0x0000, further=[(evt.EVT_PDU_RECV, shorten)]) as port:
        service = start(pacs=port)
        _step_until_idle(service)
        rows = _rows(database, "pacs")
        assert [(row.state, row.attempts) for row in rows] == [("retry", 1), ("owed", 0), ("owed", 0)]
        assert "the file became shorter" in rows[0].reason
        _step_until_idle(service)

    assert _states(database, "pacs") == ["retry", "sent", "owed"]  # the last refers to the first


def test_stopping_finishes_the_instance_on_its_way_and_keeps_the_rest_owed(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    owe_files(database, tmp_path, ["pacs"])
    on_its_way, may_end = threading.Event(), threading.Event()

    def store(_event: Any) -> int:
        on_its_way.set()
        may_end.wait(DELIVERY_TIMEOUT_S)
        return 0x0000

    with _answering(store) as port:
        service = start(pacs=port)
        service.step()
        assert on_its_way.wait(DELIVERY_TIMEOUT_S)
        stopper = threading.Thread(target=service.stop, args=(DELIVERY_TIMEOUT_S,))
        stopper.start()
        wait_until(service._stopping.is_set, 5)
        may_end.set()
        stopper.join()

    rows = _rows(database, "pacs")
    assert [row.state for row in rows] == ["sent"] + ["owed"] * 5
    assert [row.lease_until for row in rows] == [None] * 6


def test_stopping_aborts_a_destination_that_does_not_answer(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    owe_files(database, tmp_path, ["pacs"])
    on_its_way, may_end = threading.Event(), threading.Event()

    def hold(_event: Any) -> int:
        on_its_way.set()
        may_end.wait(DELIVERY_TIMEOUT_S)
        return 0x0000

    with _answering(hold) as port:
        service = start(pacs=port)
        service.step()
        assert on_its_way.wait(DELIVERY_TIMEOUT_S)
        service.stop(0.1)
        may_end.set()

    assert _states(database, "pacs") == ["retry"] + ["owed"] * 5
    assert [row.lease_until for row in _rows(database, "pacs")] == [None] * 6


def test_a_destination_that_moved_is_tried_at_once_after_a_reload(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"])
    service = start(pacs=free_port())
    _step_until_idle(service)

    with _answering(lambda _event: 0x0000) as port:
        service.reload(_settings(tmp_path, {"pacs": port}))
        clock.now += 10.0  # the rows' own wait; the destination's is forgotten
        _step_until_idle(service)

    assert _are_all(database, "pacs", "sent")


def test_a_destination_by_tls_gets_everything_once_its_certificate_is_renewed(
    tmp_path: Path, database: Database, clock: Clock
) -> None:
    authority = Authority(tmp_path / "ca")
    settings = _settings(tmp_path, {"pacs": free_port()})
    peer = settings.peers[0].model_copy(update={"tls": True})
    by_tls = {"peers": (peer,), "tls": authority.settings(authority.sign("/CN=node"))}
    service = SendService(settings.model_copy(update=by_tls), database, clock, np.random.default_rng(0))
    paths = owe_files(database, tmp_path, ["pacs"])
    try:
        with StoreScp(
            tmp_path, "PACS", peer.port, authority.dcmtk_options(authority.sign("/CN=pacs", days=-1))
        ) as pacs:
            _step_until_idle(service)
            assert _are_all(database, "pacs", "retry")
            assert "its certificate is not accepted: certificate has expired" in _rows(database, "pacs")[0].reason
            assert pacs.files() == []
        clock.now += 1000.0
        with StoreScp(tmp_path, "PACS", peer.port, authority.dcmtk_options(authority.sign("/CN=pacs"))) as pacs:
            _step_until_idle(service)
            wait_until(lambda: len(pacs.files()) == len(paths), DELIVERY_TIMEOUT_S, "all is delivered")
    finally:
        service.stop(5.0)
    assert _are_all(database, "pacs", "sent")


def test_several_associations_store_at_once(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    owe_files(database, tmp_path, ["pacs"], slices=40)
    both_are_here = threading.Barrier(2, timeout=DELIVERY_TIMEOUT_S)
    stored: Counter[int] = Counter()

    def store(event: Any) -> int:
        stored[event.assoc.ident] += 1
        if stored[event.assoc.ident] == 2:  # the others are opened once the destination has taken something
            both_are_here.wait()
        return 0x0000

    with _answering(store) as port:
        _step_until_idle(start(pacs=port))

    assert _are_all(database, "pacs", "sent")


def test_several_associations_share_what_is_due_and_end_together(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    owe_files(database, tmp_path, ["pacs"], slices=240)
    in_step = threading.Barrier(2)
    stored: Counter[int] = Counter()

    def store(event: Any) -> int:
        stored[event.assoc.ident] += 1
        with suppress(threading.BrokenBarrierError):  # at the end one has none left
            in_step.wait(2.0)
        return 0x0000

    with _answering(store) as port:
        _step_until_idle(start(pacs=port))

    assert _are_all(database, "pacs", "sent")
    assert max(stored.values()) - min(stored.values()) <= 2 * WORTH_ONE


def test_what_was_sent_is_recorded_within_a_second_however_slow_the_destination_is(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"])
    seen: list[int] = []

    def store(_event: Any) -> int:
        seen.append(_states(database, "pacs").count("sent"))
        clock.now += 0.6
        return 0x0000

    with _answering(store) as port:
        _step_until_idle(start(pacs=port))

    assert seen == [0, 0, 2, 2, 4, 5]  # the last is the registration object, claimed when the others are recorded


def test_what_is_given_up_while_it_is_being_sent_goes_no_further_and_what_went_is_said(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"])
    taken: list[str] = []

    def store(event: Any) -> int:
        taken.append(str(event.request.AffectedSOPInstanceUID))
        with database.write() as connection:
            cancel_outputs(connection, 1, "rejected by a person")
        clock.now += 1.0
        return 0x0000

    with _answering(store) as port:
        _step_until_idle(start(pacs=port))

    rows = _rows(database, "pacs")
    assert [row.state for row in rows] == ["sent"] + ["dead"] * 5
    assert {row.reason for row in rows} == {"rejected by a person"}
    assert taken == [rows[0].sop_instance_uid]


def test_a_peer_that_takes_one_association_is_asked_for_one(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    owe_files(database, tmp_path, ["pacs"], slices=60)

    with _answering(lambda _event: 0x0000, associations=1) as port:
        _step_until_idle(start(pacs=port))

    rows = _rows(database, "pacs")
    assert [(row.state, row.attempts) for row in rows] == [("sent", 1)] * 60


def test_after_a_failure_one_association_shows_whether_the_destination_is_back(
    start: Callable[..., SendService], database: Database, tmp_path: Path, clock: Clock
) -> None:
    owe_files(database, tmp_path, ["pacs"], slices=200)
    answers = [0xA700]
    calls: list[int] = []

    def store(event: Any) -> int:
        calls.append(event.assoc.ident)
        return answers[0]

    with _answering(store) as port:
        service = start(pacs=port)
        _step_until_idle(service)
        first, calls[:] = len(calls), []
        for _ in range(4):
            clock.now += 100.0
            _step_until_idle(service)
        assert first <= 2, "those that were open before the first answer"
        assert len(calls) == 4
        answers[0] = 0x0000
        clock.now += 100.0
        _step_until_idle(service)

    assert "sent" in _states(database, "pacs")


def test_an_output_whose_bytes_changed_is_never_sent_and_is_sent_when_it_is_made_again(
    start: Callable[..., SendService], database: Database, tmp_path: Path
) -> None:
    paths = owe_files(database, tmp_path, ["pacs"], slices=3)
    good = paths[1].read_bytes()
    spoil(paths[1])
    with StoreScp(tmp_path / "pacs", "PACS") as pacs:
        service = start(pacs=pacs.port)
        _step_until_idle(service)
        _step_until_idle(service)

        assert _states(database, "pacs") == ["sent", "dead", "sent"]
        assert len(pacs.files()) == 2
        [dead] = [row for row in _rows(database, "pacs") if row.state == "dead"]
        assert dead.reason.endswith("was written; dicomnode jobs reprocess 1 makes it again and sends it")
        with database.read() as connection:
            assert [damage.of for damage in fetch_damages(connection)] == ["job 1"]

        # The one command; then what a worker does.
        again = reprocess_job(database, 1, 2000.0)
        job = claim_job(database, 2000.0, 60.0)
        assert job is not None
        assert job.id == again
        path = tmp_path / "outputs" / str(again) / "again.dcm"
        path.parent.mkdir()
        path.write_bytes(good)
        with database.write() as connection:
            made = fetch_outputs(connection, 1)
            columns = ("kind", "sop_instance_uid", "sop_class_uid", "series_uid", "transfer_syntax_uid", "size_bytes")
            rows = [{name: getattr(one, name) for name in (*columns, "sha256", "path")} for one in made]
            rows[1]["path"] = str(path.relative_to(tmp_path))
            move_claimed_job(connection, JobClaim(job.id, job.token), "done")
            assert add_outbox_rows(connection, record_outputs(connection, again, rows), ["pacs"], 2000.0) == 1
        _step_until_idle(service)
        assert _states(database, "pacs") == ["sent"] * 3
        assert len(pacs.files()) == 3
        with database.read() as connection:
            assert fetch_damages(connection) == []
