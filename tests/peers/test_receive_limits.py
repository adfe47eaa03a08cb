"""What a peer may not take from us: bytes, time and places. Raw sockets are the peers."""

from __future__ import annotations

import logging
import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from structlog.testing import capture_logs

from dicomnode.commitment import PUSH_MODEL
from dicomnode.settings_limits import LimitSettings
from tests.certificates import Authority
from tests.peers_programs import LOOPBACK, free_port
from tests.raw_association import (
    A_ABORT,
    A_RELEASE_RQ,
    COMMAND,
    LAST,
    P_DATA,
    RawAssociation,
    echo_command,
    fragments,
    pdu,
    pdv,
    store_command,
    with_group_length,
)
from tests.raw_scu import RawScu
from tests.receiving import MR, ROOT, encode, make_data_set, nested_sequences
from tests.storage_scp import RunningScp
from tests.waiting import wait_until

UID_1 = f"{ROOT}.3.1"
DATA_1 = encode(make_data_set(1))
COMMAND_1 = store_command(MR, UID_1)
NOT_SPECIFIED, UNRECOGNISED_PDU, UNEXPECTED_PARAMETER, INVALID_VALUE = 0, 1, 5, 6  # PS3.8 table 9-26
BY_PROVIDER = 2
BOTH = [(MR, (ExplicitVRLittleEndian,)), (PUSH_MODEL, (ExplicitVRLittleEndian,))]
VERIFICATION = "1.2.840.10008.1.1"
PAGE_BYTES = resource.getpagesize()


@contextmanager
def running(tmp_path: Path, **limits: Any) -> Iterator[RunningScp]:
    with RunningScp(tmp_path / "root", limits=LimitSettings(disk_reserve_bytes=0, **limits)) as node:
        yield node


def is_aborted(raw: RawAssociation, reason: int) -> bool:
    return raw.read() == pdu(A_ABORT, bytes((0, 0, BY_PROVIDER, reason))) and raw.is_closed()


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES


def store(raw: RawAssociation, data: bytes = DATA_1) -> int:
    """Store an instance and return the status."""
    raw.send_pdvs([[pdv(1, COMMAND | LAST, COMMAND_1), *fragments(1, 0, data, 4000)]])
    answer = raw.read()
    assert answer is not None
    assert answer[0] == P_DATA
    at = answer.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
    return int.from_bytes(answer[at : at + 2], "little")


def assert_nothing_is_left(node: RunningScp) -> None:
    _, associations, _ = node.scp._parts()
    wait_until(lambda: not associations._connections and not associations._senders, 10, "no association to be left")
    assert node.files() == []
    with RawAssociation(node.port).associate() as raw:
        assert store(raw) == 0x0000


def count(node: RunningScp, limit: str) -> int:
    return node.scp.counts.read().get(f'dicomnode_receive_limit_crossings{{limit="{limit}"}}', 0)


def assert_crossed(node: RunningScp, logs: list[Any], limit: str, words: str) -> None:
    """Assert that the crossing of a limit was counted and logged once, and that nothing is left of who crossed it."""
    assert count(node, limit) == 1
    (told,) = [entry for entry in logs if entry.get("limit") == limit]
    assert (told["event"], told["why"]) == ("receive.aborted", words)
    assert_nothing_is_left(node)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 16385])
def test_a_pdu_longer_than_negotiated_is_refused_by_its_header(tmp_path: Path, length: int) -> None:
    with running(tmp_path, pdu_bytes=16384) as node, capture_logs() as logs:
        with RawAssociation(node.port).associate() as raw:
            raw.send(struct.pack(">BxL", P_DATA, length) + bytes(100))
            assert is_aborted(raw, INVALID_VALUE)
        words = f"a PDU of type 04 says it has {length} bytes, at most 16384 are taken"
        assert_crossed(node, logs, "pdu_bytes", words)


@pytest.mark.parametrize(
    "header", [struct.pack(">BxL", 0x01, 0xFFFFFFFF), struct.pack(">BxL", A_ABORT, 4097)], ids=["request", "abort"]
)
def test_what_comes_before_an_association_is_bounded(tmp_path: Path, header: bytes) -> None:
    with running(tmp_path, associate_bytes=4096) as node, capture_logs() as logs:
        with RawAssociation(node.port) as raw:
            raw.send(header)
            assert is_aborted(raw, INVALID_VALUE)
        length = int.from_bytes(header[2:], "big")
        words = f"a PDU of type {header[0]:02X} says it has {length} bytes, at most 4096 are taken"
        assert_crossed(node, logs, "associate_bytes", words)


