"""Speaks to a peer as SCU: an association, C-STORE of a file's own bytes, C-ECHO.

Flow: send/service | cli > [scu] > send/association > a peer
Never: a data set decoded or changed on its way; a retry (the caller decides by the class of the error).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from dicomnode.errors import PeerBusyError, PeerRejectedError, PeerUnreachableError, StorageFailedError
from dicomnode.send.association import Caller, ContextKey, make_caller, open_association
from dicomnode.send.statuses import classify_status
from dicomnode.settings import PeerSettings

__all__ = ["Caller", "Instance", "make_caller", "open_association", "send_echo", "send_instance"]

WORDS_AT_MOST = 64  # PS3.7 C: Error Comment is LO


@dataclass(frozen=True)
class Instance:
    """A Part-10 file to send as it is."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: Path

    @property
    def context(self) -> ContextKey:
        """The presentation context it needs."""
        return self.sop_class_uid, self.transfer_syntax_uid


def send_instance(association: Association, peer: PeerSettings, instance: Instance, message_id: int) -> str:
    """Send one instance and return the peer's warning, empty for plain Success.

    Raises
    ------
    PeerUnreachableError
        If the association is gone or no answer came: whether the peer has the instance is not known.
    PeerBusyError
        If the peer cannot take it now.
    PeerRejectedError
        If the peer refuses it for good, or did not accept its presentation context.
    StorageFailedError
        If the file cannot be read.
    """
    if instance.context not in accepted_contexts(association):
        raise PeerRejectedError(
            f"{peer.name} does not take SOP class {instance.sop_class_uid} in transfer syntax "
            f"{instance.transfer_syntax_uid}"
        )
    try:
        status = association.send_c_store(instance.path, msg_id=message_id)
    except RuntimeError as error:  # pynetdicom: the association is gone
        raise PeerUnreachableError(f"{peer.name}: the association ended before the instance was sent") from error
    except OSError as error:
        raise StorageFailedError(f"{instance.path.name}: {error.strerror}; it is needed to be sent") from error
    if "Status" not in status:  # pynetdicom returns an empty data set on time-out or abort
        association.abort()  # ours, lest a release waits for an answer that will not come either
        raise PeerUnreachableError(f"{peer.name}: the association ended, or timed out, before an answer")
    return _judge(peer, status)


def send_echo(peer: PeerSettings, caller: Caller) -> None:
    """Ask a peer whether it is there (C-ECHO, PS3.4 annex A).

    Raises
    ------
    PeerUnreachableError, PeerBusyError, PeerRejectedError
        As `open_association` does, or when the answer is not Success.
    """
    implicit_little_endian = "1.2.840.10008.1.2"
    with open_association(peer, caller, [(Verification, implicit_little_endian)]) as association:
        status = association.send_c_echo()
    if "Status" not in status:  # pynetdicom returns an empty data set on time-out or abort
        raise PeerUnreachableError(f"{peer.name}: no answer to C-ECHO within {caller.timeout_s:g} s")
    if status.Status != 0x0000:
        raise PeerRejectedError(f"{peer.name}: C-ECHO answered 0x{status.Status:04X}, 0x0000 is needed")


def _judge(peer: PeerSettings, status: Dataset) -> str:
    """Return the warning of a status that means the peer has the instance; raise for any other."""
    meaning, name = classify_status(status.Status)
    comment = str(status.get("ErrorComment", ""))[:WORDS_AT_MOST]
    said = f"{peer.name}: 0x{status.Status:04X} {name}" + (f" ({comment!a})" if comment else "")
    if meaning == "transient":
        raise PeerBusyError(said)
    if meaning == "permanent":
        raise PeerRejectedError(said)
    return said if name else ""


def accepted_contexts(association: Association) -> set[ContextKey]:
    """Return the presentation contexts that the peer took."""
    return {(str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in association.accepted_contexts}
