"""The bytes we send are what pynetdicom reads, and those it sends are what we read."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pynetdicom.dsutils import decode, encode
from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF

from dicomnode.send import pdus

MR = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1")
PET = ("1.2.840.10008.5.1.4.1.1.128", "1.2.840.10008.1.2.4.70")


def _answer(**elements: object) -> bytes:
    command = Dataset()
    command.AffectedSOPClassUID, command.CommandField, command.CommandDataSetType = MR[0], 0x8001, 0x0101
    command.MessageIDBeingRespondedTo, command.Status = 7, 0
    for keyword, value in elements.items():
        setattr(command, keyword, value)
    encoded = encode(command, True, True)
    assert encoded is not None
    return struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded


def test_an_association_is_asked_for_with_a_context_for_each_syntax() -> None:
    request = A_ASSOCIATE_RQ()
    request.decode(pdus.encode_association("NODE", "PACS", [MR, PET]))

    contexts = [(one.context_id, one.abstract_syntax, one.transfer_syntax) for one in request.presentation_context]
    assert contexts == [(1, MR[0], [MR[1]]), (3, PET[0], [PET[1]])]
    assert (request.calling_ae_title.strip(), request.called_ae_title.strip()) == ("NODE", "PACS")


@given(st.integers(min_value=1, max_value=0xFFFF), st.integers(min_value=0, max_value=500))
def test_a_store_request_is_read_as_it_was_meant(message_id: int, number: int) -> None:
    uid = f"1.2.3.{number}"

    command = decode(BytesIO(pdus.encode_store_request(MR[0], uid, message_id)), True, True)

    assert (command.CommandField, command.MessageID, command.CommandDataSetType) == (0x0001, message_id, 0x0001)
    assert (command.AffectedSOPClassUID, command.AffectedSOPInstanceUID) == (MR[0], uid)
    assert command.CommandGroupLength == len(pdus.encode_store_request(MR[0], uid, message_id)) - 12


@given(st.binary(max_size=300), st.sampled_from([pdus.DATA, pdus.DATA_LAST, pdus.COMMAND_LAST]))
def test_a_value_is_read_as_it_was_sent(fragment: bytes, control: int) -> None:
    pdu = P_DATA_TF()
    encoded = pdus.encode_pdv(5, control, fragment)
    pdu.decode(encoded)

    [item] = pdu.presentation_data_value_items
    assert (item.context_id, item.presentation_data_value) == (5, bytes([control]) + fragment)
    assert list(pdus.decode_pdvs(encoded[pdus.HEADER_BYTES :])) == [(5, control, fragment)]


def test_an_answer_has_a_status_and_the_peers_words() -> None:
    answer = pdus.decode_store_answer(_answer(Status=0xA700, ErrorComment="disk full"))

    assert answer == pdus.StoreAnswer(7, 0xA700, "disk full")
    assert pdus.decode_store_answer(_answer()).comment == ""


def test_another_message_is_no_answer() -> None:
    with pytest.raises(ValueError, match="0x8020, 0x8001 is needed"):
        pdus.decode_store_answer(_answer(CommandField=0x8020))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_answer_are_refused_and_nothing_else(junk: bytes) -> None:
    with suppress(ValueError):
        assert pdus.decode_store_answer(junk).status <= 0xFFFF
    with suppress(ValueError):
        assert _encode_body(pdus.decode_pdvs(junk)) == junk


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=50)), max_size=4))
def test_several_values_of_one_pdu_are_read_as_they_were_sent(values: list[tuple[int, int, bytes]]) -> None:
    assert list(pdus.decode_pdvs(_encode_body(values))) == values


def _encode_body(values: Iterable[tuple[int, int, bytes]]) -> bytes:
    return b"".join(pdus.encode_pdv(*value)[pdus.HEADER_BYTES :] for value in values)
