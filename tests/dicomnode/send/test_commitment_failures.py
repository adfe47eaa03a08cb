"""What becomes of an instance that a peer did not commit, and of a request that it did not take."""

from __future__ import annotations

import pytest

from dicomnode.errors import PeerBusyError, PeerRejectedError
from dicomnode.send.statuses import check_commitment_status, classify_failure


def test_every_failure_reason_of_the_standard_has_its_meaning() -> None:
    meanings = {
        0x0110: "sent again",
        0x0112: "sent again",
        0x0119: "given up",
        0x0122: "given up",
        0x0131: "asked again",
        0x0213: "sent again",
    }
    assert {reason: classify_failure(reason)[0] for reason in meanings} == meanings
    assert classify_failure(0x4711) == ("sent again", "a reason that storage commitment does not have")


@pytest.mark.parametrize(
    ("status", "error"),
    [(0x0110, PeerBusyError), (0x0213, PeerBusyError), (0x0124, PeerRejectedError), (0x4711, PeerRejectedError)],
)
def test_a_request_that_is_not_taken(status: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"pacs: N-ACTION answered 0x{status:04X}"):
        check_commitment_status("pacs", "N-ACTION", status)
    check_commitment_status("pacs", "N-ACTION", 0x0000)
