"""Keeps the audit trail: tells of transfers, starts, stops and changes, and takes all of it to its collectors in order.

Flow: rows > [send/audit] > database/audit > send/collectors
Never: a message that is lost while its collector is away, save beyond `audit.spool_messages`, which is then said; a
PatientID in the spool.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from numpy.random import Generator
from pydicom import dcmread

from dicomnode.audit import (
    RECORDING_STOPPED,
    SECURITY_CONFIGURATION,
    SOFTWARE_CONFIGURATION,
    STARTED,
    STOPPED,
    Alert,
    Code,
    Party,
    Transfer,
    find_node,
    find_patient_rows,
    make_alert,
    make_application_activity,
    make_transferred,
    name_patients,
    name_user,
)
from dicomnode.database.audit import (
    AuditMessage,
    ChannelClaim,
    Received,
    Sent,
    claim_channel,
    fetch_messages,
    fetch_patient_ids,
    give_up_oldest,
    has_untold,
    open_audit,
    record_message,
    release_channel,
    remove_messages,
    take_received,
    take_sent,
)
from dicomnode.database.engine import Database
from dicomnode.errors import DatabaseUnavailableError, DicomnodeError, LeaseLostError
from dicomnode.logs import get_logger
from dicomnode.send.collectors import make_collectors
from dicomnode.send.retry import draw_wait_s
from dicomnode.send.threads import Threads
from dicomnode.settings import Settings
from dicomnode.volumes.headers import PARSE_ERRORS, quiet_reading

log = get_logger()

Clock = Callable[[], float]
BATCH = 100  # messages of one connection
LEASE_MARGIN_S = 30.0
TOGETHER_S = 60.0  # instances of one job that are sent within this are told of together
SPOOL_LOOKED_AT_S = 60.0
SECURITY_SECTIONS = frozenset({"receive", "tls", "peers", "audit"})  # who may do what, and who sees it


class AuditTrail:
    """The audit trail of one process; without a channel in the settings it does nothing."""

    def __init__(self, settings: Settings, database: Database, clock: Clock, generator: Generator) -> None:
        self._in_force = (settings, make_collectors(settings))  # replaced as a whole
        self._database = database
        self._clock = clock
        self._generator = generator
        self._threads = Threads("audit")
        self._stopping = threading.Event()
        self._spool_looked_at: float | None = None
        self._unrecorded: list[str] = []

    def start(self) -> None:
        """Record that the node starts."""
        self._record_activity(STARTED)

    def reload(self, settings: Settings) -> None:
        """Follow other settings, and record which sections changed; raises `ConfigurationError` for a file of [tls]."""
        before = self._in_force[0]
        self._in_force = (settings, make_collectors(settings))
        changed = [name for name in type(settings).model_fields if getattr(settings, name) != getattr(before, name)]
        if changed:
            type_ = SECURITY_CONFIGURATION if SECURITY_SECTIONS.intersection(changed) else SOFTWARE_CONFIGURATION
            alert = Alert(type_, f"the configuration changed: {', '.join(changed)}", "0", self._clock())
            self._unrecorded.append(make_alert(find_node(settings.node.ae_title), alert))
            try:
                self._record()
            except DatabaseUnavailableError as error:  # the next step tries again
                log.warning("audit.interrupted", reason=str(error))

    def step(self) -> None:
        """Tell of the transfers that ended, and set every collector going that is idle and for which something waits.

        Raises
        ------
        DatabaseUnavailableError
            If the database cannot be used now; a later step tries again.
        """
        collectors = self._in_force[1]
        if not collectors or self._stopping.is_set():
            return
        self._record()
        self._tell_transfers()
        self._bound_spool()
        for name in collectors:
            self._threads.set_going(name, partial(self._deliver, name))

    def stop(self, deadline_s: float, *, delivers: bool = True) -> None:
        """Record that the node stops, and deliver what waits, for `deadline_s` seconds at most; the rest waits on."""
        try:
            self._record_activity(STOPPED)
            if delivers:
                self._threads.wait(deadline_s)
                self.step()
                self._threads.wait(deadline_s)
        except DatabaseUnavailableError as error:
            log.warning("audit.interrupted", reason=str(error))
        self._stopping.set()
        self._threads.close(waits=False)

    def is_idle(self) -> bool:
        """Say whether no collector is being sent to."""
        return self._threads.is_idle()

    def _record(self) -> None:
        """Let what this process has to say wait for the channels of the settings; without any, forget it."""
        channels, now = self._in_force[0].audit.channels, self._clock()
        if self._unrecorded and channels:
            with self._database.write() as connection:
                open_audit(connection, channels, now)
                for text in self._unrecorded:
                    record_message(connection, channels, text, now)
        self._unrecorded = []

    def _record_activity(self, type_: Code) -> None:
        node = find_node(self._in_force[0].node.ae_title)
        user = name_user(os.getuid())
        self._unrecorded.append(make_application_activity(node, os.getpid(), user, type_, self._clock()))
        self._record()

    def _tell_transfers(self) -> None:
        settings, now = self._in_force[0], self._clock()
        with self._database.read() as connection:
            if not has_untold(connection):
                return
        node, channels = find_node(settings.node.ae_title), settings.audit.channels
        with self._database.write() as connection:
            transfers = [_make_receipt(received, node) for received in take_received(connection)]
            transfers += [_make_sending(sent, node, settings) for sent in take_sent(connection, now, TOGETHER_S)]
            for transfer in transfers:
                record_message(connection, channels, make_transferred(node, transfer), now)

    def _bound_spool(self) -> None:
        """Give up what is more than the settings let wait, and say so in the trail itself."""
        settings, now = self._in_force[0], self._clock()
        if self._spool_looked_at is not None and 0 <= now - self._spool_looked_at < SPOOL_LOOKED_AT_S:
            return
        self._spool_looked_at = now
        for name in settings.audit.channels:
            with self._database.write() as connection:
                given_up = give_up_oldest(connection, name, settings.audit.spool_messages)
                if given_up is not None:
                    count, first_at, last_at = given_up
                    since, until = (datetime.fromtimestamp(at, UTC).isoformat() for at in (first_at, last_at))
                    text = f"{count} messages recorded from {since} to {until} were given up: {name} was away"
                    alert = make_alert(find_node(settings.node.ae_title), Alert(RECORDING_STOPPED, text, "8", now))
                    record_message(connection, [name], alert, now)
                    log.error("audit.given_up", channel=name, messages=count, since=since, until=until)

    def _deliver(self, name: str) -> None:
        """Send what waits for a collector, in order, until nothing does or it fails."""
        settings, collectors = self._in_force
        lease_s = 2 * settings.send.timeout_s + LEASE_MARGIN_S
        try:
            claim = claim_channel(self._database, name, self._clock(), lease_s, settings.send.retry_ceiling_s)
            if claim is None or name not in collectors:
                return
            try:
                while messages := self._fetch(name, settings):
                    collectors[name]([message for message, _ in messages])
                    with self._database.write() as connection:
                        remove_messages(connection, claim, (kept for _, kept in messages), self._clock() + lease_s)
                with self._database.write() as connection:
                    release_channel(connection, claim, not_before=self._clock())
            except DatabaseUnavailableError:
                raise
            except LeaseLostError:
                log.warning("audit.lost", channel=name)  # another node has it: some are sent twice
            except DicomnodeError as error:
                self._put_off(claim, error, settings)
        except DicomnodeError as error:  # the database: the lease runs out, and a later step tries again
            log.warning("audit.interrupted", channel=name, reason=str(error))

    def _fetch(self, name: str, settings: Settings) -> list[tuple[AuditMessage, AuditMessage]]:
        """Return messages as they are to be sent, each with what the spool holds of it."""
        with self._database.read() as connection:
            messages = fetch_messages(connection, name, BATCH)
            if not settings.audit.patient_id:
                return [(message, message) for message in messages]
            rows = {row for message in messages for row in find_patient_rows(message.text)}
            patient_ids = fetch_patient_ids(connection, rows)
        return [(replace(one, text=name_patients(one.text, patient_ids)), one) for one in messages]

    def _put_off(self, claim: ChannelClaim, error: DicomnodeError, settings: Settings) -> None:
        attempts = claim.attempts + 1
        not_before = self._clock() + draw_wait_s(attempts, settings.send, self._generator)
        with self._database.write() as connection:
            release_channel(connection, claim, not_before=not_before, attempts=attempts, reason=str(error))
        log.warning("audit.retry", channel=claim.name, failures=attempts, reason=str(error))


def _make_receipt(received: Received, node: Party) -> Transfer:
    sender = Party(received.calling_ae, received.address)
    return Transfer(sender, node, received.study_uid, received.patient_row, received.sop_classes, received.at)


def _make_sending(sent: Sent, node: Party, settings: Settings) -> Transfer:
    peer = next((peer for peer in settings.peers if peer.name == sent.destination), None)
    receiver = Party(sent.destination) if peer is None else Party(peer.ae_title, peer.host)
    study_uid = _read_study_uid(settings.node.storage_root / sent.path)
    return Transfer(node, receiver, study_uid, sent.patient_row, sent.sop_classes, sent.at)


def _read_study_uid(path: Path) -> str:
    """Return whose study a result is in; the settings of the time it was made decided that, and the file says it."""
    try:
        with quiet_reading():
            return str(dcmread(path, specific_tags=["StudyInstanceUID"], stop_before_pixels=True).StudyInstanceUID)
    except PARSE_ERRORS:
        return "unknown"  # the file is gone since, or damaged: that it was sent is told all the same
