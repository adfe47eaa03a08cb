"""Whom the node lets in and with what: places and pace, SOP classes and syntaxes, and words that do no harm."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless
from structlog.testing import capture_logs

from dicomnode.app import Node
from dicomnode.errors import ConfigurationError
from dicomnode.receive import scp
from dicomnode.settings import NodeSettings, PeerSettings, ReceiveSettings, Settings
from dicomnode.settings_limits import LimitSettings
from tests.builders import NODE_AE, NodeProcess, Peer, make_config, run_command
from tests.peers_programs import LOOPBACK, free_port
from tests.raw_association import RawAssociation, associate_request, fragments, pdv, store_command
from tests.raw_scu import RawScu
from tests.receiving import MR, PT, ROOT, encode, make_data_set, raw_element
from tests.storage_scp import SCANNER, VIEWER, RunningScp
from tests.waiting import wait_until

UID_1 = f"{ROOT}.3.1"
DATA_1 = encode(make_data_set(1))
LOCAL_LIMIT_EXCEEDED, TEMPORARY_CONGESTION = (2, 3, 2), (2, 3, 1)  # PS3.8 table 9-21
NOT_RECOGNISED, NOT_CALLED = (1, 1, 3), (1, 1, 7)
SILENT_S = 20.0  # of a name server; longer than any test waits
LATE_S = 0.5
VERIFICATION = "1.2.840.10008.1.1"
PET = {"name": "pet", "ae_title": "PET", "sop_classes": ("PositronEmissionTomographyImageStorage",)}
OLD = {"name": "old", "ae_title": "OLD", "transfer_syntaxes": ("ImplicitVRLittleEndian",)}
PET_ONLY, IMPLICIT_ONLY = SCANNER.model_copy(update=PET), SCANNER.model_copy(update=OLD)


@contextmanager
def running(tmp_path: Path, *peers: PeerSettings, **limits: Any) -> Iterator[RunningScp]:
    with RunningScp(tmp_path, peers, limits=LimitSettings(disk_reserve_bytes=0, **limits)) as node:
        yield node


def count(node: RunningScp, limit: str) -> int:
    return node.scp.counts.read().get(f'dicomnode_receive_limit_crossings{{limit="{limit}"}}', 0)


def refusals(logs: list[Any]) -> list[tuple[str, str]]:
    return [(row["rule"], row["why"]) for row in logs if row["event"] in ("receive.refused", "receive.context_refused")]


def test_one_peer_does_not_take_every_place(tmp_path: Path) -> None:
    with running(tmp_path, SCANNER, VIEWER, associations=3, associations_per_peer=2) as node, ExitStack() as held:
        for _ in range(2):
            assert held.enter_context(RawScu(node.port)).is_established
        with capture_logs() as logs, RawScu(node.port) as third:
            assert third.rejection == LOCAL_LIMIT_EXCEEDED
        words = "'SCANNER' at 127.0.0.1: limits.associations_per_peer is reached: 2 of 2 are open"
        assert refusals(logs) == [("limits.associations_per_peer", words)]
        assert held.enter_context(RawScu(node.port, calling="VIEWER")).is_established
        with capture_logs() as logs, RawScu(node.port, calling="VIEWER") as fourth:
            assert fourth.rejection == LOCAL_LIMIT_EXCEEDED
        assert refusals(logs) == [
            ("limits.associations", "'VIEWER' at 127.0.0.1: limits.associations is reached: 3 of 3 are open")
        ]
        assert (count(node, "associations_per_peer"), count(node, "associations")) == (1, 1)


def test_a_peer_that_asks_too_often_is_told_so_and_others_are_not(tmp_path: Path) -> None:
    with running(tmp_path, SCANNER, VIEWER, associations_per_minute=3) as node, capture_logs() as logs:
        for _ in range(3):
            with RawScu(node.port) as scu:
                assert scu.is_established
        with RawScu(node.port) as often, RawScu(node.port, calling="VIEWER") as other:
            assert often.rejection == TEMPORARY_CONGESTION
            assert other.is_established
        words = "'SCANNER' at 127.0.0.1: it asked more than 3 times in a minute"
        assert refusals(logs) == [("limits.associations_per_minute", words)]
        assert count(node, "associations_per_minute") == 1


def test_a_peer_has_the_sop_classes_it_is_configured_with(tmp_path: Path) -> None:
    contexts = [(uid, (ExplicitVRLittleEndian,)) for uid in (MR, PT, VERIFICATION)]
    with running(tmp_path, PET_ONLY, SCANNER) as node, capture_logs() as logs:
        with RawScu(node.port, calling="PET", contexts=contexts) as scu:
            assert set(scu.accepted()) == {PT, VERIFICATION}
        with RawScu(node.port, contexts=contexts) as scu:
            assert {MR, PT} < set(scu.accepted())
    assert refusals(logs) == [
        (
            "SOP class or transfer syntax of the peer",
            "'PET' offered MRImageStorage, which peer pet is not configured with",
        )
    ]


def test_a_peer_has_the_transfer_syntaxes_it_is_configured_with(tmp_path: Path) -> None:
    contexts = [(MR, (ExplicitVRLittleEndian, ImplicitVRLittleEndian)), (PT, (JPEGLSLossless, ExplicitVRLittleEndian))]
    with (
        running(tmp_path, IMPLICIT_ONLY) as node,
        capture_logs() as logs,
        RawScu(node.port, calling="OLD", contexts=contexts) as scu,
    ):
        assert scu.accepted() == {MR: ImplicitVRLittleEndian}
    assert [why for _, why in refusals(logs)] == [
        "'OLD' offered PositronEmissionTomographyImageStorage in JPEGLSLossless or ExplicitVRLittleEndian, "
        "which peer old is not configured with"
    ]


# What a hostile peer would like to write: a log line, a terminal's title, a table's end, a page's script, a path.
HOSTILE = (
    "a\nreceive.stored b",
    "\x1b]0;owned\x07",
    "'); DROP TABLE series;--",
    "<script>alert(1)</script>",
    "../../../../etc/passwd",
    "%s%n{0}\x00\u202e",
)
AE_TITLES = (b"A\nB", b"\x1b]0;x\x07", b"x' OR 1=1--", b"<img src=x>", b"../../etc/x", b"a\\b", b"\xff\xfe\0")


@pytest.fixture
def hostile_node(tmp_path: Path) -> Iterator[tuple[NodeProcess, Path, int]]:
    port = free_port()
    config = make_config(tmp_path, [Peer("scanner", "SCANNER")], port)
    with NodeProcess(config, port, ["receive"]) as node:
        yield node, config, port


def test_hostile_words_reach_no_path_query_log_or_listing(
    hostile_node: tuple[NodeProcess, Path, int], tmp_path: Path
) -> None:
    node, config, port = hostile_node
    for number, words in enumerate(HOSTILE):
        send_hostile(port, number, words)
    for title in AE_TITLES:
        call_as(port, title)
    table = run_command("series", "list", "--config", config)
    listed = run_command("series", "list", "--config", config, "--json")
    assert len(listed.json) == len(HOSTILE)
    shown = [run_command("series", "show", row["series_uid"], "--config", config).stdout for row in listed.json]
    assert "Traceback" not in node.output()
    for text in (table.stdout, listed.stdout, *shown, node.log.read_bytes().decode("utf-8")):
        assert text
        assert all(line.isprintable() for line in text.split("\n"))
        assert not any(line.startswith("receive.stored b") for line in text.split("\n"))
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("*")]
    assert not [name for name in names if not set(str(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_@/")]


def send_hostile(port: int, number: int, words: str) -> None:
    """Store an instance whose names and descriptions are hostile; its UIDs are so where no value is needed."""
    data_set = make_data_set(number, SeriesInstanceUID=f"{ROOT}.77.{number}")
    data = encode(data_set)
    for keyword in ("SeriesDescription", "PatientName", "PatientID", "AccessionNumber", "FrameOfReferenceUID"):
        data += raw_element(keyword, words.encode())
    with RawAssociation(port).associate(called=NODE_AE) as raw:
        raw.send_pdvs([[pdv(1, 3, store_command(MR, str(data_set.SOPInstanceUID))), *fragments(1, 0, data, 8000)]])
        answer = raw.read()
        assert answer is not None
        assert b"\0\0\0\x09\x02\0\0\0\0\0" in answer, answer  # (0000,0900) is 0000
        raw.send_pdvs([[pdv(1, 3, store_command(MR, UID_1)), *fragments(1, 0, data, 8000)]])
        assert raw.read() is not None  # another instance than it says
        raw.send_pdvs([[pdv(1, 3, hostile_command(words)), *fragments(1, 0, data, 8000)]])
        raw.read()


def hostile_command(words: str) -> bytes:
    """Return a C-STORE-RQ whose SOP Instance UID is hostile, as long as a UID may be."""
    uid = words.encode()[:64].ljust(len(UID_1), b" ")[: len(UID_1)]
    return store_command(MR, UID_1).replace(UID_1.encode(), uid)


def call_as(port: int, title: bytes) -> None:
    """Ask for an association with an AE title of any bytes, as caller and as called."""
    for calling, called in ((title, NODE_AE.encode()), (b"SCANNER", title)):
        request = associate_request("CALLING", "CALLED", [(MR, (ExplicitVRLittleEndian,))], 16384)
        request = request.replace(b"CALLING".ljust(16), calling.ljust(16)).replace(
            b"CALLED".ljust(16), called.ljust(16)
        )
        with RawAssociation(port) as raw:
            raw.send(request)
            answer = raw.read()
            assert answer is not None
            assert answer[6:] == bytes((0, *(NOT_RECOGNISED if called == NODE_AE.encode() else NOT_CALLED)))


def test_anybody_with_a_hostile_title_is_kept_and_shown_escaped(tmp_path: Path) -> None:
    with RunningScp(tmp_path, receive=ReceiveSettings(accept="any")) as node, capture_logs() as logs:
        with RawScu(node.port, calling="<img src=x>") as scu:
            assert scu.store(MR, UID_1, DATA_1) == 0x0000
        wait_until(lambda: any(row["event"] == "receive.ended" for row in logs), 10)
        assert [row["calling_ae"] for row in logs if "calling_ae" in row] == ["'<img src=x>'"] * 2


def test_a_reload_does_not_open_the_port_of_now_to_what_holds_for_that_of_the_file(tmp_path: Path) -> None:
    ours = NodeSettings(ae_title="DICOMNODE", bind="0.0.0.0", storage_root=tmp_path)  # noqa: S104  that is the point
    limits = LimitSettings(disk_reserve_bytes=0)
    node = Node(Settings(node=ours, limits=limits), ["receive"])
    node.start(0)
    try:
        written = Settings(
            node=ours.model_copy(update={"bind": "127.0.0.1"}), limits=limits, receive=ReceiveSettings(accept="any")
        )
        with pytest.raises(ConfigurationError, match=r"^receive.accept: .* node.bind is 0.0.0.0; .*restart"):
            node.reload(written)
        with RawScu(node.port, calling="STRANGER") as stranger:
            assert stranger.rejection == NOT_RECOGNISED
    finally:
        node.stop()


class NameServer:
    """Answers for names of this machine's, as the process asks it: at once, late, not at all, or with a failure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_away, self.goes_on = False, threading.Event()
        self._resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._answer)

    def _answer(self, host: str | None, *rest: Any, **named: Any) -> Any:
        name = host or ""
        if name.endswith((".silent", ".late")):
            self.goes_on.wait(SILENT_S if name.endswith(".silent") else LATE_S)
        if name.endswith((".silent", ".late", ".invalid")):
            if self.is_away:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            host = LOOPBACK
        return self._resolve(host, *rest, **named)


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer(monkeypatch)
    yield server
    server.goes_on.set()


