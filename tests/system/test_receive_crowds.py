"""A node beset by many: half-open, silent, hurried and garbage peers take neither its memory nor a sender's place.

Flow: sockets of the test > [test_receive_crowds] > dicomnode serve
Never: a figure of speed (`make bench` has those): only what holds on a machine that does other work too.
"""

from __future__ import annotations

import re
import socket
import statistics
import struct
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.uids import STORAGE_SOP_CLASSES
from tests.builders import NODE_AE, NodeProcess, Peer, make_config, run_command
from tests.peers_programs import LOOPBACK, data_set_bytes, free_port
from tests.raw_association import A_ABORT, P_DATA, RawAssociation, fragments, pdu, pdv, store_command
from tests.receiving import MR, ROOT, encode, make_data_set
from tests.waiting import wait_until

MIB = 1 << 20
HALF = struct.pack(">BxH", P_DATA, 0)  # of a PDU header
INSTANCES = 40
ABORTED = "abort"
CT = b"1.2.840.10008.5.1.4.1.1.2"  # what the corpus says it holds; as long as an MR's


@contextmanager
def serving(folder: Path, **limits: Any) -> Iterator[NodeProcess]:
    port = free_port()
    peers = [Peer("scanner", "SCANNER"), Peer("viewer", "VIEWER")]
    with NodeProcess(make_config(folder, peers, port, {"limits": limits}), port, ["receive"]) as node:
        yield node


def associate(node: NodeProcess, calling: str = "SCANNER") -> RawAssociation:
    return RawAssociation(node.port).associate(called=NODE_AE, calling=calling)


def store(raw: RawAssociation, uid: str, data: bytes, sop_class_uid: str = MR) -> str:
    """Store an instance; return the status, or that the association was aborted."""
    raw.send_pdvs([[pdv(1, 3, store_command(sop_class_uid, uid))], *[[v] for v in fragments(1, 0, data, 16000)]])
    answer = raw.read()
    if answer is None or answer[0] == A_ABORT:
        return ABORTED
    at = answer.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
    return f"{int.from_bytes(answer[at : at + 2], 'little'):04X}"


def store_series(node: NodeProcess, number: int) -> float:
    """Store a series over one association, and return how long it took, s."""
    numbers = range(1000 * number, 1000 * number + INSTANCES)
    series = [(f"{ROOT}.3.{one}", encode(make_data_set(one, size=128))) for one in numbers]
    started = time.perf_counter()
    with associate(node) as raw:
        assert {store(raw, uid, data) for uid, data in series} == {"0000"}
        raw.release()
    return time.perf_counter() - started


def memory_bytes(node: NodeProcess) -> int:
    return int(psutil.Process(node.pid).memory_info().rss)


def cpu_s(node: NodeProcess) -> float:
    used = psutil.Process(node.pid).cpu_times()
    return float(used.user + used.system)


def counts(node: NodeProcess) -> dict[str, int]:
    """Return what the node has counted; it shows its counts once a second, so that it may show none yet."""
    shown = run_command("doctor", "--config", node.config, "--json").json["counts"]
    return dict(shown.get(str(node.pid), {}))


@pytest.mark.alone
def test_two_hundred_half_headers_do_not_slow_a_sender_down(tmp_path: Path) -> None:
    with serving(tmp_path) as node:
        store_series(node, 1)  # warms up
        alone, beset = [], []
        for number in range(2, 8, 2):
            alone.append(store_series(node, number))
            with ExitStack() as held:
                for _ in range(150):  # more than may wait: the oldest are cut
                    held.enter_context(RawAssociation(node.port)).send(HALF)
                for _ in range(50):  # associated, so that they hold places, but not the sender's
                    held.enter_context(associate(node, "VIEWER")).send(HALF)
                beset.append(store_series(node, number + 1))
        # `make bench` wants four fifths of the speed; here other programs run as well.
        assert statistics.median(beset) < 2.5 * statistics.median(alone)


def test_a_hundred_and_thirty_associations_store_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, associations=130, associations_per_peer=130) as node, ExitStack() as held:
        before = memory_bytes(node)
        opened = [held.enter_context(associate(node)) for _ in range(130)]
        for number, raw in enumerate(opened):
            raw.send_pdvs([[pdv(1, 3, store_command(MR, f"{ROOT}.3.{number}"))]])
        for number, raw in enumerate(opened):
            raw.send_pdvs([fragments(1, 0, encode(make_data_set(number)), 16000)])
        for raw in opened:
            answer = raw.read()
            assert answer is not None
            assert struct.pack("<HHLH", 0, 0x0900, 2, 0) in answer
        assert memory_bytes(node) - before < 100 * MIB
        wait_until(lambda: [row["instance_count"] for row in node.list_rows("series")] == [130], 20, "130 rows")


