"""A person's word on a pair or a job: the only way out of `held`, `review` and `failed`.

Flow: cli > [decisions] > database/pairs, database/jobs, database/outbox > jobs|send
Never: a decision by the node itself; anything sent of what a person rejected.
"""

from __future__ import annotations

from collections.abc import Iterable

from dicomnode.database.deletions import check_kept
from dicomnode.database.engine import Database
from dicomnode.database.jobs import (
    add_job,
    cancel_job,
    fetch_job,
    fetch_jobs_of_pair,
    fetch_latest_job,
    fetch_outputs,
    move_job_by_person,
    reject_jobs,
)
from dicomnode.database.outbox import cancel_outputs
from dicomnode.database.pairs import Pair, fetch_pair, fetch_pairs_of_series, is_current_pair, lock_parts, move_pair
from dicomnode.database.series import SeriesRow, fetch_series, set_series_state
from dicomnode.errors import StateError
from dicomnode.logs import get_logger
from dicomnode.pairing.rules import request_pair as decide_request
from dicomnode.pairing.service import record_pair
from dicomnode.routes import owe_results
from dicomnode.settings import PairingSettings, Settings

log = get_logger()

REQUESTED = "requested by a person"
CANCELLED = "cancelled by a person"
REJECTED = "rejected by a person"


def accept_pair(database: Database, pair_id: int, now: float, settings: Settings) -> None:
    """Say that a held pair is right, or that a registration in review may be sent.

    Parameters
    ----------
    database : Database
        A held pair becomes `ready` and gets a job; a job in review becomes `done` and its outputs are owed.
    pair_id : int
        The pair.
    now : float
        UTC epoch seconds.
    settings : Settings
        They say who gets results.

    Raises
    ------
    StateError
        If there is no such pair, nothing about it waits for a person, or slices came after what is in review was made;
        nothing changed.
    """
    with database.write() as connection:
        pair = fetch_pair(connection, pair_id)
        job = fetch_latest_job(connection, pair_id)
        if pair.state == "held":
            move_pair(connection, pair_id, "ready", "accepted by a person")
            add_job(connection, pair_id, now)
        elif pair.state == "ready" and job is not None and job.state == "review":
            lock_parts(connection, pair)
            if not is_current_pair(connection, pair):
                raise StateError(
                    f"pair {pair_id}: slices came after its registration was made, or again under another PatientID; "
                    "what was made is not sent any more: look at its series, and reject it"
                )
            move_job_by_person(connection, job.id, "done", decision="accepted", finished_at=now)
            made = [(output.id, output.kind) for output in fetch_outputs(connection, job.id)]
            owe_results(connection, pair_id, "review", made, (settings, now))
        else:
            raise _nothing_waits(pair_id, pair.state, None if job is None else job.state)
    log.info("pairing.accepted", pair_id=pair_id)


def reject_pair(database: Database, pair_id: int, now: float) -> None:
    """Say that a held pair is wrong, or that a registration in review must not be sent: nothing of it ever is.

    That holds for what every job of the pair has made. What was sent before, as where `outputs.review` is "send", stays
    with the destinations; the rest is given up.

    Raises
    ------
    StateError
        If there is no such pair, or nothing about it waits for a person; nothing changed.
    """
    with database.write() as connection:
        pair = fetch_pair(connection, pair_id)
        job = fetch_latest_job(connection, pair_id)
        is_in_review = job is not None and job.state == "review"
        if pair.state != "held" and not is_in_review:
            raise _nothing_waits(pair_id, pair.state, None if job is None else job.state)
        move_pair(connection, pair_id, "rejected", REJECTED)
        if job is not None and is_in_review:
            move_job_by_person(connection, job.id, "done", finished_at=now)
            reject_jobs(connection, pair_id, now)
            # The same result made again stays that of the job which was owed it.
            for one in fetch_jobs_of_pair(connection, pair_id):
                cancel_outputs(connection, one.id, REJECTED)
    log.info("pairing.rejected", pair_id=pair_id)


def request_pair(database: Database, uids: tuple[str, str], settings: PairingSettings, now: float) -> Pair:
    """Pair an MR and a PET that a person names; later rounds keep to it, and late slices of either make it anew.

    Parameters
    ----------
    database : Database
        Gets the pair and its job; a pair whose identities conflict is held, as any other.
    uids : tuple of str
        SeriesInstanceUID of the MR and of the PET.
    settings : PairingSettings
        In force.
    now : float
        UTC epoch seconds.

    Raises
    ------
    StateError
        If a series was not received, is still being received, was deleted, or is not of the modality its place needs,
        or if the same instances were paired before; nothing changed.
    """
    with database.write() as connection:
        fixed, moving = (fetch_series(connection, series_uid) for series_uid in uids)
        check_kept(connection, (fixed.row.id, moving.row.id), "a pair of these two cannot be made")
        for series, modality in ((fixed, "MR"), (moving, "PT")):
            _check_requested(series.row, modality)
        pair_id = record_pair(connection, decide_request(fixed, moving, settings), now)
        if pair_id is None:
            raise _paired_before(fetch_pairs_of_series(connection, fixed.row.id), moving.row.id)
        for series in (fixed, moving):
            if series.row.state != "paired":
                set_series_state(connection, series.row.id, "paired", REQUESTED)
        pair = fetch_pair(connection, pair_id)
    log.info("pairing.requested", pair_id=pair_id, fixed_series_uid=uids[0], moving_series_uid=uids[1])
    return pair


def retry_job(database: Database, job_id: int, now: float) -> None:
    """Let a failed job be tried again from the start.

    Raises
    ------
    StateError
        If there is no such job, it has not failed, or its series were deleted; nothing changed.
    """
    with database.write() as connection:
        pair = fetch_pair(connection, fetch_job(connection, job_id).pair_id)
        check_kept(connection, (pair.fixed_series_id, pair.moving_series_id), f"job {job_id}")
        move_job_by_person(
            connection, job_id, "waiting", reason="", attempts=0, not_before=now, verdict="", finished_at=None
        )
    log.info("job.asked_again", job_id=job_id)


def give_up_job(database: Database, job_id: int, now: float) -> None:
    """Let a job that waits or runs be tried no more; raises `StateError` if there is none or it has ended.

    It is `failed`, and can be asked for again. Its worker is ended by the node that it belongs to within a step.
    """
    with database.write() as connection:
        cancel_job(connection, job_id, CANCELLED, now)
    log.info("job.cancelled", job_id=job_id)


def _check_requested(row: SeriesRow, modality: str) -> None:
    if row.modality != modality:
        raise StateError(f"series {row.series_uid}: its modality is {row.modality or 'missing'}, {modality} is needed")
    if row.state == "receiving":
        raise StateError(f"series {row.series_uid}: it is still being received; ask again when it is complete")


def _paired_before(pairs: Iterable[Pair], moving_series_id: int) -> StateError:
    latest = max((pair for pair in pairs if pair.moving_series_id == moving_series_id), key=lambda pair: pair.id)
    return StateError(f"pair {latest.id}: it has the same instances already, and is {latest.state}")


def _nothing_waits(pair_id: int, pair_state: str, job_state: str | None) -> StateError:
    of_job = "it has no job" if job_state is None else f"its job is {job_state}"
    return StateError(f"pair {pair_id}: it is {pair_state} and {of_job}; a held pair or a job in review is needed")
