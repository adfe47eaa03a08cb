"""The steps of a pair's way from the spool to its delivery, and out of the house: after each the node may die.

Flow: receive|pairing|jobs|send|housekeeping > [steps] > logs
Never: a step that does something: to take it away changes nothing but what a test can stop at (`tests/system`).
"""

from __future__ import annotations

import logging
from enum import Enum
from typing import Any

from dicomnode.logs import get_logger

log = get_logger()


class Step(Enum):
    """What has just been done; in the order of a pair's way."""

    SPOOLED = "receive.spooled"  # an instance's bytes are on disk; the sender is told next
    INDEXED = "receive.indexed"  # its row is committed, with those of others
    PLACED = "receive.placed"  # their files stand in the store
    REQUESTED = "receive.commitment_requested"  # a sender's request for storage commitment is committed
    TOLD = "commitment.told"  # the sender has taken our report on it
    COMPLETED = "pairing.completed"  # a series was judged complete, committed
    PAIRED = "pairing.paired"  # a pair and its job are committed
    CLAIMED = "job.claimed"  # a job is leased, its worker does not know yet
    LOADED = "job.loaded"  # in the worker: both series are volumes
    REGISTERED = "job.registered"  # in the worker: the transform is known
    WRITTEN = "job.written"  # in the worker: every output is on disk
    RECORDED = "job.recorded"  # in the worker: the result and what is owed of it are committed
    TAKEN = "send.taken"  # outbox rows are leased
    ASSOCIATED = "send.associated"  # a destination has accepted an association
    STORED = "send.stored"  # it has answered for an instance
    SENT = "send.recorded"  # its answers are committed
    OWED = "commitment.owed"  # the transaction is committed, under which it is asked to keep what was sent
    ASKED = "commitment.asked"  # it has taken the request
    REPORTED = "commitment.reported"  # its report is committed
    SETTLED = "commitment.settled"  # what the report says of each instance is committed
    DOOMED = "housekeeping.doomed"  # rows are gone, and the files they named are noted, committed
    REMOVED = "housekeeping.removed"  # the files are gone too, the note is not yet


IN_WORKER = frozenset({Step.LOADED, Step.REGISTERED, Step.WRITTEN, Step.RECORDED})
IN_HOUSEKEEPING = frozenset({Step.DOOMED, Step.REMOVED})  # after a pair's way has ended


def reach(step: Step, **ids: Any) -> None:
    """Say that a step is done: a line of the log where someone looks for that."""
    if logging.root.isEnabledFor(logging.DEBUG):
        log.debug(step.value, **ids)
