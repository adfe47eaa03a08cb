"""Asks peers what pairing wants to know, and fetches what it chose: each peer in a thread of its own.

Flow: pairing > database/queries > [send/queries] > send/find, send/fetch > peers; the answers become rows
Never: a rule about which prior is better; more than the settings allow of results, instances, bytes or seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from numpy.random import Generator
from pynetdicom.association import Association
from pynetdicom.dsutils import encode
from sqlalchemy import Connection

from dicomnode.audit import Party, Question, find_node, make_query
from dicomnode.database.audit import record_message
from dicomnode.database.engine import Database
from dicomnode.database.priors import record_priors
from dicomnode.database.queries import (
    Query,
    Subject,
    claim_query,
    fetch_subject,
    finish_query,
    has_due_queries,
    put_query_off,
    record_source_count,
)
from dicomnode.database.series import fetch_series_by_id, fetch_series_bytes
from dicomnode.database.store import Store
from dicomnode.database.turns import Turn
from dicomnode.errors import (
    DatabaseUnavailableError,
    DicomnodeError,
    LeaseLostError,
    PeerRejectedError,
    PermanentError,
)
from dicomnode.logs import get_logger
from dicomnode.send.association import Caller, Service, make_caller, open_association
from dicomnode.send.fetch import (
    GET_CONTEXTS,
    IMPLICIT_LITTLE_ENDIAN,
    STUDY_ROOT_MOVE,
    Bounds,
    Landing,
    get_series,
    move_series,
)
from dicomnode.send.find import (
    STUDY_ROOT_FIND,
    Search,
    find_count,
    find_series,
    make_count_identifier,
    make_studies_identifier,
)
from dicomnode.send.pdus import ContextKey
from dicomnode.send.retry import draw_wait_s
from dicomnode.send.threads import Threads
from dicomnode.settings import PeerSettings, Settings

log = get_logger()

Clock = Callable[[], float]
LEASE_MARGIN_S = 30.0
OTHER_MODALITY = {"MR": "PT", "PT": "MR"}
FIND_CONTEXTS: frozenset[ContextKey] = frozenset({(STUDY_ROOT_FIND, IMPLICIT_LITTLE_ENDIAN)})
MOVE_CONTEXTS: frozenset[ContextKey] = frozenset({(STUDY_ROOT_MOVE, IMPLICIT_LITTLE_ENDIAN)})


class QueryService:
    """The questions of this node to its peers; `step` is called by a clock and returns at once."""

    def __init__(self, settings: Settings, database: Database, clock: Clock, generator: Generator) -> None:
        self._in_force = (settings, make_caller(settings))  # replaced as a whole
        self._database = database
        self._clock = clock
        self._generator = generator
        self._threads = Threads("query")
        self._associations: dict[str, Association] = {}
        self._stopping = threading.Event()

    def reload(self, settings: Settings) -> None:
        """Use other settings from the next question on."""
        self._in_force = (settings, make_caller(settings))

    def step(self) -> None:
        """Set every peer going that is asked something and is idle."""
        settings = self._in_force[0]
        answering = sorted(peer.name for peer in settings.peers if peer.answers)
        with self._database.read() as connection:
            asked = [name for name in answering if has_due_queries(connection, self._make_turn(name, settings))]
        for name in asked:
            if not self._stopping.is_set():
                self._threads.set_going(name, partial(self._ask_all, name))

    def stop(self, deadline_s: float) -> None:
        """Finish the questions on their way, or abort after `deadline_s` seconds; the rest stays owed."""
        self._stopping.set()
        self._threads.wait(deadline_s)
        for association in list(self._associations.values()):
            association.abort()
        self._threads.close(waits=True)

    def _ask_all(self, name: str) -> None:
        """Ask a peer one question after the other, until none is due."""
        try:
            while not self._stopping.is_set():
                settings, caller = self._in_force
                query = claim_query(self._database, self._make_turn(name, settings))
                if query is None:
                    return
                with self._database.read() as connection:
                    subject = fetch_subject(connection, query)
                question = _Question(query, subject, settings, settings.peer(name), caller, self._database)
                self._ask(question)
        except DicomnodeError as error:  # the database: the lease runs out, and a later step tries again
            log.warning("query.interrupted", peer=name, reason=str(error))

    def _make_turn(self, name: str, settings: Settings) -> Turn:
        lease_s = settings.pairing.prior_s + 2 * settings.send.timeout_s + LEASE_MARGIN_S
        return Turn(name, self._clock(), lease_s, settings.send.retry_ceiling_s)

    def _ask(self, question: _Question) -> None:
        """Ask one question, and record the answer or what went wrong."""
        query, is_asked = question.query, False
        try:
            contexts, service, ask = _prepare(question)
            with open_association(question.peer, question.caller, contexts, service) as association:
                is_asked = True
                self._associations[query.peer] = association
                record = ask(association)
            with self._database.write() as connection:
                said = record(connection)
                finish_query(connection, query, "done", self._clock(), said)
                _record_audit(connection, question, self._clock(), is_answered=True)
            log.info("query.done", query_id=query.id, kind=query.kind, peer=query.peer, said=said)
        except LeaseLostError:
            log.warning("query.lost", query_id=query.id)
        except DatabaseUnavailableError:
            raise
        except DicomnodeError as error:
            self._record_failure(question, error, is_asked=is_asked)
        finally:
            self._associations.pop(query.peer, None)

    def _record_failure(self, question: _Question, error: DicomnodeError, *, is_asked: bool) -> None:
        query, settings = question.query, question.settings.send
        attempts_at_most = 1 if query.kind == "count" else settings.attempts  # without a count, quiet decides
        is_last = isinstance(error, PermanentError) or query.attempts >= attempts_at_most
        about = {"query_id": query.id, "kind": query.kind, "peer": query.peer, "reason": str(error)}
        with suppress(LeaseLostError), self._database.write() as connection:
            if is_asked:
                _record_audit(connection, question, self._clock(), is_answered=False)
            if is_last and not self._stopping.is_set():
                finish_query(connection, query, "failed", self._clock(), str(error))
                log.warning("query.failed", **about)
                return
            wait_s = 0.0 if self._stopping.is_set() else draw_wait_s(query.attempts, settings, self._generator)
            put_query_off(connection, query, self._clock() + wait_s, str(error))
            log.info("query.retry", **about)


@dataclass(frozen=True)
class _Question:
    """One claimed query, what it is about, and how its peer is called."""

    query: Query
    subject: Subject
    settings: Settings
    peer: PeerSettings
    caller: Caller
    database: Database


# What is recorded of an answer, and the words for it: never an identity.
_Record = Callable[[Connection], str]
_Prepared = tuple[frozenset[ContextKey], Service | None, Callable[[Association], _Record]]


def _prepare(question: _Question) -> _Prepared:
    """Return what the association must offer, and what is to be asked over it.

    Raises
    ------
    PeerRejectedError
        If the peer's settings do not name the service.
    """
    if question.query.kind == "count":
        return FIND_CONTEXTS, None, lambda association: _ask_count(association, question)
    if question.query.kind == "priors":
        return FIND_CONTEXTS, None, lambda association: _ask_priors(association, question)
    if "move" in question.peer.answers:
        return MOVE_CONTEXTS, None, lambda association: _move(association, question)
    if "get" not in question.peer.answers:  # a reload has changed it since the prior was found
        raise PeerRejectedError(f'{question.peer.name} is not fetched from; add "move" or "get" to its answers = [...]')
    store = Store(question.settings.node.storage_root)
    landing = Landing(store.fetched_folder(question.query.id), question.settings.pairing.prior_bytes)
    return GET_CONTEXTS, landing.service, lambda association: _get(association, question, landing)


def _record_audit(connection: Connection, question: _Question, now: float, *, is_answered: bool) -> None:
    """Tell the audit trail what a peer was asked, without whose it was; what is fetched is told of as it arrives."""
    channels = question.settings.audit.channels
    if question.query.kind == "fetch" or not channels:
        return
    subject = question.subject
    if question.query.kind == "count":
        identifier = make_count_identifier(subject)
    else:
        dates = make_date_range(subject.study_date, question.settings.pairing.window_days)
        identifier = make_studies_identifier("", dates, OTHER_MODALITY[subject.modality])
    asked = Question(
        peer=Party(question.peer.ae_title, question.peer.host),
        sop_class_uid=STUDY_ROOT_FIND,
        identifier=encode(identifier, is_implicit_vr=True, is_little_endian=True) or b"",
        transfer_syntax_uid=IMPLICIT_LITTLE_ENDIAN,
        patient_row=fetch_series_by_id(connection, question.query.series_id).row.patient_key,
        is_answered=is_answered,
        at=now,
    )
    node = find_node(question.settings.node.ae_title)
    record_message(connection, channels, make_query(node, asked), now)


def _ask_count(association: Association, question: _Question) -> _Record:
    count = find_count(association, question.peer, question.subject)

    def record(connection: Connection) -> str:
        record_source_count(connection, question.query.series_id, count)
        return f"{count} instances"

    return record


def _ask_priors(association: Association, question: _Question) -> _Record:
    subject, pairing = question.subject, question.settings.pairing
    dates = make_date_range(subject.study_date, pairing.window_days)
    search = Search(subject.patient, OTHER_MODALITY[subject.modality], dates, pairing.prior_results)
    found = find_series(association, question.peer, search)

    def record(connection: Connection) -> str:
        added = record_priors(connection, question.query, found)
        return f"{len(found)} series, {added} of them new here"

    return record


def _move(association: Association, question: _Question) -> _Record:
    settings, series_uid = question.settings, question.subject.series_uid

    def measure() -> int:
        with question.database.read() as connection:
            return fetch_series_bytes(connection, series_uid)

    bounds = Bounds(settings.pairing.prior_s, settings.pairing.prior_bytes, measure)
    move_series(association, question.peer, question.subject, settings.node.ae_title, bounds)
    size_bytes = measure()
    return lambda _: f"moved here, {size_bytes} bytes"


def _get(association: Association, question: _Question, landing: Landing) -> _Record:
    pairing = question.settings.pairing
    bounds = Bounds(pairing.prior_s, pairing.prior_bytes, lambda: landing.size_bytes)
    get_series(association, question.peer, question.subject, bounds)
    return lambda _: f"fetched, {landing.size_bytes} bytes"


def make_date_range(study_date: str, window_days: int) -> str:
    """Return the days around a DA as a range of PS3.4 C.2.2.2.5, empty where the DA is none."""
    try:
        day = datetime.strptime(study_date.strip(), "%Y%m%d")
        first, last = day - timedelta(window_days), day + timedelta(window_days)
    except (ValueError, OverflowError):
        return ""
    return f"{first:%Y%m%d}-{last:%Y%m%d}"
