"""What the upper layer of a connection asks of who serves its association.

Flow: receive.upper_layer > [service] > receive.associations, which is one
Never: an answer of its own.
"""

from __future__ import annotations

from typing import Protocol

from pynetdicom.association import Association

from dicomnode.errors import PeerProtocolError
from dicomnode.receive.ingest import StoreRequest
from dicomnode.receive.pdus import RequestHead


class Service(Protocol):
    """Who answers C-STORE, judges who asks for an association, and hears why one is ended."""

    def judge_head(self, association: Association, head: RequestHead) -> tuple[int, int, int] | None:
        """Return result, source and reason to reject a request with by what it begins with; None to read on."""

    def store(self, association: Association, request: StoreRequest) -> int:
        """Return the status to answer with; raises `PeerProtocolError` to end the association instead."""

    def finish_rows(self, association: Association) -> None:
        """Put in the index what was stored, so that whoever asks after the release finds it."""

    def note_abort(self, association: Association, error: PeerProtocolError) -> None:
        """Record that a peer is cut off."""

    def note_silence(self, address: str, idle_s: float) -> None:
        """Record that a peer is let go because it says nothing."""
