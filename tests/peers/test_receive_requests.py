"""How an association begins, or does not: odd but legal requests, those that are neither, and what comes out of turn.

Flow: raw sockets > [test_receive_requests] > dicomnode.receive
Never: a word about it that is not the node's own, or one without who it was; an answer that the standard does not have.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian
from structlog.testing import capture_logs

from dicomnode.settings import ReceiveSettings
from tests.peers.test_receive_alerts import FUNCTION_ALERT, NODE_ALERT, audited, told_of
from tests.peers_programs import LOOPBACK
from tests.raw_association import (
    A_ABORT,
    A_ASSOCIATE_AC,
    A_RELEASE_RQ,
    COMMAND,
    LAST,
    P_DATA,
    RawAssociation,
    associate_request,
    echo_command,
    pdu,
    pdv,
)
from tests.receiving import MR
from tests.storage_scp import RunningScp
from tests.waiting import wait_until

REQUEST = associate_request("SCANNER", "DICOMNODE", [(MR, (ExplicitVRLittleEndian,))], 16384)
SYNTAXES = associate_request("SCANNER", "DICOMNODE", [(MR, (ExplicitVRLittleEndian, ExplicitVRBigEndian))], 16384)
CALLED, CALLING, VERSION = slice(10, 26), slice(26, 42), slice(6, 8)  # PS3.8 9.3.2
CONTEXT_NAME = slice(78, 99)  # of the first item, PS3.8 9.3.2.1
BY_CALLED, BY_CALLING, BY_CONTEXT, BY_VERSION = (1, 1, 7), (1, 1, 3), (1, 1, 2), (1, 2, 2)  # PS3.8 table 9-21
UNEXPECTED, INVALID_VALUE = 2, 6  # PS3.8 table 9-26
NO_TITLES = (b"", bytes(16), b"A\\B", b"A\nB", b"\x1b]0;x\x07", b"A\0B", b"\xffA", b"\xc3\x84")
RULES = {BY_CALLED: "called AE title", BY_CALLING: "calling AE title", BY_VERSION: "protocol version"}


def changed(*places: tuple[slice, bytes]) -> bytes:
    request = bytearray(REQUEST)
    for place, value in places:
        assert len(value) == place.stop - place.start
        request[place] = value
    return bytes(request)


@contextmanager
def watched(tmp_path: Path, receive: ReceiveSettings | None = None) -> Iterator[tuple[RunningScp, list[Any]]]:
    with capture_logs() as logs, audited(RunningScp(tmp_path, receive=receive)) as node:
        yield node, logs


def answer_to(node: RunningScp, request: bytes) -> bytes:
    """Send a request over a connection of its own, and return the answer."""
    with RawAssociation(node.port) as raw:
        raw.send(request)
        answer = raw.read()
    assert answer is not None
    return answer


def warnings(logs: list[Any]) -> list[dict[str, Any]]:
    return [row for row in logs if row["log_level"] in ("warning", "error")]


def alerts_of(node: RunningScp) -> list[tuple[str, str, int]]:
    node.scp.step()
    return [(event, caller, count) for event, caller, _, count in told_of(node)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom, of a syntax that is none
@pytest.mark.parametrize(
    "request_",
    [
        changed((CALLED, b"DICOMNODE".ljust(16, b"\0")), (CALLING, b"SCANNER".ljust(16, b"\0"))),
        changed((CALLED, b"DICOMNODE\0".ljust(16)), (CALLING, b"  SCANNER \0\0\0\0\0\0")),
        changed((CALLED, b"  DICOMNODE".ljust(16))),
        changed((VERSION, b"\0\x03")),  # version 1 and one that is still to come
        SYNTAXES.replace(ExplicitVRBigEndian.encode(), b"1.2.840.10 08.1.2.2"),
    ],
    ids=[
        "NULs",
        "spaces and NULs",
        "spaces before",
        "two versions",
        "a transfer syntax that is none beside one that is",
    ],
)
def test_an_odd_but_legal_request_is_let_in(
    tmp_path: Path, request_: bytes, library_words: list[logging.LogRecord]
) -> None:
    with watched(tmp_path) as (node, logs):
        with RawAssociation(node.port) as raw:
            raw.send(request_)
            answer = raw.read()
            assert answer is not None
            assert answer[0] == A_ASSOCIATE_AC
            raw.release()
        assert [row["calling_ae"] for row in logs if row["event"] == "receive.associated"] == ["'SCANNER'"]
    assert library_words == []


@pytest.mark.parametrize("check_called", [True, False])
@pytest.mark.parametrize(("place", "expected"), [(CALLED, BY_CALLED), (CALLING, BY_CALLING)], ids=["called", "calling"])
def test_a_title_that_is_none_is_rejected_by_its_rule(
    tmp_path: Path,
    place: slice,
    expected: tuple[int, int, int],
    check_called: bool,
    library_words: list[logging.LogRecord],
) -> None:
    with watched(tmp_path, ReceiveSettings(check_called_ae_title=check_called)) as (node, logs):
        for title in NO_TITLES:
            assert answer_to(node, changed((place, title.ljust(16)))) == pdu(0x03, bytes((0, *expected)))
        told = warnings(logs)
        assert {(row["event"], row["rule"]) for row in told} == {("receive.refused", RULES[expected])}
        for row, title in zip(told, NO_TITLES, strict=True):
            assert LOOPBACK in row["why"]
            assert ascii(title.strip(b" \0").decode("latin-1")) in row["why"]
        name = f'dicomnode_receive_refused_associations{{rule="{RULES[expected]}"}}'
        assert node.scp.counts.read() == {name: len(NO_TITLES)}
        assert [(event, count) for event, _, count in alerts_of(node)] == [(NODE_ALERT, len(NO_TITLES))]
    assert library_words == []


def test_another_version_of_the_protocol_is_rejected_by_the_provider(
    tmp_path: Path, library_words: list[logging.LogRecord]
) -> None:
    with watched(tmp_path) as (node, logs):
        assert answer_to(node, changed((VERSION, b"\0\x02"))) == pdu(0x03, bytes((0, *BY_VERSION)))
        [told] = warnings(logs)
        assert (told["event"], told["rule"]) == ("receive.refused", "protocol version")
        assert f"'SCANNER' at {LOOPBACK} speaks none but other versions (0002)" in told["why"]
        assert alerts_of(node) == [(NODE_ALERT, "SCANNER", 1)]
    assert library_words == []


@pytest.mark.parametrize(
    ("request_", "shown"),
    [
        (changed((CONTEXT_NAME, b"1.2.840.10008.3.1.1.2")), "'1.2.840.10008.3.1.1.2'"),
        (changed((CONTEXT_NAME, b"\xff" * 21)), ascii("\xff" * 21)),
        (pdu(0x01, REQUEST[6:74] + REQUEST[99:]), "''"),
        (pdu(0x01, REQUEST[6:74]), "''"),
    ],
    ids=["another", "no characters", "none", "no item"],
)
def test_another_application_context_is_rejected_by_the_node(
    tmp_path: Path, request_: bytes, shown: str, library_words: list[logging.LogRecord]
) -> None:
    with watched(tmp_path) as (node, logs):
        assert answer_to(node, request_) == pdu(0x03, bytes((0, *BY_CONTEXT)))
        [told] = warnings(logs)
        assert (told["event"], told["rule"]) == ("receive.refused", "application context")
        assert f"'SCANNER' at {LOOPBACK} asked for the application context {shown}, DICOM's is" in told["why"]
        assert alerts_of(node) == [(NODE_ALERT, "SCANNER", 1)]
    assert library_words == []


def test_an_application_context_after_the_others_is_found(tmp_path: Path) -> None:
    request = pdu(0x01, REQUEST[6:74] + REQUEST[99:] + REQUEST[74:99])
    with watched(tmp_path) as (node, _):
        assert answer_to(node, request)[0] == A_ASSOCIATE_AC


def test_of_a_strangers_request_no_more_is_read_than_its_head(tmp_path: Path) -> None:
    with watched(tmp_path) as (node, logs):
        stranger = changed((CALLING, b"STRANGER".ljust(16)))[6:99] + b"\xff" * 262144
        node_limit = node.settings.limits.associate_bytes
        assert answer_to(node, pdu(0x01, stranger[:node_limit])) == pdu(0x03, bytes((0, *BY_CALLING)))
        [told] = warnings(logs)
        assert (told["event"], told["rule"]) == ("receive.refused", "configured peers")


def test_who_is_rejected_counts_among_the_waiting_until_it_has_gone(tmp_path: Path) -> None:
    with watched(tmp_path) as (node, _):
        waiting = node.scp._parts()[1].waiting
        with RawAssociation(node.port).associate():
            assert waiting.count() == 0
            with RawAssociation(node.port) as rejected:
                rejected.send(changed((CALLING, b"STRANGER".ljust(16))))
                assert rejected.read() == pdu(0x03, bytes((0, *BY_CALLING)))
                assert waiting.count() == 1
            wait_until(lambda: waiting.count() == 0, 10, "the place of who has gone to be free")


def assert_told(node: RunningScp, logs: list[Any], words: str, caller: str) -> None:
    [told] = warnings(logs)
    assert (told["event"], told["address"]) == ("receive.aborted", LOOPBACK)
    assert words in told["why"]
    assert node.scp.counts.read()["dicomnode_receive_protocol_errors"] == 1
    assert alerts_of(node) == [(FUNCTION_ALERT, caller, 1)]
    with RawAssociation(node.port).associate() as raw:
        raw.release()


@pytest.mark.parametrize(
    ("before", "sent"),
    [
        (b"", pdu(0x02, REQUEST[6:])),
        (b"", pdu(0x03, bytes((0, *BY_CALLED)))),
        (b"", pdu(P_DATA, pdv(1, COMMAND | LAST, echo_command()))),
        (b"", A_RELEASE_RQ),
        (b"", pdu(0x06, bytes(4))),
        (REQUEST, REQUEST),
        (REQUEST, pdu(0x02, REQUEST[6:])),
        (REQUEST, pdu(0x03, bytes((0, *BY_CALLED)))),
        (REQUEST, pdu(0x06, bytes(4))),
    ],
)
def test_what_comes_out_of_turn_ends_the_association(
    tmp_path: Path, before: bytes, sent: bytes, library_words: list[logging.LogRecord]
) -> None:
    with watched(tmp_path) as (node, logs):
        with RawAssociation(node.port) as raw:
            if before:
                raw.associate()
            raw.send(sent)
            assert raw.read() == pdu(A_ABORT, bytes((0, 0, 2, UNEXPECTED)))
        words = f"a PDU of type {sent[0]:02X} came where PS3.8 table 9-10 expects none"
        assert_told(node, logs, words, "SCANNER" if before else "unknown")
    assert library_words == []


CONTEXT_AT = REQUEST.index(b"\x20\0", 74)  # PS3.8 9.3.2.2: the presentation context item, its number behind the length


@pytest.mark.parametrize(
    ("request_", "words", "caller"),
    [
        (pdu(0x01, b""), "an association request of 6 bytes came, it has at least 74", "unknown"),
        (pdu(0x01, REQUEST[6:73]), "an association request of 73 bytes came, it has at least 74", "unknown"),
        (pdu(0x01, REQUEST[6:100]), "a PDU of type 01 cannot be read", "SCANNER"),
        (changed((slice(76, 78), b"\xff\xff")), "item 10 of an association request says it has 65535 bytes", "unknown"),
        (REQUEST.replace(MR.encode(), b"\xff" * len(MR)), "a PDU of type 01 cannot be read", "SCANNER"),
        (
            changed((slice(CONTEXT_AT + 4, CONTEXT_AT + 5), b"\x02")),
            "an association request that cannot be read",
            "SCANNER",
        ),
    ],
    ids=["empty", "cut in its head", "cut in an item", "long item", "no characters", "even context number"],
)
def test_a_request_that_cannot_be_read_is_aborted(
    tmp_path: Path, request_: bytes, words: str, caller: str, library_words: list[logging.LogRecord]
) -> None:
    with watched(tmp_path) as (node, logs):
        assert answer_to(node, request_) == pdu(A_ABORT, bytes((0, 0, 2, INVALID_VALUE)))
        assert_told(node, logs, words, caller)
    assert library_words == []