def test_a_data_set_beyond_the_limit_ends_its_association_while_it_comes(tmp_path: Path) -> None:
    part, parts = bytes(130000), 800
    with running(tmp_path, data_set_bytes=1048576) as node, capture_logs() as logs:
        with RawAssociation(node.port).associate() as raw:
            raw.send_pdvs([[pdv(1, COMMAND | LAST, COMMAND_1)]])
            before = memory_bytes()
            with suppress(OSError):  # it is cut off in the middle
                raw.send_pdvs([[pdv(1, 0, part)]] * parts)
            assert memory_bytes() - before < 20_000_000 < parts * len(part)
        assert_crossed(node, logs, "data_set_bytes", "a data set of more than 1048576 bytes comes")


def test_who_crosses_a_limit_of_an_association_is_told_by_an_abort(tmp_path: Path) -> None:
    nested = encode(make_data_set(2)) + nested_sequences(3)
    cases: list[tuple[dict[str, int], list[bytes], str]] = [
        ({"association_instances": 2}, [DATA_1] * 3, "instance 3 came, 2 are taken"),
        (
            {"association_bytes": 1048576},
            [bytes(1100000)],
            f"{1100036 + len(COMMAND_1)} bytes came, at most 1048576 are taken",
        ),
        ({"data_set_bytes": 1048576}, [bytes(1048577)], "a data set of more than 1048576 bytes comes"),
        ({"nesting_depth": 2}, [nested], f"sequences nest deeper than 2 at byte {len(encode(make_data_set(2))) + 40}"),
    ]
    for number, (limits, data_sets, words) in enumerate(cases):
        with running(tmp_path / str(number), pdu_bytes=1048576, **limits) as node, capture_logs() as logs:
            with RawAssociation(node.port).associate() as raw:
                for data in data_sets[:-1]:
                    assert store(raw, data) == 0x0000
                raw.send_pdvs([[pdv(1, COMMAND | LAST, COMMAND_1)]])
                raw.send_pdvs([[value] for value in fragments(1, 0, data_sets[-1], 1_000_000)])
                assert is_aborted(raw, NOT_SPECIFIED)
            (limit,) = limits
            assert count(node, limit) == 1
            assert [(row["event"], row["why"]) for row in logs if row.get("limit") == limit] == [
                ("receive.aborted", words)
            ]


def test_an_odd_command_with_too_deep_a_data_set_is_aborted_too(tmp_path: Path) -> None:
    odd = store_command(MR, UID_1, ErrorComment="for pynetdicom to read")
    with running(tmp_path, nesting_depth=2) as node, capture_logs() as logs:
        with RawAssociation(node.port).associate() as raw:
            raw.send_pdvs([[pdv(1, COMMAND | LAST, odd), pdv(1, LAST, DATA_1 + nested_sequences(3))]])
            assert is_aborted(raw, NOT_SPECIFIED)
        assert_crossed(node, logs, "nesting_depth", f"sequences nest deeper than 2 at byte {len(DATA_1) + 40}")
        assert [row["event"] for row in logs if row["log_level"] == "warning"] == ["receive.aborted"]  # and no answer


def test_who_holds_most_of_the_memory_goes_and_small_instances_go_on(tmp_path: Path) -> None:
    limits = {"memory_bytes": 1 << 20, "data_set_bytes": 1 << 20, "associations": 8}
    with running(tmp_path, **limits) as node, capture_logs() as logs:
        _, associations, _ = node.scp._parts()
        with RawAssociation(node.port).associate() as large, RawAssociation(node.port).associate() as small:
            large.send_pdvs([[pdv(1, COMMAND | LAST, COMMAND_1)], *[[pdv(1, 0, bytes(103_000))]] * 10])
            wait_until(lambda: associations._memory.change(0) > 1_030_000, 10, "most of the memory to be held")
            data = encode(make_data_set(1, size=128))
            assert len(data) + 1_030_000 > 1 << 20
            assert store(small, data) == 0x0000
            large.send_pdvs([[pdv(1, 0, bytes(18_500))]])
            assert is_aborted(large, NOT_SPECIFIED)
        (told,) = [row for row in logs if row.get("limit") == "memory_bytes"]
        assert told["why"].endswith("of them this one's; at most 1048576 are kept in memory")
        assert count(node, "memory_bytes") == 1