def test_ten_thousand_who_connect_and_leave_cost_no_memory(tmp_path: Path) -> None:
    with serving(tmp_path) as node:
        connect_and_leave(node, 2000)
        before = memory_bytes(node)
        connect_and_leave(node, 8000)
        assert memory_bytes(node) - before < 4 * MIB
        with associate(node) as raw:
            assert store(raw, f"{ROOT}.3.1", encode(make_data_set(1))) == "0000"
        wait_until(lambda: len(psutil.Process(node.pid).net_connections()) < 5, 10, "every connection to be let go")


def connect_and_leave(node: NodeProcess, times: int) -> None:
    for number in range(times):
        with socket.create_connection((LOOPBACK, node.port), timeout=20) as client:
            if number % 2:
                client.sendall(HALF)


def test_fragments_larger_than_negotiated_are_not_kept(tmp_path: Path) -> None:
    with serving(tmp_path) as node, associate(node) as raw:
        before = memory_bytes(node)
        raw.send_pdvs([[pdv(1, 3, store_command(MR, f"{ROOT}.3.1"))]])
        with suppress(OSError):  # it is cut off at the first
            for _ in range(200):
                raw.send(pdu(P_DATA, pdv(1, 0, bytes(MIB))))
        assert memory_bytes(node) - before < 16 * MIB
        wait_until(lambda: counts(node).get('dicomnode_receive_limit_crossings{limit="pdu_bytes"}') == 1, 10)


def test_a_hundred_idle_associations_cost_nothing_measurable(tmp_path: Path) -> None:
    with serving(tmp_path, associations_per_peer=100) as node, ExitStack() as held:
        used_by_none = measure_rest(node)
        for _ in range(99):
            held.enter_context(associate(node))
        assert measure_rest(node) - used_by_none < 0.05
        with associate(node) as raw:
            assert store(raw, f"{ROOT}.3.1", encode(make_data_set(1))) == "0000"


def measure_rest(node: NodeProcess, for_s: float = 3.0) -> float:
    """Return the CPU seconds a node uses while nobody asks for anything."""
    started, before = time.monotonic(), cpu_s(node)
    wait_until(lambda: time.monotonic() - started > for_s, 2 * for_s)
    return cpu_s(node) - before


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom, of what is sent on purpose
def test_every_malformed_file_is_answered_and_none_does_harm(tmp_path: Path, shared_data: Path) -> None:
    statuses: Counter[str] = Counter()
    with serving(tmp_path) as node:
        before = memory_bytes(node)
        for number, (name, data) in enumerate(read_corpus(shared_data)):
            sop_class_uid, uid = identify(data, number)
            context = (sop_class_uid, (ExplicitVRLittleEndian,))
            with RawAssociation(node.port).associate([context], called=NODE_AE) as raw:
                status = store(raw, uid, data, sop_class_uid)
            assert status in {"0000", "0111", "A900", "C000", ABORTED}, name
            statuses[status] += 1
        assert memory_bytes(node) - before < 64 * MIB
        with associate(node) as raw:
            assert store(raw, f"{ROOT}.3.1", encode(make_data_set(1))) == "0000"
        assert "Traceback" not in node.log.read_text(encoding="utf-8")
    assert statuses == {"0000": 187, "0111": 21, "A900": 1, "C000": 65, "abort": 1}  # the last nests too deep


def read_corpus(shared_data: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each file's name and its data set, said to be an MR's so that it is not refused for its class alone."""
    (path,) = (shared_data / "malformed").glob("*.tar.xz")
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".dcm") else None
            if file is not None:
                content = file.read()
                has_meta = content[128:132] == b"DICM"
                yield member.name, (data_set_bytes(content) if has_meta else content).replace(CT, MR.encode())


def identify(data: bytes, number: int) -> tuple[str, str]:
    """Return the SOP class and instance that a data set names, where the node takes such; an MR's else."""
    found = []
    for tag in (b"\x08\0\x16\0UI", b"\x08\0\x18\0UI"):
        at = data.find(tag) + len(tag)
        size = int.from_bytes(data[at : at + 2], "little")
        found.append(data[at + 2 : at + 2 + size].rstrip(b"\0").decode("ascii", "replace"))
    is_taken = found[0] in STORAGE_SOP_CLASSES and re.fullmatch(r"[0-9.]{1,64}", found[1])
    return (found[0], found[1]) if is_taken else (MR, f"{ROOT}.99.{number}")
