"""We send to DCMTK's storescp, to Orthanc, and to a peer that answers what it is told to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt

from dicomnode.digests import digest_file
from dicomnode.errors import (
    FileDamagedError,
    PeerBusyError,
    PeerRejectedError,
    PeerUnreachableError,
    StorageFailedError,
)
from dicomnode.send.scu import Caller, Instance, open_store_association, send_echo, send_instance
from dicomnode.settings import PeerSettings
from tests.conftest import find_peer_program
from tests.dicomnode.series_files import SeriesSpec, write_series
from tests.peers_programs import LOOPBACK, Orthanc, Process, StoreScp, data_set_bytes, free_port
from tests.waiting import wait_until

CALLER = Caller("DICOMNODE", timeout_s=10.0)
MR = "1.2.840.10008.5.1.4.1.1.4"


def _peer(port: int, ae_title: str = "ANY") -> PeerSettings:
    return PeerSettings(name="pacs", ae_title=ae_title, host=LOOPBACK, port=port, may=("receive",))


def _instances(folder: Path, slices: int = 3, modality: str = "MR") -> list[Instance]:
    uid = f"1.2.826.0.1.3680043.8.498.{1 if modality == 'MR' else 2}"
    paths = write_series(folder, SeriesSpec(modality=modality, shape=(slices, 32, 30), uid=uid))
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    return [
        Instance(
            str(header.SOPInstanceUID),
            str(header.SOPClassUID),
            str(header.file_meta.TransferSyntaxUID),
            path,
            digest_file(path),
        )
        for header, path in zip(headers, paths, strict=True)
    ]


def _send(peer: PeerSettings, instances: list[Instance], caller: Caller = CALLER) -> list[str]:
    with open_store_association(peer, caller, {instance.context for instance in instances}) as association:
        return [send_instance(association, peer, one, number) for number, one in enumerate(instances, start=1)]


@contextmanager
def _answering(answer: Callable[[Any], int], contexts: tuple[str, ...] = (MR,)) -> Iterator[PeerSettings]:
    """A peer that answers each C-STORE with the status that `answer` returns."""
    entity = AE("ANSWERING")
    for context in contexts:
        entity.add_supported_context(context, [ExplicitVRLittleEndian])
    server = entity.start_server((LOOPBACK, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    assert server is not None
    try:
        yield _peer(server.server_address[1])
    finally:
        server.shutdown()


def test_storescp_gets_the_files_own_bytes(tmp_path: Path) -> None:
    instances = _instances(tmp_path / "out")

    with StoreScp(tmp_path) as storescp:
        assert _send(_peer(storescp.port), instances) == ["", "", ""]
        wait_until(lambda: len(storescp.files()) == 3, 10)
        stored = {data_set_bytes(path.read_bytes()) for path in storescp.files()}

    assert stored == {data_set_bytes(one.path.read_bytes()) for one in instances}


def test_orthanc_gets_the_files_own_bytes(tmp_path: Path) -> None:
    instances = [*_instances(tmp_path / "mr"), *_instances(tmp_path / "pet", modality="PT")]

    with Orthanc(tmp_path / "orthanc") as orthanc:
        assert _send(_peer(orthanc.port, orthanc.ae_title), instances) == [""] * 6
        assert _send(_peer(orthanc.port, orthanc.ae_title), instances) == [""] * 6  # a second send is harmless
        stored = orthanc.fetch_files()

    assert {uid: data_set_bytes(file) for uid, file in stored.items()} == {
        one.sop_instance_uid: data_set_bytes(one.path.read_bytes()) for one in instances
    }


def test_five_hundred_instances_in_a_row_are_each_answered(tmp_path: Path) -> None:
    """Bare pynetdicom loses about one answer in 500 to its own reactor thread."""
    instances = _instances(tmp_path / "out", slices=250)
    received: list[str] = []

    def store(event: Any) -> int:
        received.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    with _answering(store) as peer:
        for _ in range(2):
            assert _send(peer, instances) == [""] * 250

    assert received == [one.sop_instance_uid for one in instances] * 2


@pytest.mark.alone
def test_a_peer_with_nagle_on_is_not_waited_for(tmp_path: Path) -> None:
    """Debian's storescp as it comes holds each answer back 40 ms, until its first part is acknowledged."""
    instances = _instances(tmp_path / "out", slices=100)
    storescp = StoreScp(tmp_path)
    storescp.environment.pop("TCP_NODELAY")
    seconds_if_held_back = 100 * 0.04

    with storescp:
        started = time.monotonic()
        _send(_peer(storescp.port), instances)
        assert time.monotonic() - started < seconds_if_held_back