def at(host: str, peer: PeerSettings = SCANNER, **more: str) -> PeerSettings:
    return peer.model_copy(update={"host": host, **more})


def test_a_peer_is_let_in_once_its_name_has_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name_server: NameServer
) -> None:
    monkeypatch.setattr(scp, "RESOLVE_EVERY_S", 0.0)
    name_server.is_away = True
    with capture_logs() as logs, running(tmp_path, at("scanner.invalid")) as node:
        for _ in range(3):
            node.scp.step()
            with RawScu(node.port) as early:
                assert early.rejection == NOT_RECOGNISED
        name_server.is_away = False
        wait_until(lambda: is_let_in(node), 10, "the peer to be let in")
        name_server.is_away = True  # and again
        for _ in range(3):
            assert is_let_in(node)
    told = [row["event"] for row in logs if row.get("peer") == "scanner" and "resolved" in row["event"]]
    assert told == ["receive.peer_unresolved", "receive.peer_resolved"]


def test_a_reload_while_no_name_server_answers_shuts_nobody_out_and_waits_for_none(
    tmp_path: Path, name_server: NameServer
) -> None:
    scanner, viewer = at("scanner.invalid"), at(LOOPBACK, VIEWER)
    with running(tmp_path, scanner, viewer) as node:
        name_server.is_away = True
        new = at("pet.silent", name="pet", ae_title="PET")
        began = time.monotonic()
        node.scp.reload(node.settings.model_copy(update={"peers": (scanner, viewer, new)}))
        assert time.monotonic() - began < SILENT_S / 2
        for calling in ("SCANNER", "VIEWER"):
            with RawScu(node.port, calling=calling) as known:
                assert known.is_established
        assert not is_let_in(node, "PET")
        name_server.is_away = False
        name_server.goes_on.set()
        wait_until(lambda: is_let_in(node, "PET"), 10, "the new peer to be let in, long before the next look-up is due")
        assert scp.RESOLVE_EVERY_S > 30


