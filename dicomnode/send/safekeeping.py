"""Says of an instance whether the node keeps it safe: its row, its file, and every byte of that.

Flow: database/commitment_requests > [safekeeping] > send/reporting
Never: a commitment on what was not read back: whoever is told so may delete its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from threading import Event

from dicomnode.commitment import Reference, Report
from dicomnode.database.commitment_requests import CommitmentRequest, Held, fetch_conflicting, fetch_held
from dicomnode.database.engine import Database
from dicomnode.database.store import Store
from dicomnode.digests import Beat, digest_data_set, digest_file
from dicomnode.status import FailureReason


def make_safekeeping_report(
    database: Database, store: Store, request: CommitmentRequest, stopping: Event, beat: Beat = lambda: None
) -> Report | None:
    """Return what the node keeps of what a peer asks for, and why not the rest (PS3.3 C.14.1.1).

    None where the node is stopping: of thousands of instances, not every one was read back then. `beat` is called as
    they are read.
    """
    references = request.references
    if request.is_duplicate:
        used = dict.fromkeys(references, int(FailureReason.DUPLICATE_TRANSACTION_UID))
        return Report(request.transaction_uid, (), used)
    with database.read() as connection:
        held = fetch_held(connection, store, references)
        conflicting = fetch_conflicting(connection, references)
    failed: dict[Reference, int] = {}
    for reference in references:
        if stopping.is_set():
            return None
        if reason := find_failure(held, conflicting, reference, beat):
            failed[reference] = int(reason)
    return Report(request.transaction_uid, tuple(one for one in references if one not in failed), failed)


def find_failure(
    held: Mapping[str, Held], conflicting: set[str], reference: Reference, beat: Beat
) -> FailureReason | None:
    """Return why an instance is not kept safe, None when it is; of `conflicting` UIDs two contents were received."""
    found = held.get(reference.sop_instance_uid)
    if found is None:
        return FailureReason.NO_SUCH_OBJECT_INSTANCE
    if found.sop_class_uid != reference.sop_class_uid:
        return FailureReason.CLASS_INSTANCE_CONFLICT
    if reference.sop_instance_uid in conflicting:  # the node keeps one of them: is it the one that is meant?
        return FailureReason.PROCESSING_FAILURE
    with suppress(OSError):
        digest = digest_file if found.is_of_whole_file else digest_data_set
        if digest(found.path, beat) == found.sha256:
            return None
    return FailureReason.PROCESSING_FAILURE
