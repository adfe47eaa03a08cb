"""Messages from fragments: whatever the cuts, the same message; whatever the bytes, a message or an error of ours."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pynetdicom.pdu import A_ABORT_RQ, P_DATA_TF

from dicomnode.errors import LimitExceededError, PeerProtocolError
from dicomnode.receive.messages import (
    Assembler,
    Message,
    StoreCommand,
    encode_store_response,
    read_store_command,
)
from dicomnode.receive.pdus import encode_abort
from dicomnode.status import AbortReason
from tests.raw_association import COMMAND, echo_command, fragments, store_command
from tests.receiving import MR, ROOT

UID_1 = f"{ROOT}.3.1"
COMMAND_1 = store_command(MR, UID_1, 7)


def assemble(pdvs: list[bytes], in_each: int = 1, limit: int = 1 << 20) -> list[Message]:
    assembler = Assembler(limit)
    pdus = [b"".join(pdvs[at : at + in_each]) for at in range(0, len(pdvs), in_each)]
    messages = [message for pdu in pdus for message in assembler.take(memoryview(pdu))]
    assert assembler.is_between_messages
    return messages


@given(st.binary(max_size=500), st.integers(1, 200), st.integers(1, 200), st.integers(1, 9))
@example(b"", 1, 1, 1)
def test_the_cuts_do_not_matter(data: bytes, command_cut: int, data_cut: int, in_each: int) -> None:
    pdvs = fragments(5, COMMAND, COMMAND_1, command_cut) + fragments(5, 0, data, data_cut)
    wanted = Message(5, COMMAND_1, data, has_data_set=True)
    assert assemble(pdvs * 2, in_each) == [wanted, wanted]


@given(st.integers(0, 300), st.integers(1, 50))
def test_no_byte_beyond_the_limit_is_taken(size: int, cut: int) -> None:
    with pytest.raises(LimitExceededError) if size > 100 else nullcontext():
        (message,) = assemble(fragments(1, COMMAND, COMMAND_1, 999) + fragments(1, 0, bytes(size), cut), limit=100)
        assert message.data_set == bytes(size)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_an_error_of_ours(data: bytes) -> None:
    found: list[Message] = []
    with suppress(PeerProtocolError):
        found.extend(Assembler(1000).take(memoryview(data)))
    assert len(found) <= len(data) // 6


@given(st.binary(max_size=80))
def test_any_bytes_are_a_command_or_an_error_of_ours(data: bytes) -> None:
    command = None
    with suppress(PeerProtocolError):
        command = read_store_command(data)
    assert command is None


def test_a_store_request_is_read_and_nothing_else_is() -> None:
    assert read_store_command(COMMAND_1) == StoreCommand(7, MR, UID_1)
    move = store_command(MR, UID_1, 7, MoveOriginatorApplicationEntityTitle="MOVER", MoveOriginatorMessageID=3)
    assert read_store_command(move) == StoreCommand(7, MR, UID_1)
    assert read_store_command(echo_command()) is None
    assert read_store_command(store_command(MR, UID_1, CommandDataSetType=0x0101)) is None
    assert read_store_command(store_command(MR, UID_1, ErrorComment="?")) is None


@pytest.mark.parametrize("uid", ["1.2", "1.23"])
def test_pynetdicom_reads_our_response(uid: str) -> None:
    response = P_DATA_TF()
    encoded = encode_store_response(StoreCommand(65535, MR, uid), 3, 0xA700)
    response.decode(encoded)
    assert response.encode() == encoded
    assert response.presentation_data_value_items[0].context_id == 3


@pytest.mark.parametrize("reason", AbortReason)
def test_pynetdicom_reads_our_abort(reason: AbortReason) -> None:
    abort = A_ABORT_RQ()
    abort.decode(encode_abort(reason))
    assert (abort.source, abort.reason_diagnostic) == (2, reason)
