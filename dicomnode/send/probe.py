"""Finds out what a peer takes: it is offered presentation contexts, and nothing is sent over them.

Flow: cli/peers > [probe] > send/association > a peer
Never: a message: what a peer accepts, it says when the association is negotiated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from dicomnode.send.association import Caller, open_association
from dicomnode.send.commitment import COMMITMENT_CONTEXTS
from dicomnode.send.fetch import IMPLICIT_LITTLE_ENDIAN, STUDY_ROOT_GET
from dicomnode.send.pdus import ContextKey
from dicomnode.send.queries import FIND_CONTEXTS, MOVE_CONTEXTS
from dicomnode.send.scu import ECHO_CONTEXTS
from dicomnode.settings import PeerSettings

# What a peer may be asked, each by the words of the configuration.
SERVICE_CONTEXTS: dict[str, Collection[ContextKey]] = {
    "echo": ECHO_CONTEXTS,
    "find": FIND_CONTEXTS,
    "move": MOVE_CONTEXTS,
    "get": {(STUDY_ROOT_GET, IMPLICIT_LITTLE_ENDIAN)},  # without the contexts in which instances come back
    "commitment": COMMITMENT_CONTEXTS,
}


@dataclass(frozen=True)
class Probe:
    """What a peer accepted, and how it presented itself; `pdu_bytes` is the longest PDU it takes, 0 is any."""

    accepted: frozenset[ContextKey]
    pdu_bytes: int
    implementation_class_uid: str
    implementation_version_name: str


def probe(peer: PeerSettings, caller: Caller, contexts: Iterable[ContextKey]) -> Probe:
    """Offer a peer presentation contexts, and return which it accepts.

    Raises
    ------
    PeerUnreachableError, PeerBusyError, PeerRejectedError
        As `open_association` does; the last, too, where the peer accepts none.
    """
    with open_association(peer, caller, contexts) as association:
        acceptor = association.acceptor
        return Probe(
            frozenset(
                (str(context.abstract_syntax), str(context.transfer_syntax[0]))
                for context in association.accepted_contexts
            ),
            acceptor.maximum_length or 0,
            str(acceptor.implementation_class_uid or ""),
            acceptor.implementation_version_name or "",
        )
