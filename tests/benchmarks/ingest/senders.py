"""Senders: raw ones that are no part of what is measured, and DCMTK's.

Flow: run > [senders] > tests.raw_association, tests.peers_programs
Never: a data set that is made while the clock runs; an answer other than Success counted.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.conftest import find_peer_program
from tests.peers_programs import LOOPBACK, PEER_ENVIRONMENT
from tests.raw_association import COMMAND, P_DATA, RawAssociation, fragments, pdu, store_command
from tests.receiving import MR, ROOT, encode, make_data_set

SIZE_PX = 256  # an MR slice of 131 KB
FIRST = 1_000_000_000  # as many digits in every UID
PDU_BYTES_MAX = 131072
SEND_S = 300.0
START_S = 60.0
_SUCCESS = b"\0\0\0\x09\x02\0\0\0\0\0"  # (0000,0900) is 0000
PROGRAMS = {
    "storescu": ["-aet", "STORESCU", "-R", "+sd", "-pdu", str(PDU_BYTES_MAX)],
    "dcmsend": ["-aet", "DCMSEND", "+sd", "-pdu", str(PDU_BYTES_MAX)],
}


@dataclass(frozen=True)
class Load:
    """What is sent: so many instances, by number, over so many associations at once."""

    port: int
    called: str
    associations: int
    count: int
    first: int


@dataclass(frozen=True)
class Sent:
    """How it went: from the first byte until the last release was answered, and each instance until its response."""

    seconds: float
    responses_s: list[float]


def send_raw(load: Load) -> Sent:
    """Store over raw associations; each one is released when its share is through."""
    start = threading.Barrier(load.associations + 1)
    failures: list[str] = []
    responses_s: list[float] = []

    def store(share: range) -> None:
        with RawAssociation(load.port) as raw:
            raw.associate(called=load.called, maximum_length=PDU_BYTES_MAX)
            parts = _make_message(raw.maximum_length).split(str(FIRST).encode())
            start.wait(START_S)
            for number in share:
                message = str(number).encode().join(parts)
                began = time.perf_counter()
                raw.send(message)
                answer = raw.read()
                responses_s.append(time.perf_counter() - began)
                if answer is None or _SUCCESS not in answer:
                    failures.append(f"{number}: {answer!r}")
            raw.release()

    shares = [range(load.first + part, load.first + load.count, load.associations) for part in range(load.associations)]
    threads = [threading.Thread(target=store, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    start.wait(START_S)
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failures:
        raise RuntimeError(f"{load.called} did not store {len(failures)} of {load.count}: {failures[0]}")
    return Sent(seconds, responses_s)


def send_files(program: str, load: Load, folder: Path) -> Sent:
    """Store files that `write_files` made with one run of a DCMTK program for each association."""
    command = [str(find_peer_program(program)), *PROGRAMS[program], "-aec", load.called, LOOPBACK, str(load.port)]
    started = time.perf_counter()
    running = [
        subprocess.Popen([*command, str(part)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=PEER_ENVIRONMENT)
        for part in sorted(folder.iterdir())
    ]
    outputs = [process.communicate(timeout=SEND_S)[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{program} to {load.called}: {b''.join(outputs).decode(errors='replace')[-500:]}")
    return Sent(time.perf_counter() - started, [])


def write_files(load: Load, folder: Path) -> None:
    """Write the instances of a load, a folder for each association."""
    data_set = make_data_set(FIRST, size=SIZE_PX)
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    template = folder / "template"
    data_set.save_as(template, enforce_file_format=True)
    parts = template.read_bytes().split(str(FIRST).encode())
    template.unlink()
    for number in range(load.first, load.first + load.count):
        part = folder / f"{number % load.associations}"
        part.mkdir(exist_ok=True)
        (part / f"{number}.dcm").write_bytes(str(number).encode().join(parts))


def hold_raw(load: Load) -> Sequence[RawAssociation]:
    """Store one instance over each association, and leave them all open."""
    held = []
    for number in range(load.associations):
        raw = RawAssociation(load.port)
        raw.associate(called=load.called, maximum_length=PDU_BYTES_MAX)
        raw.send(str(load.first + number).encode().join(_make_message(raw.maximum_length).split(str(FIRST).encode())))
        answer = raw.read()
        if answer is None or _SUCCESS not in answer:
            raise RuntimeError(f"{load.called} did not store over association {number}: {answer!r}")
        held.append(raw)
    return held


def _make_message(maximum_length: int) -> bytes:
    data = encode(make_data_set(FIRST, size=SIZE_PX))
    size = min(maximum_length or PDU_BYTES_MAX, PDU_BYTES_MAX) - 6
    pdvs = fragments(1, COMMAND, store_command(MR, f"{ROOT}.3.{FIRST}"), size) + fragments(1, 0, data, size)
    return b"".join(pdu(P_DATA, value) for value in pdvs)
