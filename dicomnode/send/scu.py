"""Speaks to a peer as SCU: an association, C-STORE of a file's own bytes, C-ECHO.

Flow: send/service | cli > [scu] > send/storing, send/association > a peer
Never: a data set decoded or changed on its way; a retry (the caller decides by the class of the error).
"""

from __future__ import annotations

from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from dicomnode.digests import Beat, digest_file
from dicomnode.errors import (
    FileDamagedError,
    PeerBusyError,
    PeerRejectedError,
    PeerUnreachableError,
    StorageFailedError,
)
from dicomnode.send.association import Caller, make_caller, open_association
from dicomnode.send.pdus import ContextKey, StoreAnswer
from dicomnode.send.statuses import classify_status
from dicomnode.send.storing import Instance, StoreAssociation, open_store_association
from dicomnode.settings import PeerSettings

__all__ = ["Caller", "Instance", "make_caller", "open_store_association", "send_echo", "send_instance"]

ECHO_CONTEXTS: frozenset[ContextKey] = frozenset({(Verification, "1.2.840.10008.1.2")})
WORDS_AT_MOST = 64  # PS3.7 C: Error Comment is LO


def send_instance(
    association: StoreAssociation, peer: PeerSettings, instance: Instance, message_id: int, beat: Beat = lambda: None
) -> str:
    """Send one instance and return the peer's warning, empty for plain Success; `beat` is called while it moves on.

    Raises
    ------
    PeerUnreachableError
        If the association is gone, no answer came, or the instance went too slowly: whether the peer has it is not
        known.
    PeerBusyError
        If the peer cannot take it now.
    PeerRejectedError
        If the peer refuses it for good, or did not accept its presentation context.
    StorageFailedError
        If the file cannot be read.
    FileDamagedError
        If the file is not what was written; nothing of it was sent.
    """
    if instance.context not in association.contexts:
        raise PeerRejectedError(
            f"{peer.name} does not take SOP class {instance.sop_class_uid} in transfer syntax "
            f"{instance.transfer_syntax_uid}"
        )
    _check_file(instance, beat)
    return _judge(peer, association.store(instance, message_id, beat))


def _check_file(instance: Instance, beat: Beat) -> None:
    """Raise `FileDamagedError` unless the file holds the bytes it was written with."""
    try:
        found = digest_file(instance.path, beat)
    except OSError as error:
        raise StorageFailedError(f"{instance.path.name}: {error.strerror}; it is needed to be sent") from error
    if found != instance.sha256:
        raise FileDamagedError(f"{instance.path.name}: its SHA-256 is {found}, {instance.sha256} was written")


def send_echo(peer: PeerSettings, caller: Caller) -> None:
    """Ask a peer whether it is there (C-ECHO, PS3.4 annex A).

    Raises
    ------
    PeerUnreachableError, PeerBusyError, PeerRejectedError
        As `open_association` does, or when the answer is not Success.
    """
    with open_association(peer, caller, ECHO_CONTEXTS) as association:
        status = association.send_c_echo()
    if "Status" not in status:  # pynetdicom returns an empty data set on time-out or abort
        raise PeerUnreachableError(f"{peer.name}: no answer to C-ECHO within {caller.timeout_s:g} s")
    if status.Status != 0x0000:
        raise PeerRejectedError(f"{peer.name}: C-ECHO answered 0x{status.Status:04X}, 0x0000 is needed")


def _judge(peer: PeerSettings, answer: StoreAnswer) -> str:
    """Return the warning of a status that means the peer has the instance; raise for any other."""
    meaning, name = classify_status(answer.status)
    comment = answer.comment[:WORDS_AT_MOST]
    said = f"{peer.name}: 0x{answer.status:04X} {name}" + (f" ({comment!a})" if comment else "")
    if meaning == "transient":
        raise PeerBusyError(said)
    if meaning == "permanent":
        raise PeerRejectedError(said)
    return said if name else ""
