"""What a Storage SCU is told, in every case that a sender can bring about; pynetdicom is the sender."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
)
from pynetdicom import evt
from pynetdicom.association import Association
from sqlalchemy import delete, select
from structlog.testing import capture_logs

from dicomnode.commitment import PUSH_MODEL
from dicomnode.database.schema import associations, conflicts, instances
from dicomnode.errors import ConfigurationError, StateError
from dicomnode.receive import scp
from dicomnode.receive.contexts import VERIFICATION
from dicomnode.receive.scp import StorageScp
from dicomnode.settings import ReceiveSettings
from dicomnode.settings_limits import LimitSettings
from dicomnode.uids import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from tests.peers_programs import LOOPBACK, data_set_bytes, is_listening
from tests.raw_scu import RawScu
from tests.receiving import MR, PT, ROOT, encode, make_data_set
from tests.storage_scp import SCANNER, RunningScp
from tests.waiting import wait_until

CT = "1.2.840.10008.5.1.4.1.1.2"
CALLED_NOT_RECOGNISED, CALLING_NOT_RECOGNISED, LOCAL_LIMIT = (1, 1, 7), (1, 1, 3), (2, 3, 2)
UID_1 = f"{ROOT}.3.1"
DATA_1 = encode(make_data_set(1))
# pydicom, inside pynetdicom, warns of what these tests send on purpose.
HOSTILE = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningScp]:
    with RunningScp(tmp_path / "root") as running:
        yield running


def test_an_echo_is_answered(node: RunningScp) -> None:
    with RawScu(node.port, calling="VIEWER", contexts=[("1.2.840.10008.1.1", (ImplicitVRLittleEndian,))]) as scu:
        assert scu.association.send_c_echo().Status == 0x0000


@pytest.mark.parametrize(
    ("calling", "called", "rejection", "words"),
    [
        ("SCANNER", "OTHER", CALLED_NOT_RECOGNISED, "'SCANNER' at 127.0.0.1 called 'OTHER'"),
        ("NOBODY", "DICOMNODE", CALLING_NOT_RECOGNISED, "no configured peer has this AE title"),
        ("MODALITY7", "DICOMNODE", CALLING_NOT_RECOGNISED, "from 127.0.0.1, but is configured at 192.0.2.8"),
        ("<img src=x>", "DICOMNODE", CALLING_NOT_RECOGNISED, "'<img src=x>' called us"),
    ],
)
def test_a_refusal_has_the_standards_reason_and_our_words(
    node: RunningScp, calling: str, called: str, rejection: tuple[int, int, int], words: str
) -> None:
    with capture_logs() as logs, RawScu(node.port, calling=calling, called=called) as scu:
        assert not scu.is_established
        assert scu.rejection == rejection
    (refused,) = [entry for entry in logs if entry["event"] == "receive.refused"]
    assert words in refused["why"]


def test_anybody_may_store_where_the_settings_say_so(tmp_path: Path) -> None:
    anybody = ReceiveSettings(accept="any", check_called_ae_title=False)
    with RunningScp(tmp_path, [], receive=anybody) as node, RawScu(node.port, calling="A' OR 1=1--", called="X") as scu:
        assert scu.store(MR, UID_1, DATA_1) == 0x0000
        assert list(node.stored()) == [UID_1]


def test_only_the_nodes_classes_and_syntaxes_are_accepted(node: RunningScp) -> None:
    offered = [*STORAGE_SOP_CLASSES, CT, "1.2.840.10008.5.1.4.1.1.66.1", "1.2.840.10008.5.1.4.1.2.2.1"]
    with RawScu(node.port, contexts=[(uid, (ExplicitVRLittleEndian,)) for uid in offered]) as scu:
        assert scu.accepted() == dict.fromkeys(STORAGE_SOP_CLASSES, ExplicitVRLittleEndian)
        assert {context.result for context in scu.association.rejected_contexts} == {3}  # PS3.8 table 9-18
    with RawScu(node.port, contexts=[(MR, (DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit))]) as scu:
        assert scu.accepted() == {}
        assert [context.result for context in scu.association.rejected_contexts] == [4]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((ImplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian), ExplicitVRLittleEndian),
        ((JPEG2000Lossless, ImplicitVRLittleEndian), ImplicitVRLittleEndian),
        ((ExplicitVRBigEndian, ImplicitVRLittleEndian), ImplicitVRLittleEndian),
        ((DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless), JPEGLSLossless),
    ],
)
def test_of_several_syntaxes_the_plainest_is_chosen(node: RunningScp, offered: tuple[str, ...], chosen: str) -> None:
    with RawScu(node.port, contexts=[(MR, offered)]) as scu:
        assert scu.accepted() == {MR: chosen}


@pytest.mark.parametrize("sop_class_uid", STORAGE_SOP_CLASSES)
@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_the_senders_bytes_are_stored(node: RunningScp, sop_class_uid: str, syntax: str) -> None:
    data = encode(
        make_data_set(1, sop_class_uid=sop_class_uid),
        is_implicit=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
    )
    with RawScu(node.port, contexts=[(sop_class_uid, (syntax,))]) as scu:
        assert scu.store(sop_class_uid, UID_1, data) == 0x0000
        stored = node.stored()[UID_1]
    assert (stored.data_set, stored.transfer_syntax_uid) == (data, syntax)


def test_who_may_not_store_is_told_so(node: RunningScp) -> None:
    with RawScu(node.port, calling="VIEWER") as scu:
        assert scu.store(MR, UID_1, DATA_1) == 0x0124
    assert node.files() == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"this is not DICOM, it is a letter to somebody", 0xC000),
        (DATA_1[:-100], 0xC000),
        (DATA_1[:200], 0xC000),
        (b"\0" * 128 + b"DICM" + DATA_1, 0xC000),
        (encode(make_data_set(1, StudyInstanceUID="")), 0xC000),
        (encode(make_data_set(1, sop_class_uid=CT)), 0xA900),
        (encode(make_data_set(2)), 0xA900),
    ],
    ids=["letter", "truncated pixels", "truncated header", "a file", "no study", "class", "instance"],
)
def test_a_bad_data_set_is_refused_and_the_association_goes_on(node: RunningScp, data: bytes, status: int) -> None:
    with RawScu(node.port) as scu:
        assert scu.store(MR, UID_1, data) == status
        assert node.files() == []
        assert scu.store(MR, UID_1, DATA_1) == 0x0000
    assert list(node.stored()) == [UID_1]


def test_another_class_in_a_context_is_not_supported(node: RunningScp) -> None:
    data = encode(make_data_set(1, sop_class_uid=CT))
    with RawScu(node.port) as scu:
        assert scu.store(CT, UID_1, data) == 0x0122
        assert scu.store(PT, UID_1, encode(make_data_set(1, sop_class_uid=PT))) == 0x0122
    assert node.files() == []


@pytest.mark.parametrize("uid", [VERIFICATION, PUSH_MODEL])
def test_what_is_no_class_to_store_is_not_stored_in_its_own_context(node: RunningScp, uid: str) -> None:
    data_set = make_data_set(1, sop_class_uid=uid)
    with RawScu(node.port, contexts=[(uid, (ExplicitVRLittleEndian,))]) as scu:
        assert scu.store(uid, str(data_set.SOPInstanceUID), encode(data_set)) == 0x0122
    assert node.files() == []


@HOSTILE
def test_a_uid_that_is_a_path_reaches_no_path(node: RunningScp) -> None:
    before = sorted(node.store.root.parent.rglob("*"))
    with RawScu(node.port) as scu:
        assert scu.store(MR, "../../../../tmp/x", DATA_1) == 0xA900
    assert [path for path in sorted(node.store.root.parent.rglob("*")) if path not in before] == []


def test_duplicates(node: RunningScp) -> None:
    other = encode(make_data_set(1, SeriesDescription="another"))
    with RawScu(node.port) as scu:
        assert [scu.store(MR, UID_1, data) for data in (DATA_1, DATA_1, other, other)] == [0, 0, 0x0111, 0x0111]
    assert node.stored()[UID_1].data_set == DATA_1
    with node.database.read() as connection:
        row = connection.execute(select(conflicts)).one()
    assert data_set_bytes(node.store.conflict_path(row.file_name).read_bytes()) == other
    assert len(node.files()) == 2


def test_one_instance_over_several_associations_at_once(node: RunningScp) -> None:
    senders = 4
    start = threading.Barrier(senders)
    statuses: list[int | None] = []

    def send(number: int) -> None:
        data = DATA_1 if number % 2 else encode(make_data_set(1, SeriesDescription="another"))
        with RawScu(node.port) as scu:
            start.wait(10)
            statuses.extend(scu.store(MR, UID_1, data) for _ in range(3))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(status for status in statuses if status is not None) == [0] * 6 + [0x0111] * 6
    assert len(node.files()) == 2
    assert node.store.instance_path(node.stored()[UID_1].path.name).exists()


def test_an_unwritable_store_is_a_processing_failure(node: RunningScp) -> None:
    with RawScu(node.port) as scu:
        node.store.spool_root.rename(node.store.root / "away")
        assert scu.store(MR, UID_1, DATA_1) == 0x0110
        (node.store.root / "away").rename(node.store.spool_root)
        assert scu.store(MR, UID_1, DATA_1) == 0x0000


def test_what_a_process_left_that_died_beside_it_is_taken_in_with_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scp, "SETTLE_EVERY_S", 0.0)
    with RunningScp(tmp_path) as node:
        with RawScu(node.port) as scu:
            assert scu.store(MR, UID_1, DATA_1) == 0x0000
        path = node.stored()[UID_1].path
        with node.database.write() as connection:
            connection.execute(delete(instances))
        left = node.store.spool_folder("0" * 32)
        left.mkdir()
        path.rename(left / path.stem)
        node.scp.step()
        assert node.stored()[UID_1].data_set == DATA_1
        assert not left.exists()


def test_the_maximum_pdu_is_the_settings(tmp_path: Path) -> None:
    with RunningScp(tmp_path, limits=LimitSettings(pdu_bytes=8192, disk_reserve_bytes=0)) as node:
        with RawScu(node.port) as scu:
            assert scu.association.acceptor.maximum_length == 8192
            data = encode(make_data_set(1, size=128))
            assert scu.store(MR, UID_1, data) == 0x0000
        assert node.stored()[UID_1].data_set == data


def test_more_associations_than_allowed_are_refused_for_now(tmp_path: Path) -> None:
    with RunningScp(tmp_path, limits=LimitSettings(associations=2, disk_reserve_bytes=0)) as node, ExitStack() as held:
        for _ in range(4):  # silent ones take no place
            held.enter_context(socket.create_connection((LOOPBACK, node.port)))
        with RawScu(node.port) as first, RawScu(node.port) as second, RawScu(node.port) as third:
            assert (first.is_established, second.is_established) == (True, True)
            assert third.rejection == LOCAL_LIMIT
        wait_until(lambda: _lets_in(node), 10, "a released place to be free")


def _lets_in(node: RunningScp) -> bool:
    with RawScu(node.port) as scu:
        return scu.is_established


def closed_associations(node: RunningScp) -> list[bool]:
    with node.database.read() as connection:
        return [row.closed_at is not None for row in connection.execute(select(associations))]


@pytest.mark.parametrize("how", ["release", "abort", "drop"])
def test_however_an_association_ends_its_row_is_closed(node: RunningScp, how: str) -> None:
    with RawScu(node.port) as scu:
        assert scu.store(MR, UID_1, DATA_1) == 0x0000
        wait_until(lambda: closed_associations(node) == [False], 10)
        end(scu.association, how)
        wait_until(lambda: closed_associations(node) == [True], 10)


def end(association: Association, how: str) -> None:
    if how == "release":
        association.release()
    elif how == "abort":
        association.abort()
    else:
        wrapper = association.dul.socket
        assert wrapper is not None
        assert wrapper.socket is not None
        wrapper.socket.close()
        association.kill()


def test_who_does_not_store_leaves_no_row(node: RunningScp) -> None:
    with RawScu(node.port, calling="VIEWER") as scu:
        scu.store(MR, UID_1, DATA_1)
    assert closed_associations(node) == []


def test_an_idle_association_is_ended(tmp_path: Path) -> None:
    with RunningScp(tmp_path, limits=LimitSettings(idle_s=0.3, disk_reserve_bytes=0)) as node, RawScu(node.port) as scu:
        wait_until(lambda: not scu.is_established, 10)
        assert scu.association.is_released


def test_a_port_in_use_is_named(node: RunningScp) -> None:
    other = StorageScp(node.settings, node.database, node.store, time.time)
    with pytest.raises(ConfigurationError, match=rf"node.port {node.port}: Address already in use; a free port"):
        other.start(node.port)
    assert len(list(node.store.spool_root.glob("*/"))) == 1
    with pytest.raises(StateError, match="does not run"):
        other.stop(1.0)


def test_of_two_errors_of_a_start_the_first_is_told(node: RunningScp, monkeypatch: pytest.MonkeyPatch) -> None:
    root, away = node.store.root, node.store.root.with_name("away")

    def lose_the_disk(*_: object, **__: object) -> None:
        root.rename(away)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lose_the_disk)
    try:
        with pytest.raises(ConfigurationError, match="Name or service not known"):
            StorageScp(node.settings.model_copy(update={"peers": ()}), node.database, node.store, time.time).start(0)
    finally:
        away.rename(root)


def test_a_reload_changes_the_rules_and_drops_nobody(node: RunningScp) -> None:
    peer = SCANNER.model_copy(update={"name": "new", "ae_title": "NEWCOMER"})
    with RawScu(node.port) as old:
        node.scp.reload(node.settings.model_copy(update={"peers": (peer,)}))
        with RawScu(node.port) as refused, RawScu(node.port, calling="NEWCOMER") as admitted:
            assert refused.rejection == CALLING_NOT_RECOGNISED
            assert admitted.store(MR, f"{ROOT}.3.2", encode(make_data_set(2))) == 0x0000
        assert old.store(MR, UID_1, DATA_1) == 0x0000


def test_a_stop_lets_who_is_there_finish(node: RunningScp) -> None:
    with RawScu(node.port) as scu:
        stopping = threading.Thread(target=node.stop, args=(20.0,))
        stopping.start()
        wait_until(lambda: not is_listening(node.port), 10)
        assert scu.store(MR, UID_1, DATA_1) == 0x0000
        assert stopping.is_alive()
    stopping.join(5)
    assert not stopping.is_alive()
    assert list(node.stored()) == [UID_1]
    assert list(node.store.spool_root.glob("*/")) == []


def test_who_connected_before_a_stop_is_not_admitted_after(node: RunningScp) -> None:
    _, parts, _ = node.scp._parts()
    parts.refuse_all()
    with RawScu(node.port) as scu:
        assert scu.rejection == LOCAL_LIMIT


def test_a_stop_aborts_who_does_not_finish(node: RunningScp) -> None:
    silent = socket.create_connection((LOOPBACK, node.port))
    half = socket.create_connection((LOOPBACK, node.port))
    half.sendall(b"\x01\x00\x00")
    with RawScu(node.port) as scu:
        assert scu.store(MR, UID_1, DATA_1) == 0x0000
        pdus: list[str] = []
        scu.association.bind(evt.EVT_PDU_RECV, lambda event: pdus.append(type(event.pdu).__name__))
        started = time.monotonic()
        node.stop(0.3)
        assert time.monotonic() - started < 6
        wait_until(lambda: scu.association.is_aborted, 5)
    assert pdus == ["A_ABORT_RQ"]  # and not just a lost connection
    assert closed_associations(node) == [True]
    assert not [thread.name for thread in threading.enumerate() if "AcceptorThread" in thread.name]
    silent.close()
    half.close()


def test_no_identity_and_no_raw_text_reaches_the_log(node: RunningScp) -> None:
    data_set = make_data_set(1, PatientName="Secret^Name", PatientID="SECRET-ID", PatientBirthDate="19010203")
    other = make_data_set(1, PatientName="Secret^Other", PatientID="SECRET-ID", PatientBirthDate="19010203")
    with capture_logs() as logs, RawScu(node.port) as scu:
        assert scu.store(MR, UID_1, encode(data_set)) == 0x0000
        assert scu.store(MR, UID_1, encode(other)) == 0x0111
        assert scu.store(MR, UID_1, encode(data_set)[:-9]) == 0xC000
    text = repr(logs).lower()
    assert "receive.failed" in text
    assert "secret" not in text
    assert "19010203" not in text
