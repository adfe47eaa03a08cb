"""Our upper layer and pynetdicom's own: the same requests give the same stored bytes and the same answers."""

from __future__ import annotations

import ast
import inspect
import socket
import struct
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import TRANSITION_TABLE
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer
from sqlalchemy import select

from dicomnode.database import schema
from dicomnode.database.engine import open_database
from dicomnode.database.store import Store
from dicomnode.metrics import Counts
from dicomnode.receive import scp
from dicomnode.receive.addresses import Names
from dicomnode.receive.associations import Associations, Rules
from dicomnode.receive.attaching import Dimse
from dicomnode.receive.connection import Connection
from dicomnode.receive.contexts import make_contexts
from dicomnode.receive.intake import Intake
from dicomnode.receive.messages import read_command_set
from dicomnode.receive.pdus import PROTOCOL_VERSION, RequestHead
from dicomnode.receive.recovery import close_spool, open_spool
from dicomnode.receive.upper_layer import UpperLayer
from dicomnode.settings import NodeSettings, Settings
from dicomnode.settings_limits import LimitSettings
from tests.databases import make_sqlite
from tests.peers_programs import LOOPBACK, data_set_bytes
from tests.raw_association import COMMAND, LAST, P_DATA, RawAssociation, echo_command, fragments, pdv, store_command
from tests.receiving import MR, PT, ROOT, encode, make_data_set
from tests.storage_scp import SCANNER, VIEWER, RunningScp, find_spooled
from tests.waiting import wait_until

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGLSLossless,
)
VERIFICATION = "1.2.840.10008.1.1"
CONTEXTS = [
    *((MR, (syntax,)) for syntax in SYNTAXES),
    (PT, (ExplicitVRLittleEndian,)),
    (VERIFICATION, (ImplicitVRLittleEndian,)),
]
UID_1 = f"{ROOT}.3.1"
HOSTILE = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")  # pydicom, of what is sent on purpose
LIMITS = LimitSettings(disk_reserve_bytes=0)


def encode_for(syntax: str, number: int = 1, size: int = 16) -> bytes:
    is_implicit, is_big = syntax == ImplicitVRLittleEndian, syntax == ExplicitVRBigEndian
    data_set = make_data_set(number, size=size)
    if is_big:
        data_set["PixelData"].VR = "OW"
    return encode(data_set, is_implicit=is_implicit, is_little_endian=not is_big)


@dataclass(frozen=True)
class Scp:
    """A Storage SCP, by its port and what it keeps."""

    port: int
    store: Store

    def stored(self) -> list[bytes]:
        wait_until(lambda: not find_spooled(self.store), 10, "what was answered to be in its place")
        return sorted(data_set_bytes(path.read_bytes()) for path in self.store.root.rglob("*.dcm"))


@contextmanager
def run_ours(root: Path) -> Iterator[Scp]:
    with RunningScp(root) as node:
        yield Scp(node.port, node.store)