def test_memory_is_given_back_after_each_instance(tmp_path: Path) -> None:
    data, limits = encode(make_data_set(1, size=128)), {"memory_bytes": 1 << 18, "data_set_bytes": 1 << 18}
    with running(tmp_path, associations=1, **limits) as node, RawAssociation(node.port).associate() as raw:
        for _ in range(2 + (1 << 18) // len(data)):  # more in all than may be held
            assert store(raw, data) == 0x0000


def test_what_pynetdicom_answers_is_held_until_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd, held = store_command(MR, UID_1, ErrorComment="for pynetdicom to read"), list[int]()
    with running(tmp_path) as node, RawAssociation(node.port).associate() as raw:
        server, associations, _ = node.scp._parts()

        def look(*_: object) -> int:
            held.append(associations._memory.change(0))
            return 0x0000

        server.bind(evt.EVT_DIMSE_RECV, look)
        monkeypatch.setattr(associations, "store", look)
        for _ in range(2):
            raw.send_pdvs([[pdv(1, COMMAND | LAST, odd), pdv(1, LAST, DATA_1)]])
            assert raw.read() is not None
        wait_until(lambda: associations._memory.change(0) == 0, 10, "the bytes to be given back")
    pdu_bytes = 6 + 6 + len(odd) + 6 + len(DATA_1)
    assert held == [pdu_bytes] * 4


@pytest.mark.parametrize(
    "request_",
    [
        pdv(1, COMMAND | LAST, COMMAND_1) + pdv(1, LAST, b"no data set"),  # which we answer ourselves
        pdv(3, COMMAND | LAST, echo_command()),  # which pynetdicom does
    ],
    ids=["store", "echo"],
)
def test_who_does_not_read_its_answers_is_let_go(
    tmp_path: Path, library_words: list[logging.LogRecord], request_: bytes
) -> None:
    contexts = [(MR, (ExplicitVRLittleEndian,)), (VERIFICATION, (ExplicitVRLittleEndian,))]
    with running(tmp_path, pdu_s=0.3) as node, capture_logs() as logs:
        _, associations, _ = node.scp._parts()
        with RawAssociation(node.port).associate(contexts) as raw:
            for one in (next(iter(associations._connections.values()))._connection.socket, raw.socket):
                assert one is not None
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.socket.settimeout(2)
            with pytest.raises(OSError, match=r"timed out|reset|Broken pipe"):
                raw.send(pdu(P_DATA, request_) * 20_000)
            wait_until(lambda: not associations._connections, 10, "it to be let go")
        assert_crossed(node, logs, "pdu_s", "it did not read an answer within 0.3 s")
    assert library_words == []


def test_memory_is_given_back_however_an_association_ends(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        _, associations, _ = node.scp._parts()
        for last_words in (b"", pdu(A_ABORT, bytes(4)), b"\x09" + bytes(9)):
            with RawAssociation(node.port).associate() as raw:
                raw.send_pdvs([[pdv(1, COMMAND | LAST, COMMAND_1), pdv(1, 0, bytes(50000))]])
                wait_until(lambda: associations._memory.change(0) > 50000, 10, "the bytes to be held")
                raw.send(last_words)
            wait_until(lambda: associations._memory.change(0) == 0, 10, "the bytes to be given back")
        assert_nothing_is_left(node)
        wait_until(lambda: associations._memory.change(0) == 0, 10, "the bytes of what was stored to be given back")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x09" + bytes(9), UNRECOGNISED_PDU),
        (pdu(P_DATA, b"\0\0\0\x01\x01"), INVALID_VALUE),
        (pdu(P_DATA, struct.pack(">LBB", 5000, 1, 0)), INVALID_VALUE),
        (pdu(P_DATA, struct.pack(">LBB", 1, 1, 0)), INVALID_VALUE),
        (pdu(P_DATA, pdv(1, LAST, DATA_1)), UNEXPECTED_PARAMETER),
        (pdu(P_DATA, pdv(1, COMMAND | LAST, COMMAND_1) * 2), UNEXPECTED_PARAMETER),
        (pdu(P_DATA, pdv(1, COMMAND | LAST, COMMAND_1) + pdv(3, LAST, DATA_1)), UNEXPECTED_PARAMETER),
        (pdu(P_DATA, pdv(1, COMMAND | LAST, COMMAND_1[:-3])), INVALID_VALUE),
        (pdu(P_DATA, pdv(1, COMMAND | LAST, b"\xff" * 64)), INVALID_VALUE),
        (pdu(P_DATA, pdv(1, COMMAND, bytes(9000))) * 2, INVALID_VALUE),
        (pdu(P_DATA, pdv(1, COMMAND | LAST, store_command(MR, UID_1, CommandField=0x7777, CommandDataSetType=0x0101))),
         INVALID_VALUE),
    ],
    ids=[
        "unknown pdu", "half pdv", "pdv too long", "pdv too short", "data first", "two commands", "two contexts",
        "cut command", "no command", "endless command", "unknown command",
    ],
)  # fmt: skip
def test_what_is_no_message_ends_the_association(tmp_path: Path, sent: bytes, reason: int) -> None:
    with running(tmp_path) as node:
        with RawAssociation(node.port).associate() as raw:
            raw.send(sent)
            assert is_aborted(raw, reason)
        assert_nothing_is_left(node)


