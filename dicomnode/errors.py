"""Everything the node can say went wrong: the branch decides retry, the class decides what the sender is told.

    DicomnodeError
    +- TransientError                 try again later
    |  +- StorageFullError            A700
    |  +- StorageFailedError          0110
    |  +- DatabaseUnavailableError    0110
    |  +- PeerUnreachableError
    |  +- PeerBusyError
    |  +- WorkerLostError
    |  +- LeaseLostError
    +- PermanentError                 will fail again
       +- ConfigurationError
       +- UsageError
       +- InstanceNotUnderstoodError  C000
       +- SopClassMismatchError       A900
       +- SopClassNotSupportedError   0122
       +- NotAuthorisedError          0124
       +- InstanceConflictError       0111
       +- SeriesRefusedError
       +- RegistrationRefusedError
       +- FileDamagedError
       +- PeerRejectedError
       +- PeerProtocolError
       |  +- LimitExceededError
       +- CommitmentRefusedError
       |  +- CommitmentForbiddenError
       +- StateError

Flow: every part > [errors] > status
Never: a patient's name, id or date in a message; a message says what was found and what was needed.
"""

from __future__ import annotations

from typing import ClassVar

from dicomnode.status import AbortReason, CommitmentStatus, StoreStatus


class DicomnodeError(Exception):
    """Root of what the node raises on purpose."""

    store_status: ClassVar[StoreStatus] = StoreStatus.PROCESSING_FAILURE


class TransientError(DicomnodeError):
    """May succeed when tried again later."""


class PermanentError(DicomnodeError):
    """Fails again with the same input; only a person or a new input changes that."""


class StorageFullError(TransientError):
    """The storage root has no room above its reserve, or this process has no descriptor left for a file."""

    store_status = StoreStatus.OUT_OF_RESOURCES


class StorageFailedError(TransientError):
    """The storage root could not be written or read."""


class DatabaseUnavailableError(TransientError):
    """The database did not answer, or stayed locked past its time-out."""


class PeerUnreachableError(TransientError):
    """No association, an abort, or no answer from a peer."""


class PeerBusyError(TransientError):
    """A peer answered, but cannot take the instance now."""


class WorkerLostError(TransientError):
    """The worker process died or ran past its deadline."""


class LeaseLostError(TransientError):
    """Another worker holds this row now; what this one made must not be recorded."""


class ConfigurationError(PermanentError):
    """The configuration file does not say what the node needs."""


class UsageError(PermanentError):
    """A command was given something it cannot work with."""


class InstanceNotUnderstoodError(PermanentError):
    """A data set cannot be parsed, or lacks what identifies it."""

    store_status = StoreStatus.CANNOT_UNDERSTAND


class SopClassMismatchError(PermanentError):
    """A data set says another SOP class or instance than its C-STORE request."""

    store_status = StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS


class SopClassNotSupportedError(PermanentError):
    """The request names a SOP class that the presentation context did not negotiate."""

    store_status = StoreStatus.SOP_CLASS_NOT_SUPPORTED


class NotAuthorisedError(PermanentError):
    """The peer is known, but may not do this."""

    store_status = StoreStatus.NOT_AUTHORISED


class InstanceConflictError(PermanentError):
    """A SOP Instance UID that is stored already came again with other content."""

    store_status = StoreStatus.DUPLICATE_SOP_INSTANCE


class SeriesRefusedError(PermanentError):
    """A series cannot become a volume; the message holds the reason and the values."""


class RegistrationRefusedError(PermanentError):
    """Two volumes cannot be registered, or the result must not be used."""


class FileDamagedError(PermanentError):
    """A stored file is not what was written any more: it must be neither used nor sent."""


class PeerRejectedError(PermanentError):
    """A peer refused the association, the context or the instance for good."""


class PeerProtocolError(PermanentError):
    """A peer broke the rules of the upper layer or a limit there: its association is aborted for this reason."""

    def __init__(self, reason: AbortReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LimitExceededError(PeerProtocolError):
    """A peer took more than a limit gives; `limit` is its key in [limits]."""

    def __init__(self, limit: str, message: str, reason: AbortReason = AbortReason.NOT_SPECIFIED) -> None:
        super().__init__(reason, message)
        self.limit = limit


class CommitmentRefusedError(PermanentError):
    """A peer's request for storage commitment, or its report, is not taken; `status` is what it is told."""

    def __init__(self, status: CommitmentStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class CommitmentForbiddenError(CommitmentRefusedError):
    """A peer asks for storage commitment that it may not have, or reports on what it was not asked."""


class StateError(PermanentError):
    """A row is not in a state that allows what was asked."""