@contextmanager
def run_stock(root: Path) -> Iterator[Scp]:
    """Run pynetdicom as it is, its handlers ours."""
    settings = Settings(node=NodeSettings(storage_root=root), peers=(SCANNER, VIEWER), limits=LIMITS)
    store = Store(root)
    store.make_folders()
    make_sqlite(settings.database_url)
    database = open_database(settings.database_url)
    intake = Intake(open_spool(store, database, time.time()), database)
    associations = Associations(Rules(settings, Names().find(settings.peers)), intake, time.time, Counts())
    entity = AE("DICOMNODE")
    entity.maximum_pdu_size = LIMITS.pdu_bytes
    entity.supported_contexts = make_contexts()

    def admit(event: evt.Event) -> None:
        request = cast(A_ASSOCIATE, event.assoc.requestor.primitive)
        titles, name = (request.called_ae_title, request.calling_ae_title), str(request.application_context_name)
        rejection = associations.judge_head(event.assoc, RequestHead(PROTOCOL_VERSION, *titles, name))
        assert rejection is None
        associations.handle_request(event)

    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_REQUESTED, admit),
        (evt.EVT_C_STORE, associations.handle_store),
    ]
    server = entity.start_server((LOOPBACK, 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield Scp(int(server.server_address[1]), store)
    finally:
        server.shutdown()
        intake.stop()
        close_spool(intake.spool, database, time.time())
        database.close()


def exchange(scp: Scp, requests: Sequence[Sequence[Sequence[bytes]]]) -> list[bytes | None]:
    """Send each request, a list of PDUs of PDVs, over one association; return the answers as they came."""
    with RawAssociation(scp.port).associate(CONTEXTS) as raw:
        answers = []
        for pdus in requests:
            raw.send_pdvs(pdus)
            answers.append(raw.read())
        raw.release()
    return answers


def one_by_one(context_id: int, command: bytes, data: bytes, pdu_bytes: int) -> list[list[bytes]]:
    pdvs = fragments(context_id, COMMAND, command, pdu_bytes - 6) + fragments(context_id, 0, data, pdu_bytes - 6)
    return [[value] for value in pdvs]


def all_in_one(context_id: int, command: bytes, data: bytes, pdu_bytes: int) -> list[list[bytes]]:
    return [[*fragments(context_id, COMMAND, command, pdu_bytes), *fragments(context_id, 0, data, pdu_bytes)]]


def several_in_each(context_id: int, command: bytes, data: bytes, pdu_bytes: int) -> list[list[bytes]]:
    size = pdu_bytes // 3 - 6
    pdvs = fragments(context_id, COMMAND, command, 48) + fragments(context_id, 0, data, size)
    return [pdvs[at : at + 3] for at in range(0, len(pdvs), 3)]


def split_command(context_id: int, command: bytes, data: bytes, pdu_bytes: int) -> list[list[bytes]]:
    return [[v] for v in fragments(context_id, COMMAND, command, 7) + fragments(context_id, 0, data, pdu_bytes - 6)]


def small(context_id: int, command: bytes, data: bytes, pdu_bytes: int) -> list[list[bytes]]:
    return one_by_one(context_id, command, data, len(data) // 200 + 6)


def both(tmp_path: Path, requests: Sequence[Sequence[Sequence[bytes]]]) -> list[bytes | None]:
    """Assert that both make the same of it, and return the answers."""
    with run_stock(tmp_path / "stock") as stock:
        wanted = exchange(stock, requests)
        wanted_files = stock.stored()
    with run_ours(tmp_path / "ours") as ours:
        assert exchange(ours, requests) == wanted
        assert ours.stored() == wanted_files
    return wanted


def test_every_syntax_is_stored_and_answered_alike(tmp_path: Path) -> None:
    requests = [
        one_by_one(2 * n + 1, store_command(MR, f"{ROOT}.3.{n}"), encode_for(syntax, n), 16384)
        for n, syntax in enumerate(SYNTAXES)
    ]
    assert len({answer for answer in both(tmp_path, requests) if answer}) == len(SYNTAXES)


@pytest.mark.parametrize("pdu_bytes", [4096, 16384, 131072])
def test_every_layout_of_pdus_is_stored_and_answered_alike(tmp_path: Path, pdu_bytes: int) -> None:
    layouts = (one_by_one, several_in_each, split_command, small)
    requests = [
        layout(1, store_command(MR, f"{ROOT}.3.{n}", n), encode_for(ExplicitVRLittleEndian, n, 320), pdu_bytes)
        for n, layout in enumerate(layouts)
    ]
    assert len({answer for answer in both(tmp_path, requests) if answer}) == len(layouts)


def test_every_legal_command_is_answered_alike(tmp_path: Path) -> None:
    data = encode_for(ExplicitVRLittleEndian)
    commands = [
        store_command(MR, UID_1, 65535, MoveOriginatorApplicationEntityTitle="MOVER", MoveOriginatorMessageID=77),
        store_command(MR, UID_1, CommandDataSetType=0),
        store_command(MR, UID_1, Priority=1),
        store_command(MR, UID_1)[12:],  # without its group length
    ]
    answers = both(tmp_path, [all_in_one(1, command, data, 131072) for command in commands])
    assert all(answer is not None and answer[0] == P_DATA for answer in answers)


@HOSTILE
def test_every_refusal_is_answered_alike(tmp_path: Path) -> None:
    data = encode_for(ExplicitVRLittleEndian)
    other = encode(make_data_set(1, SeriesDescription="another"))
    requests = [
        all_in_one(1, store_command(MR, UID_1), data, 65536),
        all_in_one(1, store_command(MR, UID_1), data, 65536),  # the same again
        all_in_one(1, store_command(MR, UID_1), other, 65536),  # other content
        all_in_one(1, store_command(MR, f"{ROOT}.3.2"), data, 65536),  # another instance
        all_in_one(1, store_command(MR, UID_1), data[:-9], 65536),  # cut off
        all_in_one(11, store_command(MR, UID_1), data, 65536),  # in the context of another class
        all_in_one(1, store_command(MR, "1.2.3.x/../"), data, 65536),  # no UID
        all_in_one(1, store_command(MR, UID_1), b"", 65536),
    ]
    answers = both(tmp_path, requests)
    assert all(answer is not None and answer[0] == P_DATA for answer in answers)


def test_pynetdicom_sees_what_is_not_a_plain_store_and_nothing_else(tmp_path: Path) -> None:
    seen: list[str] = []
    requests = [
        all_in_one(1, store_command(MR, UID_1), encode_for(ExplicitVRLittleEndian), 65536),
        [[pdv(13, COMMAND | LAST, echo_command())]],
        all_in_one(1, store_command(MR, UID_1, ErrorComment="odd"), encode_for(ExplicitVRLittleEndian), 65536),
    ]
    with RunningScp(tmp_path / "root") as node:
        server, _, _ = node.scp._parts()
        server.bind(evt.EVT_DIMSE_RECV, lambda event: seen.append(type(event.message).__name__))
        before = threading.active_count()
        with RawAssociation(node.port).associate(CONTEXTS) as raw:
            # The thread that made the association ends soon; there is no second one for the upper layer.
            wait_until(lambda: threading.active_count() == before + 1, 10.0)
            for pdus in requests:
                raw.send_pdvs(pdus)
                assert raw.read() is not None
            raw.release()
    assert seen == ["C_ECHO_RQ", "C_STORE_RQ"]


@contextmanager
def pynetdicoms_own() -> Iterator[dict[type, object]]:
    """Give an object of pynetdicom's for each class of ours that is one of its kind."""
    association = Association(AE(), "acceptor")
    client, peer = socket.socketpair()
    with client, peer, ThreadedAssociationServer(AE(), (LOOPBACK, 0), "ANY", []) as server:
        handler = RequestHandler.__new__(RequestHandler)  # its constructor would serve a connection to its end
        handler.request, handler.client_address, handler.server = client, (LOOPBACK, 1), server
        yield {
            UpperLayer: association.dul,
            Dimse: association.dimse,
            Connection: AssociationSocket(association, client_socket=client),
            scp._Server: server,
            scp._RequestHandler: handler,
        }


def find_names(ours: type) -> tuple[set[str], set[str]]:
    """Return what a class of ours makes, and what it only uses of itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(ours)))
    own = set(vars(ours)) | set(vars(ours).get("__annotations__", ()))
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            (own if isinstance(node.ctx, ast.Store) else used).add(node.attr)
    return own, used - own


# What we put in the place of pynetdicom's own on purpose; any other name in common would be an accident.
REPLACED = {
    UpperLayer: {
        "start", "is_alive", "stop_dul", "idle_timer_expired", "send_pdu", "receive_pdu", "_kill_thread",
    },
    Dimse: {"get_msg"},
    Connection: {"recv", "send", "_shutdown_socket"},
    scp._Server: {
        "request_queue_size", "daemon_threads", "get_request", "process_request", "shutdown_request", "handle_error",
    },
    scp._RequestHandler: {"handle", "server"},
}  # fmt: skip


def test_every_name_of_pynetdicom_that_we_lean_on_is_there_and_no_other_is_taken() -> None:
    with pynetdicoms_own() as own:
        for ours, theirs in own.items():
            made, leaned_on = find_names(ours)
            assert {name for name in leaned_on if not hasattr(theirs, name)} == set(), ours
            taken = {name for name in made if hasattr(theirs, name) and not name.startswith("__")}
            assert taken == REPLACED[ours], ours


@pytest.mark.parametrize(
    ("find", "names"),
    [
        (
            lambda one: one,
            ["acse", "acceptor", "requestor", "accepted_contexts", "dimse", "dul", "kill", "abort", "run"],
        ),
        (lambda one: one, ["is_established", "set_socket", "acse_timeout", "network_timeout_response", "_dul_ready"]),
        (lambda one: one.acse, ["send_reject"]),
        (lambda one: one.requestor, ["maximum_length", "primitive", "address"]),
        (lambda one: one.acceptor, ["maximum_length", "supported_contexts"]),
        (lambda one: one.dul.artim_timer, ["expired", "remaining", "timeout"]),
        (lambda one: one.dul.state_machine, ["current_state", "do_action", "transition"]),
        (lambda one: one.dimse, ["msg_queue", "receive_primitive"]),
    ],
)
def test_the_parts_of_an_association_have_what_we_ask_of_them(
    find: Callable[[Association], object], names: list[str]
) -> None:
    assert set(names) <= set(dir(find(Association(AE(), "acceptor"))))


def test_the_fields_of_pynetdicom_we_lean_on_are_there() -> None:
    association = Association(AE(), "acceptor")
    assert not association._dul_ready.is_set()
    assert (association.dul._kill_thread, association.dul.state_machine.current_state) == (False, "Sta1")
    assert association.dul.to_user_queue.empty()
    assert association.dul.to_provider_queue.empty()
    assert association.dul.event_queue.empty()
    assert association.dimse.msg_queue.empty()
    association.dul.kill_dul()
    assert association.dul._kill_thread


def test_pynetdicom_asks_where_our_upper_layer_waits() -> None:
    loop = inspect.getsource(Association._run_reactor)
    assert loop.index("self.dimse.get_msg(block=False)") < loop.index("self.acse.is_release_requested()")
    assert "self.dul.idle_timer_expired()" in loop
    assert "self.dul.receive_pdu(wait=True, timeout=self.acse_timeout)" in inspect.getsource(Association.run_reactor)
    assert "while self.dul.is_alive() and not self.dul.stop_dul()" in inspect.getsource(Association.kill)
    assert "self.socket.recv(6)" in inspect.getsource(DULServiceProvider._read_pdu_data)
    assert "self.socket.send(" in inspect.getsource(DULServiceProvider._send)
    ends = {TRANSITION_TABLE["Evt17", "Sta13"], TRANSITION_TABLE["Evt15", "Sta6"], TRANSITION_TABLE["Evt18", "Sta2"]}
    assert ends == {"AR-5", "AA-1", "AA-2"}


def test_every_setting_of_pynetdicom_that_we_change_is_one_of_its_own() -> None:
    changed = {
        target.attr
        for node in ast.walk(ast.parse(inspect.getsource(scp)))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "_config"
    }
    own = {
        ast.unparse(node.target)
        for node in ast.parse(inspect.getsource(_config)).body  # not what is there: what we set would be, too
        if isinstance(node, ast.AnnAssign)
    }
    assert changed
    assert changed <= own


@pytest.mark.parametrize("maximum_length", [0, 128, 255, 4096])
def test_an_answer_comes_in_pdus_that_the_sender_takes(tmp_path: Path, maximum_length: int) -> None:
    command = store_command(MR, UID_1, 77)
    with run_ours(tmp_path) as ours, RawAssociation(ours.port).associate(maximum_length=maximum_length) as raw:
        raw.send_pdvs(all_in_one(1, command, encode_for(ExplicitVRLittleEndian), 65536))
        answer, control = b"", COMMAND
        while not control & LAST:
            pdu = raw.read()
            assert pdu is not None
            assert pdu[0] == P_DATA
            assert not maximum_length or len(pdu) - 6 <= maximum_length
            (length, context_id, control), value = struct.unpack_from(">LBB", pdu, 6), pdu[12:]
            assert (length, context_id, control & COMMAND) == (len(value) + 2, 1, COMMAND)
            answer += value
        assert len(answer) > 128 - 6  # so that the smallest takes two
    values = read_command_set(answer)
    assert (values[0x0100], values[0x0120], values[0x0900]) == (b"\x01\x80", b"\x4d\0", b"\0\0")
    assert int.from_bytes(values[0], "little") == len(answer) - 12
    assert values[0x1000].rstrip(b"\0") == UID_1.encode()


def test_who_sees_the_release_finds_every_row(tmp_path: Path) -> None:
    with RunningScp(tmp_path) as node, RawAssociation(node.port).associate(CONTEXTS) as raw:
        for number in range(5):
            command, data = store_command(MR, f"{ROOT}.3.{number}"), encode_for(ExplicitVRLittleEndian, number)
            raw.send_pdvs(all_in_one(1, command, data, 65536))
            assert raw.read() is not None
        raw.release()
        with node.database.read() as connection:
            assert len(connection.execute(select(schema.instances)).all()) == 5
            assert connection.execute(select(schema.associations.c.closed_at)).scalar_one() is not None