LONG, CANNOT_READ = "1." * 60 + "1", "lacks a value that it needs, or has one that cannot be read"
PUSH = {"RequestedSOPClassUID": PUSH_MODEL, "RequestedSOPInstanceUID": "1.2", "MessageID": 1}
REPORT = {"AffectedSOPClassUID": PUSH_MODEL, "AffectedSOPInstanceUID": "1.2", "MessageID": 1, "EventTypeID": 1}


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")  # pydicom, of what is sent on purpose
@pytest.mark.parametrize(
    ("context_id", "command", "words"),
    [
        (1, {"CommandField": 0x0020, "AffectedSOPClassUID": MR}, f"command 0020 came in presentation context 1, {MR}"),
        (1, {"CommandField": 0x0110, **PUSH}, f"command 0110 came in presentation context 1, {MR}"),
        (1, {"CommandField": 0x0130, **PUSH}, f"command 0130 came in presentation context 1, {MR}"),
        (3, {"CommandField": 0x0001, "MessageID": 1}, f"command 0001 came in presentation context 3, {PUSH_MODEL}"),
        (1, {"CommandField": 0x8001, "Status": 0}, f"command 8001 came in presentation context 1, {MR}"),
        (9, {"CommandField": 0x0030, "MessageID": 1}, "command 0030 came in presentation context 9, None"),
        (1, {"MessageID": 1}, f"command none came in presentation context 1, {MR}"),
        (1, {"CommandField": 0x0001, "MessageID": 1, "AffectedSOPClassUID": MR}, f"command 0001 {CANNOT_READ}"),
        (1, {"CommandField": 0x0001, "AffectedSOPInstanceUID": LONG}, f"command 0001 {CANNOT_READ}"),
        (3, {"CommandField": 0x0130, "RequestedSOPClassUID": PUSH_MODEL}, f"command 0130 {CANNOT_READ}"),
        (3, {"CommandField": 0x0100, "AffectedSOPClassUID": PUSH_MODEL}, f"command 0100 {CANNOT_READ}"),
    ],
)
def test_a_message_that_nobody_answers_ends_the_association(
    tmp_path: Path, context_id: int, command: dict[str, Any], words: str
) -> None:
    sent = Dataset()
    for keyword, value in {"CommandDataSetType": 0x0101, **command}.items():
        setattr(sent, keyword, value)
    with running(tmp_path) as node, capture_logs() as logs:
        with RawAssociation(node.port).associate(BOTH) as raw:
            raw.send_pdvs([[pdv(context_id, COMMAND | LAST, with_group_length(sent))]])
            assert is_aborted(raw, INVALID_VALUE)
        assert [row["why"] for row in logs if row["event"] == "receive.aborted"] == [words]
        assert_nothing_is_left(node)


