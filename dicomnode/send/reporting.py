"""Reports to peers that asked for storage commitment what the node keeps safe, over an association of its own.

Flow: receive > database/commitment_requests > [reporting] > send/safekeeping, send/commitment > peers
Never: a report on the association of the request (a peer may have closed it); one that was not looked into, or whose
promise is not on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from pynetdicom.association import Association

from dicomnode.commitment import Report
from dicomnode.database.commitment_requests import (
    CommitmentRequest,
    claim_requests,
    extend_requests,
    finish_request,
    put_due_requests_off,
    record_promises,
    release_requests,
)
from dicomnode.database.store import Store
from dicomnode.database.turns import Turn
from dicomnode.digests import Beat
from dicomnode.errors import DicomnodeError, LeaseLostError, PeerBusyError, PeerRejectedError, PeerUnreachableError
from dicomnode.logs import get_logger
from dicomnode.send.commitment import REPORTING, send_report
from dicomnode.send.committing import CLAIM_AT_MOST, Work
from dicomnode.send.leases import make_keeper
from dicomnode.send.safekeeping import make_safekeeping_report
from dicomnode.settings import PeerSettings
from dicomnode.status import FailureReason
from dicomnode.steps import Step, reach

log = get_logger()


def report_due(work: Work, peer: PeerSettings) -> bool:
    """Report to a peer on what it asked, over one association; False when nothing was due, or the peer failed."""
    turn = work.make_turn(peer.name)
    left = claim_requests(work.database, turn, CLAIM_AT_MOST)
    if not left:
        return False
    keep = make_keeper(partial(_extend_leases, work, left), work.clock, turn.lease_s, turn.now)
    try:
        if any(one.state == "retry" for one in left):
            with work.associate(peer, REPORTING):  # is it back? Nothing is read back for one that is still away
                keep()
        reports = _look_into(work, left, keep)
        if left and reports.keys() >= {one.id for one in left}:
            with work.associate(peer, REPORTING) as association:
                keep()
                while left and not work.stopping.is_set():
                    _report(work, association, peer, reports[left[0].id], left)
                    keep()
    except (PeerUnreachableError, PeerBusyError, PeerRejectedError) as error:
        _put_due_off(work, turn, left, error)
        return False
    with work.database.write() as connection:
        release_requests(connection, left)
    return not left


def _look_into(work: Work, left: list[CommitmentRequest], keep: Beat) -> Mapping[int, Report]:
    """Return the report on each request by its id; of fewer than all where the node is stopping."""
    store = Store(work.settings.node.storage_root)
    reports = {}
    for request in tuple(left):
        keep()
        if request in left and (report := make_safekeeping_report(work.database, store, request, work.stopping, keep)):
            reports[request.id] = _promise(work, report)
    keep()
    return reports


def _extend_leases(work: Work, left: list[CommitmentRequest], lease_until: float) -> None:
    """Keep what is looked into or waits to be, and let go of what another node has claimed."""
    kept = extend_requests(work.database, left, lease_until)
    left[:] = [one for one in left if one.id in kept]


def _promise(work: Work, report: Report) -> Report:
    """Record what is promised by a report, and leave out of it what was deleted since it was looked into."""
    with work.database.write() as connection:
        promised = record_promises(connection, report.committed, work.clock())
    gone = [one for one in report.committed if one.sop_instance_uid not in promised]
    failed = {**report.failed, **dict.fromkeys(gone, int(FailureReason.NO_SUCH_OBJECT_INSTANCE))}
    return Report(report.transaction_uid, tuple(one for one in report.committed if one not in failed), failed)


def _report(
    work: Work, association: Association, peer: PeerSettings, report: Report, left: list[CommitmentRequest]
) -> None:
    """Report on the first of what is left, and take it away when the peer has answered."""
    request = left[0]
    try:
        send_report(association, peer, report, len(left))
        state, said = "reported", f"{len(report.committed)} of {request.instance_count} are kept"
        reach(Step.TOLD, commitment_request_id=request.id)
    except PeerRejectedError as error:
        state, said = "failed", str(error)
    del left[0]
    with suppress(LeaseLostError), work.database.write() as connection:
        finish_request(connection, request, state, work.clock(), said)
    about = {"transaction_uid": request.transaction_uid, "peer": peer.name, "reason": said}
    if state == "reported":
        log.info("commitment.report_taken", **about)
    else:
        log.warning("commitment.report_refused", **about)


def _put_due_off(work: Work, turn: Turn, left: list[CommitmentRequest], error: DicomnodeError) -> None:
    """Let every report that is due to a peer share one failed association; its requests were counted as attempts."""
    retry_at = work.draw_retry_at(max((one.attempts for one in left), default=1))
    never = isinstance(error, PeerRejectedError)
    with work.database.write() as connection:
        release_requests(connection, left)
        failed = put_due_requests_off(
            connection, turn, str(error), None if never else retry_at, work.settings.send.attempts
        )
    log.warning("commitment.not_reported", peer=turn.peer, failed=failed, reason=str(error))