@pytest.mark.parametrize("status", [0xB000, 0xB007, 0x0111])
def test_a_warning_is_success_with_the_peers_words(tmp_path: Path, status: int) -> None:
    with _answering(lambda _event: status) as peer:
        [warning] = _send(peer, _instances(tmp_path, slices=1))

    assert warning.startswith(f"pacs: 0x{status:04X} ")


@pytest.mark.parametrize("status", [0xA700, 0x0110, 0x0213])
def test_a_peer_that_cannot_now_is_busy(tmp_path: Path, status: int) -> None:
    with _answering(lambda _event: status) as peer, pytest.raises(PeerBusyError, match=f"0x{status:04X}"):
        _send(peer, _instances(tmp_path, slices=1))


@pytest.mark.parametrize("status", [0xA900, 0xC123, 0x0122, 0x0124])
def test_a_peer_that_refuses_has_rejected(tmp_path: Path, status: int) -> None:
    with _answering(lambda _event: status) as peer, pytest.raises(PeerRejectedError, match=f"0x{status:04X}"):
        _send(peer, _instances(tmp_path, slices=1))


def test_a_refused_instance_does_not_end_the_association(tmp_path: Path) -> None:
    instances = _instances(tmp_path, slices=2)
    answers = iter([0xC000, 0x0000])

    with (
        _answering(lambda _event: next(answers)) as peer,
        open_store_association(peer, CALLER, {instances[0].context}) as association,
    ):
        with pytest.raises(PeerRejectedError):
            send_instance(association, peer, instances[0], 1)
        assert send_instance(association, peer, instances[1], 2) == ""


def test_nobody_listening_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(PeerUnreachableError, match="nobody listens"):
        _send(_peer(free_port()), _instances(tmp_path, slices=1))


def test_a_host_without_an_address_is_unreachable(tmp_path: Path) -> None:
    peer = PeerSettings(name="pacs", ae_title="ANY", host="no-such-host.invalid", port=104, may=("receive",))

    with pytest.raises(PeerUnreachableError, match=r"no-such-host\.invalid"):
        _send(peer, _instances(tmp_path, slices=1))


def test_a_refusing_storescp_has_rejected_however_fast_it_hangs_up(tmp_path: Path) -> None:
    port = free_port()
    command: list[str | Path] = [find_peer_program("storescp"), "--refuse", str(port)]
    instances = _instances(tmp_path, slices=1)

    with Process(command, tmp_path / "log", (port,)):
        for _ in range(12):  # pynetdicom sees the closed connection first about every sixth time
            with pytest.raises(PeerRejectedError, match="rejected the association"):
                _send(_peer(port), instances)


def test_a_wrong_called_ae_title_is_rejected_by_orthanc(tmp_path: Path) -> None:
    with Orthanc(tmp_path / "orthanc") as orthanc, pytest.raises(PeerRejectedError, match="rejected the association"):
        _send(_peer(orthanc.port, "WRONG"), _instances(tmp_path, slices=1))


def test_a_full_peer_is_busy(tmp_path: Path) -> None:
    """A rejection marked transient: local limit exceeded (PS3.8 table 9-21)."""
    release = threading.Event()

    def hold(_event: Any) -> int:
        release.wait(30)
        return 0x0000

    with _answering(hold) as peer:
        instances = _instances(tmp_path, slices=1)
        entity = AE("OTHER")
        entity.add_requested_context(MR, ExplicitVRLittleEndian)
        others = [entity.associate(peer.host, peer.port) for _ in range(10)]  # pynetdicom's own limit
        try:
            with pytest.raises(PeerBusyError, match="rejected the association"):
                _send(peer, instances)
        finally:
            release.set()
            for other in others:
                other.release()


def test_a_peer_that_takes_no_context_has_rejected(tmp_path: Path) -> None:
    port = free_port()
    command: list[str | Path] = [find_peer_program("storescp"), "+xi", "-od", tmp_path, str(port)]  # implicit only

    with Process(command, tmp_path / "log", (port,)), pytest.raises(PeerRejectedError, match="takes none of 1"):
        _send(_peer(port), _instances(tmp_path / "out", slices=1))


def test_only_the_instances_without_a_context_are_rejected(tmp_path: Path) -> None:
    [mr], [pet] = _instances(tmp_path / "mr", 1), _instances(tmp_path / "pet", 1, "PT")

    with (
        _answering(lambda _event: 0x0000) as peer,
        open_store_association(peer, CALLER, {mr.context, pet.context}) as association,
    ):
        with pytest.raises(PeerRejectedError, match=r"does not take SOP class 1\.2\.840\.10008\.5\.1\.4\.1\.1\.128"):
            send_instance(association, peer, pet, 1)
        assert send_instance(association, peer, mr, 2) == ""