def test_a_start_waits_for_all_names_together_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name_server: NameServer
) -> None:
    monkeypatch.setattr(scp, "RESOLVE_S", 0.5)
    silent = [at(f"scanner{number}.silent", name=f"s{number}", ae_title=f"S{number}") for number in range(40)]
    began = time.monotonic()
    with running(tmp_path, at("scanner.invalid"), *silent) as node:
        assert time.monotonic() - began < SILENT_S / 2
        assert not is_let_in(node, "S0")
        name_server.goes_on.set()
        for calling in ("S0", "S39", "SCANNER"):
            wait_until(lambda calling=calling: is_let_in(node, calling), 10, "those who were late to be let in")  # type: ignore[misc]  # a lambda's default


def test_a_peer_by_name_is_let_in_from_the_start(tmp_path: Path, name_server: NameServer) -> None:
    with running(tmp_path, at("scanner.late")) as node, RawScu(node.port) as scu:
        assert scu.is_established


def is_let_in(node: RunningScp, calling: str = "SCANNER") -> bool:
    node.scp.step()
    with RawScu(node.port, calling=calling) as scu:
        return scu.is_established


def test_what_the_node_takes_from_nobody_is_told_in_one_line(tmp_path: Path) -> None:
    ct, private, deflated = "1.2.840.10008.5.1.4.1.1.2", f"{ROOT}.66", "1.2.840.10008.1.2.1.99"
    many = [(f"{ROOT}.67.{number}", (ExplicitVRLittleEndian,)) for number in range(30)]
    contexts = [(uid, (ExplicitVRLittleEndian,)) for uid in (MR, ct, private)] + [(PT, (deflated,))]
    with running(tmp_path, SCANNER, VIEWER) as node, capture_logs() as logs:
        with RawScu(node.port, contexts=contexts) as scu:
            assert set(scu.accepted()) == {MR}
        with RawScu(node.port, calling="VIEWER", contexts=[*contexts[:1], *many]) as scu:
            assert set(scu.accepted()) == {MR}
        assert node.scp.counts.read()["dicomnode_receive_refused_contexts"] == 2
    of_scanner, of_viewer = [why for _, why in refusals(logs)]
    assert of_scanner == (
        f"'SCANNER' offered CTImageStorage, '{private}', PositronEmissionTomographyImageStorage in "
        "DeflatedExplicitVRLittleEndian, which this node takes from nobody"
    )
    assert of_viewer.endswith(f"'{many[9][0]}' and 20 more, which this node takes from nobody")
    assert {rule for rule, _ in refusals(logs)} == {"SOP classes of this node"}
