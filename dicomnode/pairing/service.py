"""One round of pairing: completes series, pairs patients, makes jobs, looks for priors; a thin shell around the rules.

Flow: receive, send > database/series, database/priors > [pairing/service] > database/pairs, jobs, queries > jobs, send
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
    fetch_requests,
    reject_superseded_pairs,
)
from dicomnode.database.priors import fetch_priors, fetch_seekers, set_prior_state
from dicomnode.database.queries import add_query, fetch_queries
from dicomnode.database.series import (
    SERIES_MOVES,
    OpenSeries,
    complete_series,
    fetch_identified_series,
    fetch_open_series,
    fetch_series_by_id,
    set_series_state,
)
from dicomnode.logs import get_logger
from dicomnode.pairing.completeness import judge_completeness, should_ask_source
from dicomnode.pairing.priors import ARRIVES_WITHIN_S, FETCHES_AT_MOST, choose_prior
from dicomnode.pairing.rules import PairDecision, SeriesDecision, decide_patient
from dicomnode.settings import Settings
from dicomnode.steps import Step, reach

log = get_logger()


def step(database: Database, settings: Settings, now: float) -> None:
    """Complete the series that are, pair the patients who have a complete one, and choose what to fetch for the rest.

    Each series and each patient is one transaction: a crash between two loses nothing, the next round goes on.

    Parameters
    ----------
    database : Database
        Raises `DatabaseUnavailableError` when it cannot be reached.
    settings : Settings
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
        seekers = fetch_seekers(connection, now - ARRIVES_WITHIN_S, FETCHES_AT_MOST)
    for patient_id in sorted({series.patient.patient_id for series in complete}):
        with database.write() as connection:
            has_paired = _pair_patient(connection, patient_id, settings, now)
        if has_paired:
            reach(Step.PAIRED)
    for series_id in seekers:
        with database.write() as connection:
            _choose_prior(connection, series_id, settings, now)


def _complete_series(database: Database, series: OpenSeries, settings: Settings, now: float) -> None:
    """Mark a series complete, unless an instance came since it was read; or ask its source how many it has."""
    decision = judge_completeness(series, now, settings.pairing)
    if not decision.is_complete:
        _ask_source(database, series, settings, now)
        return
    with database.write() as connection:
        if fetch_series_by_id(connection, series.row.id).row != series.row:
            return
        complete_series(connection, series.row.id, decision.reason)
    log.info("pairing.series_complete", series_uid=series.row.series_uid, reason=decision.reason)
    reach(Step.COMPLETED, series_uid=series.row.series_uid)


def _ask_source(database: Database, series: OpenSeries, settings: Settings, now: float) -> None:
    is_source = [p for p in settings.peers if p.ae_title == series.row.calling_ae and "find" in p.answers]
    if is_source and should_ask_source(series, now, settings.pairing):
        with database.write() as connection:
            add_query(connection, "count", series.row.id, is_source[0].name, now)


def _pair_patient(connection: Connection, patient_id: str, settings: Settings, now: float) -> bool:
    """Record what is decided about a patient's series; return whether there is a new pair."""
    group = fetch_patient_series(connection, patient_id)
    requests = fetch_requests(connection, [series.row.id for series in group])
    decision = decide_patient(group, now, settings.pairing, requests)
    new = [record_pair(connection, pair, now) for pair in decision.pairs]
    for series in decision.series:
        _record_series(connection, series, settings, now)
    return any(pair_id is not None for pair_id in new)


def record_pair(connection: Connection, pair: PairDecision, now: float) -> int | None:
    """Record a pair with its job, in place of older ones of the same two series; None where it is not new."""
    digest = fetch_input_digest(connection, pair.fixed.id, pair.moving.id)
    new = NewPair(
        pair.fixed.id, pair.moving.id, digest, pair.state, pair.reason, pair.explanation, is_requested=pair.is_requested
    )
    pair_id = add_pair(connection, new, now)
    if pair_id is None:
        return None
    superseded = f"superseded by pair {pair_id}: the instances of a series changed"
    end_superseded_jobs(connection, reject_superseded_pairs(connection, new, superseded), superseded, now)
    job_id = add_job(connection, pair_id, now) if pair.state == "ready" else None
    # Without the reason: how two identities agree is for whoever asks, not for the log.
    log.info("pairing.paired", pair_id=pair_id, state=pair.state, job_id=job_id)
    return pair_id


def _record_series(connection: Connection, decision: SeriesDecision, settings: Settings, now: float) -> None:
    """Move a series where it is news; one that is paired keeps its pair though another is preferred now."""
    row = decision.series
    is_news = decision.state != row.state and row.state in ("complete", "unpaired")
    if is_news and decision.state in SERIES_MOVES[row.state]:
        set_series_state(connection, row.id, decision.state, decision.reason)
        log.info("pairing.series", series_uid=row.series_uid, state=decision.state)
        if decision.wants:
            _look_for_priors(connection, row.id, settings, now)


def _look_for_priors(connection: Connection, series_id: int, settings: Settings, now: float) -> None:
    """Owe a search to every peer that has priors, once for a series."""
    asked = {query.peer for query in fetch_queries(connection, [series_id]) if query.kind == "priors"}
    for peer in settings.peers:
        if peer.has_priors and peer.name not in asked:
            add_query(connection, "priors", series_id, peer.name, now)


def _choose_prior(connection: Connection, series_id: int, settings: Settings, now: float) -> None:
    seeker = fetch_series_by_id(connection, series_id)
    priors = fetch_priors(connection, series_id)
    for decision in choose_prior(seeker, priors, settings.pairing):
        prior = decision.prior
        set_prior_state(connection, prior.id, decision.state, decision.reason)
        if decision.state == "chosen":
            add_query(connection, "fetch", series_id, prior.peer, now, prior_id=prior.id)
            log.info("pairing.prior_chosen", series_uid=seeker.row.series_uid, peer=prior.peer, found=len(priors))