@pytest.mark.parametrize("option", ["--abort-during", "--abort-after"])
def test_a_peer_that_aborts_is_unreachable(tmp_path: Path, option: str) -> None:
    port = free_port()
    command: list[str | Path] = [find_peer_program("storescp"), option, "-od", tmp_path, str(port)]

    with Process(command, tmp_path / "log", (port,)), pytest.raises(PeerUnreachableError):
        _send(_peer(port), _instances(tmp_path / "out", slices=3))


def test_a_peer_that_does_not_answer_in_time_is_unreachable(tmp_path: Path) -> None:
    port = free_port()
    command: list[str | Path] = [find_peer_program("storescp"), "--sleep-during", "30", "-od", tmp_path, str(port)]

    with Process(command, tmp_path / "log", (port,)), pytest.raises(PeerUnreachableError, match="timed out"):
        _send(_peer(port), _instances(tmp_path / "out", slices=1), Caller("DICOMNODE", timeout_s=0.5))


def test_who_sends_hears_that_it_goes_on_while_the_file_is_checked(tmp_path: Path) -> None:
    [instance] = _instances(tmp_path, slices=1)
    os.truncate(instance.path, 4 << 20)  # it is not what was written any more
    beats: list[None] = []

    with (
        _answering(lambda _event: 0x0000) as peer,
        open_store_association(peer, CALLER, {instance.context}) as association,
        pytest.raises(FileDamagedError),
    ):
        send_instance(association, peer, instance, 1, lambda: beats.append(None))

    assert len(beats) == 4


def test_a_file_that_is_gone_is_not_the_peers_fault(tmp_path: Path) -> None:
    [instance] = _instances(tmp_path, slices=1)
    instance.path.unlink()

    with _answering(lambda _event: 0x0000) as peer, pytest.raises(StorageFailedError):
        _send(peer, [instance])


def test_sending_changes_no_file(tmp_path: Path) -> None:
    [instance] = _instances(tmp_path, slices=1)
    before = hashlib.sha256(instance.path.read_bytes()).hexdigest()

    with _answering(lambda _event: 0x0000) as peer:
        _send(peer, [instance])

    assert hashlib.sha256(instance.path.read_bytes()).hexdigest() == before


def test_no_thread_stays_behind(tmp_path: Path) -> None:
    instances = _instances(tmp_path, slices=2)
    before = threading.active_count()

    with _answering(lambda _event: 0xA700) as peer:
        for _ in range(3):
            with pytest.raises(PeerBusyError):
                _send(peer, instances)

    wait_until(lambda: threading.active_count() <= before, 10, "every thread of the associations ends")


def test_echo(tmp_path: Path) -> None:
    with StoreScp(tmp_path / "dcmtk") as storescp, Orthanc(tmp_path / "orthanc") as orthanc:
        send_echo(_peer(storescp.port), CALLER)
        send_echo(_peer(orthanc.port, orthanc.ae_title), CALLER)
    with pytest.raises(PeerUnreachableError):
        send_echo(_peer(free_port()), CALLER)


@contextmanager
def _saying(answers: list[bytes], each_byte_after_s: float = 0.0) -> Iterator[PeerSettings]:
    """A peer that says these bytes, one after each message it gets, and then no more."""
    is_over = threading.Event()
    with socket.create_server((LOOPBACK, 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    connection.recv(65536)
                    for part in [answer] if not each_byte_after_s else [bytes([byte]) for byte in answer]:
                        with contextlib.suppress(OSError):
                            connection.sendall(part)
                        is_over.wait(each_byte_after_s)
                is_over.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield _peer(listener.getsockname()[1])
        finally:
            is_over.set()
            thread.join(30)


@pytest.mark.parametrize(
    "answer",
    [
        bytes.fromhex("0200 00000010") + bytes(16),
        bytes.fromhex("0300 00000004 00 09 09 09"),
        bytes.fromhex("0200 7fffffff") + bytes(64),
        bytes.fromhex("0700 00000004 00 00 00 00"),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    ids=["accepts nothing readable", "rejects for no known reason", "2 GiB", "aborts", "speaks HTTP"],
)
def test_an_answer_that_is_none_is_unreachable(tmp_path: Path, answer: bytes) -> None:
    with _saying([answer]) as peer, pytest.raises(PeerUnreachableError, match="pacs"):
        _send(peer, _instances(tmp_path, slices=1), Caller("DICOMNODE", timeout_s=1.0))


def test_an_answer_byte_by_byte_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    rejection = bytes.fromhex("0300 00000004 00 01 01 03")
    started = time.monotonic()

    with _saying([rejection], each_byte_after_s=0.4) as peer, pytest.raises(PeerUnreachableError):
        _send(peer, _instances(tmp_path, slices=1), Caller("DICOMNODE", timeout_s=1.0))

    assert time.monotonic() - started < 3.0
