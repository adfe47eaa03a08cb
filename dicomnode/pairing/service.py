"""One round of pairing: completes series, pairs patients, makes jobs; a thin shell around the rules.

Flow: receive > database/series > [pairing/service] > database/pairs, database/jobs > jobs
Never: a rule; a state kept between rounds (every round starts from the rows).
"""

from __future__ import annotations

from sqlalchemy import Connection

from dicomnode.database.engine import Database
from dicomnode.database.jobs import add_job, end_superseded_jobs
from dicomnode.database.pairs import (
    NewPair,
    add_pair,
    fetch_input_digest,
    fetch_patient_series,
    reject_superseded_pairs,
)
from dicomnode.database.series import (
    SERIES_MOVES,
    OpenSeries,
    fetch_identified_series,
    fetch_open_series,
    fetch_series_by_id,
    set_series_state,
)
from dicomnode.logs import get_logger
from dicomnode.pairing.completeness import judge_completeness
from dicomnode.pairing.rules import PairDecision, SeriesDecision, decide_patient
from dicomnode.settings import PairingSettings
from dicomnode.steps import Step, reach

log = get_logger()


def step(database: Database, settings: PairingSettings, now: float) -> None:
    """Complete the series that are, and pair the patients who have a complete one.

    Each series and each patient is one transaction: a crash between two loses nothing, the next round goes on.

    Parameters
    ----------
    database : Database
        Raises `DatabaseUnavailableError` when it cannot be reached.
    settings : PairingSettings
        In force for this round.
    now : float
        UTC epoch seconds.
    """
    with database.read() as connection:
        still_open = fetch_open_series(connection)
    for series in still_open:
        _complete_series(database, series, settings, now)
    with database.read() as connection:
        complete = fetch_identified_series(connection, ["complete"])
    for patient_id in sorted({series.patient.patient_id for series in complete}):
        with database.write() as connection:
            has_paired = _pair_patient(connection, patient_id, settings, now)
        if has_paired:
            reach(Step.PAIRED)


def _complete_series(database: Database, series: OpenSeries, settings: PairingSettings, now: float) -> None:
    """Mark a series complete, unless an instance came since it was read."""
    decision = judge_completeness(series, now, settings)
    if not decision.is_complete:
        return
    with database.write() as connection:
        if fetch_series_by_id(connection, series.row.id).row != series.row:
            return
        set_series_state(connection, series.row.id, "complete", decision.reason)
    log.info("pairing.series_complete", series_uid=series.row.series_uid, reason=decision.reason)
    reach(Step.COMPLETED, series_uid=series.row.series_uid)


def _pair_patient(connection: Connection, patient_id: str, settings: PairingSettings, now: float) -> bool:
    """Record what is decided about a patient's series; return whether there is a new pair."""
    decision = decide_patient(fetch_patient_series(connection, patient_id), now, settings)
    new = [pair for pair in decision.pairs if _record_pair(connection, pair, now)]
    for series in decision.series:
        _record_series(connection, series)
    return bool(new)


def _record_pair(connection: Connection, pair: PairDecision, now: float) -> bool:
    """Record a pair that is new, with its job, in place of older ones of the same two series; False for a known one."""
    digest = fetch_input_digest(connection, pair.fixed.id, pair.moving.id)
    new = NewPair(pair.fixed.id, pair.moving.id, digest, pair.state, pair.reason, pair.explanation)
    pair_id = add_pair(connection, new, now)
    if pair_id is None:
        return False
    superseded = f"superseded by pair {pair_id}: the instances of a series changed"
    end_superseded_jobs(connection, reject_superseded_pairs(connection, new, superseded), superseded, now)
    job_id = add_job(connection, pair_id, now) if pair.state == "ready" else None
    log.info("pairing.paired", pair_id=pair_id, state=pair.state, reason=pair.reason, job_id=job_id)
    return True


def _record_series(connection: Connection, decision: SeriesDecision) -> None:
    """Move a series where it is news; one that is paired keeps its pair though another is preferred now."""
    row = decision.series
    is_news = decision.state != row.state and row.state in ("complete", "unpaired")
    if is_news and decision.state in SERIES_MOVES[row.state]:
        set_series_state(connection, row.id, decision.state, decision.reason)
        log.info("pairing.series", series_uid=row.series_uid, state=decision.state, reason=decision.reason)
