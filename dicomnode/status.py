"""The DIMSE status codes and rejection codes the node answers with, each with its section of the standard.

Flow: errors > [status]
Never: behaviour; this is the table.
"""

from __future__ import annotations

from enum import IntEnum


class StoreStatus(IntEnum):
    """Answers to C-STORE: PS3.4 B.2.3 (service specific) and PS3.7 annex C (general)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.10
    DUPLICATE_SOP_INSTANCE = 0x0111  # PS3.7 C.5.7: same UID, other content
    SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.21
    NOT_AUTHORISED = 0x0124  # PS3.7 C.5.11
    OUT_OF_RESOURCES = 0xA700  # PS3.4 table B.2-1
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS = 0xA900  # PS3.4 table B.2-1
    CANNOT_UNDERSTAND = 0xC000  # PS3.4 table B.2-1


class CommitmentStatus(IntEnum):
    """Answers to N-ACTION and N-EVENT-REPORT of storage commitment: PS3.7 10.1.4.1.10, 10.1.1.1.8 and annex C."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.10
    NO_SUCH_SOP_INSTANCE = 0x0112  # PS3.7 C.5.12: not the well-known one of PS3.4 J.3.5
    NO_SUCH_EVENT_TYPE = 0x0113  # PS3.7 C.5.13
    INVALID_ARGUMENT_VALUE = 0x0115  # PS3.7 C.5.15
    NO_SUCH_ACTION = 0x0123  # PS3.7 C.5.14
    NOT_AUTHORISED = 0x0124  # PS3.7 C.5.11
    RESOURCE_LIMITATION = 0x0213  # PS3.7 C.5.18


class FailureReason(IntEnum):
    """Why the node does not commit an instance: PS3.3 C.14.1.1."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    DUPLICATE_TRANSACTION_UID = 0x0131


class RejectReason(IntEnum):
    """Reasons for A-ASSOCIATE-RJ by the service user, source 1, that the node gives: PS3.8 9.3.4, table 9-21."""

    APPLICATION_CONTEXT_NAME_NOT_SUPPORTED = 2
    CALLING_AE_TITLE_NOT_RECOGNISED = 3
    CALLED_AE_TITLE_NOT_RECOGNISED = 7


class AcseReason(IntEnum):
    """Reasons for A-ASSOCIATE-RJ by the service provider, source 2, that the node gives: PS3.8 9.3.4, table 9-21."""

    PROTOCOL_VERSION_NOT_SUPPORTED = 2


class BusyReason(IntEnum):
    """Reasons for A-ASSOCIATE-RJ for now by the service provider, source 3: PS3.8 9.3.4, table 9-21."""

    TEMPORARY_CONGESTION = 1
    LOCAL_LIMIT_EXCEEDED = 2


class AbortReason(IntEnum):
    """Reasons for A-ABORT by the service provider, source 2: PS3.8 9.3.8, table 9-26."""

    NOT_SPECIFIED = 0
    UNRECOGNISED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNISED_PDU_PARAMETER = 4
    UNEXPECTED_PDU_PARAMETER = 5
    INVALID_PDU_PARAMETER_VALUE = 6