def test_reports_without_number_do_not_take_a_thread_each(tmp_path: Path) -> None:
    report = Dataset()
    for keyword, value in {"CommandField": 0x0100, "CommandDataSetType": 0x0101, **REPORT}.items():
        setattr(report, keyword, value)
    with running(tmp_path) as node, capture_logs() as logs, RawAssociation(node.port).associate(BOTH) as raw:
        one = pdv(3, COMMAND | LAST, with_group_length(report))
        for _ in range(3):  # one after the other
            raw.send_pdvs([[one]])
            answer = raw.read()
            assert answer is not None
            assert answer[0] == P_DATA
        raw.send_pdvs([[one] * 100])
        wait_until(lambda: any(row["event"] == "receive.aborted" for row in logs), 10, "it to be ended")
        assert "a report came before the answer to the last one" in str(logs)


@pytest.mark.parametrize(
    ("limits", "sent", "words"),
    [
        ({"pdu_s": 0.3}, struct.pack(">BxL", P_DATA, 100) + b"x", "a PDU took longer than 0.3 s to arrive"),
        ({"pdu_s": 0.3}, b"\x04\0", "a PDU took longer than 0.3 s to arrive"),
        (
            {"data_set_s": 0.3},
            pdu(P_DATA, pdv(1, COMMAND | LAST, COMMAND_1)),
            "an instance took longer than 0.3 s to arrive",
        ),
        (
            {"idle_s": 0.3},
            pdu(P_DATA, pdv(1, COMMAND | LAST, COMMAND_1)),
            "nothing came for 0.3 s in the middle of a message",
        ),
    ],
)
def test_half_of_something_is_not_waited_for_for_ever(
    tmp_path: Path, limits: dict[str, float], sent: bytes, words: str
) -> None:
    with running(tmp_path, **limits) as node, capture_logs() as logs:
        with RawAssociation(node.port).associate() as raw:
            raw.send(sent)
            assert is_aborted(raw, NOT_SPECIFIED)
        (limit,) = limits
        assert_crossed(node, logs, limit, words)


def test_a_trickle_does_not_keep_a_pdu_alive(tmp_path: Path) -> None:
    with running(tmp_path, pdu_s=0.5) as node, RawAssociation(node.port).associate() as raw:
        raw.send(struct.pack(">BxL", P_DATA, 100_000))
        trickling = threading.Event()

        def trickle() -> None:
            try:
                while not trickling.wait(0.05):
                    raw.send(b"x")
            except OSError:
                return  # cut off, as it should be

        thread = threading.Thread(target=trickle)
        thread.start()
        assert is_aborted(raw, NOT_SPECIFIED)
        trickling.set()
        thread.join(5)


def test_between_two_instances_only_silence_counts(tmp_path: Path) -> None:
    with running(tmp_path, pdu_s=0.2, data_set_s=0.2) as node, RawAssociation(node.port).associate() as raw:
        for _ in range(2):
            assert store(raw) == 0x0000
            assert not select.select([raw.socket], [], [], 0.6)[0]  # neither a word nor the end
        raw.release()


def test_a_stream_that_never_pauses_does_not_keep_an_instance_alive(tmp_path: Path) -> None:
    nothing = pdu(P_DATA, pdv(1, 0, b"")) * 1000  # more than can be read before the next comes
    with running(tmp_path, data_set_s=0.3) as node, capture_logs() as logs:
        with RawAssociation(node.port).associate() as raw:
            raw.send_pdvs([[pdv(1, COMMAND | LAST, COMMAND_1)]])
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                send_on(raw, nothing, 10)
        assert_crossed(node, logs, "data_set_s", "an instance took longer than 0.3 s to arrive")


def send_on(raw: RawAssociation, data: bytes, for_s: float) -> None:
    stop_at = time.monotonic() + for_s
    while time.monotonic() < stop_at:
        raw.send(data)


