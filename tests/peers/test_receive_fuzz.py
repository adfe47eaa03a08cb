"""Damaged PDUs, command sets and data sets: each is taken or refused by name, in bounded memory, and leaves nothing.

Flow: what real peers send, damaged > [test_receive_fuzz] > dicomnode.receive
Never: other cases each day (`derandomize`); a found case that is not kept as an `@example`.
"""

from __future__ import annotations

import logging
import socket
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from structlog.testing import capture_logs

from dicomnode.elements import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, Encoding, collect_values
from dicomnode.errors import InstanceNotUnderstoodError, LimitExceededError, PeerProtocolError
from dicomnode.receive.header import read_header
from dicomnode.receive.messages import Assembler, Message, read_command_set, read_store_command
from dicomnode.settings_limits import LimitSettings
from tests.raw_association import (
    A_RELEASE_RQ,
    P_DATA,
    RawAssociation,
    associate_request,
    echo_command,
    fragments,
    pdu,
    pdv,
    store_command,
)
from tests.receiving import MR, ROOT, encode, make_data_set, nested_sequences
from tests.storage_scp import RunningScp
from tests.waiting import wait_until

EXPLICIT = "1.2.840.10008.1.2.1"
SYNTAXES = {EXPLICIT: EXPLICIT_LITTLE, "1.2.840.10008.1.2": IMPLICIT_LITTLE, "1.2.840.10008.1.2.2": EXPLICIT_BIG}
FEW = settings(derandomize=True, max_examples=250, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=1000)
# What a length, a tag or a count is damaged with.
WORDS = [value.to_bytes(size, "big") for value in (0, 1, 0x7F, 0x80, 0xFF) for size in (1, 2, 4)]
WORDS += [b"\xff" * 2, b"\xff" * 4, b"\xfe\xff\xff\xff", b"\xff\xff\xff\xfe", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
WORDS += [
    b"\xfe\xff\x00\xe0",
    b"\xfe\xff\x0d\xe0",
    b"\xfe\xff\xdd\xe0",
    b"SQ\0\0\xff\xff\xff\xff",
    b"UN\0\0\xff\xff\xff\xff",
]
HELD_BYTES_MAX = 200_000  # beside what came


def make_sequence_data_set() -> Dataset:
    item = Dataset()
    item.PatientID = "inside"
    return make_data_set(ReferencedImageSequence=[item, Dataset()], PixelData=bytes(64), size=16)


DATA_SETS = [
    encode(make_sequence_data_set()),
    encode(make_sequence_data_set(), is_implicit=True),
    encode(make_data_set(size=16)) + nested_sequences(5),
]
COMMANDS = [
    store_command(MR, f"{ROOT}.3.1"),
    store_command(MR, f"{ROOT}.3.1", 65535, MoveOriginatorApplicationEntityTitle="MOVER", MoveOriginatorMessageID=77),
    store_command(MR, f"{ROOT}.3.1", ErrorComment="odd"),
    echo_command(),
]
REQUEST = associate_request("SCANNER", "DICOMNODE", [(MR, (EXPLICIT,)), ("1.2.840.10008.1.1", (EXPLICIT,))], 16384)
DATA_VALUES = [b"".join([pdv(1, 3, COMMANDS[0]), *fragments(1, 0, DATA_SETS[0], 400)]), pdv(3, 3, COMMANDS[3])]
STORE = pdu(P_DATA, pdv(1, 3, COMMANDS[0])) + pdu(P_DATA, b"".join(fragments(1, 0, DATA_SETS[0], 400)))
CONVERSATIONS = [
    (b"", REQUEST),
    (REQUEST, STORE),
    (REQUEST, pdu(P_DATA, pdv(3, 3, COMMANDS[3]))),
    (REQUEST, STORE * 2 + A_RELEASE_RQ),
]


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw one of the seeds, and change, drop, repeat or overwrite a few places of it."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        size = draw(st.integers(1, 16))
        match draw(st.sampled_from(["word", "byte", "drop", "repeat", "cut"])):
            case "word":
                word = draw(st.sampled_from(WORDS))
                data[at : at + len(word)] = word
            case "byte":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "drop":
                del data[at : at + size]
            case "repeat":
                data[at:at] = data[at : at + size] * draw(st.integers(1, 40))
            case _:
                del data[at:]
    return bytes(data)


class Measured:
    """The memory that was held beside `allowed_bytes` inside the `with` block is bounded."""

    def __init__(self, allowed_bytes: int) -> None:
        self._allowed_bytes = allowed_bytes

    def __enter__(self) -> None:
        tracemalloc.start()

    def __exit__(self, *_error: object) -> None:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < self._allowed_bytes + HELD_BYTES_MAX


@MANY
@given(damaged(COMMANDS))
@example(b"")
@example(COMMANDS[0][:-1])
@example(b"\0\0\0\0\xff\xff\xff\xff")
def test_a_damaged_command_set_is_read_to_its_end_or_refused(encoded: bytes) -> None:
    try:
        values = read_command_set(encoded)
    except PeerProtocolError:
        return
    # Each value is where its element says, and nothing else is: what was read makes the same bytes again.
    elements = [struct.pack("<HHL", 0, element, len(value)) + value for element, value in values.items()]
    assert sum(map(len, elements)) <= len(encoded)
    assert all(element in encoded for element in elements)
    command = read_store_command(encoded)
    if command is not None:
        assert command.sop_instance_uid.encode() in encoded
        assert len(command.sop_instance_uid) <= 64


@MANY
@given(damaged(DATA_VALUES), st.integers(0, 4000))
@example(DATA_VALUES[0], 10)
@example(b"\xff\xff\xff\xff\x01\x03", 1000)
@example(b"\0\0\0\x01\x01", 1000)
def test_damaged_data_values_make_messages_or_are_refused(pdvs: bytes, limit: int) -> None:
    assembler, messages = Assembler(limit), list[Message]()
    with Measured(2 * len(pdvs)), suppress(PeerProtocolError):
        messages.extend(assembler.take(memoryview(pdvs)))
    assert all(len(message.data_set) <= limit for message in messages)
    assert sum(len(message.command_set) + len(message.data_set) for message in messages) <= len(pdvs)


@MANY
@given(damaged(DATA_SETS), st.sampled_from(sorted(SYNTAXES)))
@example(DATA_SETS[0][:-1], EXPLICIT)
@example(nested_sequences(65), EXPLICIT)
@example(b"\x08\0\x05\0UN\0\0\xff\xff\xff\xff", EXPLICIT)
def test_a_damaged_data_set_is_described_or_refused(data: bytes, syntax: str) -> None:
    with Measured(4 * len(data)), suppress(InstanceNotUnderstoodError, LimitExceededError):
        header = read_header(data, syntax)
        assert header.sop_instance_uid.encode() in data
        assert header.series.series_uid.isprintable()
    assert_values_lie_inside(data, SYNTAXES[syntax])


def assert_values_lie_inside(data: bytes, encoding: Encoding) -> None:
    """Assert that a walk refuses a data set, or ends where it ends: an element behind it is found there, and whole."""
    every_tag = range(0x00080000, 0x00290000)
    with suppress(InstanceNotUnderstoodError, LimitExceededError):
        values = collect_values(data, encoding, every_tag)
        assert sum(map(len, values.values())) <= len(data)
        assert all(value in data for value in values.values())
        order, vr = encoding.byte_order, () if encoding.is_implicit else (b"LO",)
        form = "HHL" if encoding.is_implicit else "HH2sH"
        behind = struct.pack(order + form, 0x0010, 0x0020, *vr, 4) + b"last"
        assert collect_values(data + behind, encoding, {0x00100020}) == {0x00100020: b"last"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningScp]:
    limits = LimitSettings(
        disk_reserve_bytes=0, associations=1000, associations_per_peer=1000, associations_per_minute=10**6,
        pdu_s=0.3, idle_s=0.3, data_set_s=0.5,
    )  # fmt: skip
    with RunningScp(tmp_path_factory.mktemp("fuzz"), limits=limits) as running:
        yield running


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom, of what is sent on purpose
@FEW
@given(st.data())
def test_a_damaged_conversation_ends_and_leaves_nothing(
    node: RunningScp, library_words: list[logging.LogRecord], data: st.DataObject
) -> None:
    before, sent = data.draw(st.sampled_from(CONVERSATIONS))
    with capture_logs() as logs:
        with RawAssociation(node.port) as raw, suppress(OSError):
            raw.send(before + data.draw(damaged([sent])))
            raw.send(A_RELEASE_RQ)
            raw.socket.shutdown(socket.SHUT_WR)
            while raw.socket.recv(65536):
                pass
        _, associations, _ = node.scp._parts()
        wait_until(lambda: not associations._connections and not associations.waiting.count(), 20, "its end")
    assert not associations._senders
    assert associations._memory.change(0) == 0
    told = [row["event"] for row in logs if row["log_level"] in ("warning", "error")]
    assert len(told) <= 3, told
    assert "exception" not in str(logs)
    assert library_words == []


def test_after_the_damage_a_sender_is_served(node: RunningScp, tmp_path: Path) -> None:
    with RawAssociation(node.port).associate() as raw:
        raw.send(STORE)
        answer = raw.read()
        assert answer is not None
        assert answer[0] == P_DATA