def test_silent_and_half_open_sockets_take_no_place(tmp_path: Path) -> None:
    with running(tmp_path, associations=1, waiting_connections=8) as node, ExitStack() as held:
        silent = [held.enter_context(RawAssociation(node.port)) for _ in range(20)]
        for number, raw in enumerate(silent[-8:]):
            raw.send(b"\x01\0\0\0\0\xff"[:number])
        with RawAssociation(node.port).associate() as raw:
            assert store(raw) == 0x0000
        left = [raw for raw in silent if not select.select([raw.socket], [], [], 0)[0]]
        assert left == silent[-7:]  # the oldest were cut off
        assert count(node, "waiting_connections") == 13  # as one more came in


def cpu_s() -> float:
    used = os.times()
    return used.user + used.system


def test_idle_associations_cost_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as node, ExitStack() as held:
        for _ in range(30):
            held.enter_context(RawAssociation(node.port)).associate()
        before, started = cpu_s(), time.monotonic()
        with RawScu(node.port) as scu:
            wait_until(lambda: time.monotonic() - started > 2, 5)
            assert scu.is_established
        assert cpu_s() - before < 0.5  # polling each millisecond took 0.3 s of each second for thirty


@pytest.mark.parametrize("which", ["of the association", "of the connection"])
def test_without_a_thread_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if isinstance(thread, Association) == (which == "of the association"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with running(tmp_path) as node, capture_logs() as logs:
        monkeypatch.setattr(threading.Thread, "start", fail)
        with RawAssociation(node.port) as raw:
            raw.send(b"\x01")
            assert raw.is_closed()
        monkeypatch.undo()
        _, associations, _ = node.scp._parts()
        wait_until(lambda: not associations._connections and not associations.waiting.count(), 10, "nothing to be kept")
        told = [(row["event"], row["why"]) for row in logs if row["log_level"] == "error"]
        assert told == [("receive.no_association", "can't start new thread")]
        assert_nothing_is_left(node)


def test_a_reload_sets_the_limits_of_who_comes_after_it(tmp_path: Path) -> None:
    with running(tmp_path) as node, capture_logs() as logs:
        limits = LimitSettings(disk_reserve_bytes=0, pdu_bytes=16384, idle_s=0.3)
        with RawAssociation(node.port).associate() as before:
            node.scp.reload(node.settings.model_copy(update={"limits": limits}))
            with RawAssociation(node.port) as silent:
                assert silent.is_closed()
            with RawAssociation(node.port).associate() as raw:
                raw.send(struct.pack(">BxL", P_DATA, 16385) + bytes(100))
                assert is_aborted(raw, INVALID_VALUE)
            assert store(before) == 0x0000
    assert [row["limit"] for row in logs if "limit" in row] == ["idle_s", "pdu_bytes"]


def test_who_is_silent_is_let_go_counted_and_told_once(tmp_path: Path) -> None:
    with running(tmp_path, idle_s=0.3) as node, capture_logs() as logs:
        with RawAssociation(node.port) as connected, RawAssociation(node.port) as half:
            half.send(b"\x01")
            assert connected.is_closed()
            assert half.is_closed()
        with RawAssociation(node.port).associate() as associated:
            assert associated.read() == A_RELEASE_RQ  # some peers discard a study that ends with A-ABORT
        assert count(node, "idle_s") == 3
        told = [row["why"] for row in logs if row.get("limit") == "idle_s"]
        assert told == ["nothing came for 0.3 s"] * 3


def test_a_handshake_under_way_is_one_of_those_that_wait(tmp_path: Path, authority: Authority) -> None:
    tls = authority.settings(authority.sign("/CN=node"), free_port())
    limits = LimitSettings(disk_reserve_bytes=0, waiting_connections=4)
    with RunningScp(tmp_path, limits=limits, tls=tls) as node, ExitStack() as held:
        silent = [held.enter_context(socket.create_connection((LOOPBACK, tls.port), timeout=10)) for _ in range(6)]
        for connection in silent[:2]:
            assert connection.recv(1) == b""
        silent += [held.enter_context(socket.create_connection((LOOPBACK, node.port), timeout=10)) for _ in range(2)]
        for connection in silent[2:4]:
            assert connection.recv(1) == b""  # the oldest, whichever port they came to
        assert not select.select(silent[4:], [], [], 0.2)[0]
        assert (node.scp._parts()[1].waiting.count(), count(node, "waiting_connections")) == (4, 4)
        with RawAssociation(node.port).associate() as raw:
            assert store(raw) == 0x0000
