"""The node: builds every part from the settings, starts them, stops them. Read this first.

Flow: cli > [app] > receive, pairing, jobs, send, housekeeping
Never: work of its own: each part reads rows and files and writes rows and files, and none calls another. The scheduler
here is a clock that says "now"; what is to be done stands in the database alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Literal, Protocol, get_args

from numpy.random import Generator, default_rng

from dicomnode.database.engine import Database, open_database
from dicomnode.database.index import has_received
from dicomnode.database.migrate import migrate
from dicomnode.database.store import Store
from dicomnode.errors import DicomnodeError, StateError, StorageFailedError
from dicomnode.housekeeping.service import HousekeepingService
from dicomnode.jobs.service import JobService
from dicomnode.logs import get_logger
from dicomnode.pairing import service as pairing
from dicomnode.receive.scp import StorageScp
from dicomnode.scheduler import Every, SteadyScheduler
from dicomnode.send.audit import AuditTrail
from dicomnode.send.channels import make_channels
from dicomnode.send.commitments import CommitmentService
from dicomnode.send.notices import NoticeService
from dicomnode.send.queries import QueryService
from dicomnode.send.service import SendService
from dicomnode.settings import DATABASE_NAME, Settings
from dicomnode.settings_file import keep_sections
from dicomnode.tls import Certificate, find_expiring, find_invalid, read_certificates

log = get_logger()

Role = Literal["receive", "pair", "work", "send"]
ROLES: tuple[Role, ...] = get_args(Role)
TICK_S = 1.0
BACKUP_TICK_S = 60.0
CERTIFICATES_TICK_S = 86400.0
# A step takes milliseconds, or as long as a locked database makes it wait (30 s); beyond this it hangs.
LATE_TICK_S = 90.0
# What a running node cannot change: it would answer under another name, or look for its rows and files elsewhere.
FIXED_WHILE_RUNNING = ("node", "database")


class Part(Protocol):
    """What the clock drives: `step` returns at once, and `stop` when what is under way has ended, or was ended."""

    def step(self) -> None:
        """Do, or begin, what is due."""

    def reload(self, settings: Settings) -> None:
        """Use other settings from now on."""

    def stop(self, deadline_s: float) -> None:
        """End within so many seconds."""


# What speaks to peers and people, in a thread for each of them; stopped last first.
SENDING: Mapping[str, Callable[[Settings, Database, Callable[[], float], Generator], Part]] = {
    "send": SendService,
    "queries": QueryService,
    "commitments": CommitmentService,
    "notices": NoticeService,
}


class Node:
    """One running node; `start` and `stop` are called once each, `reload` in between as often as wanted."""

    def __init__(self, settings: Settings, roles: Iterable[Role] = ROLES) -> None:
        self.settings = settings
        self.roles = frozenset(roles)
        self._running = ExitStack()  # how to stop what was started, last first
        self._reloads: list[Callable[[Settings], None]] = []
        self._ticked_at: dict[str, float] = {}  # monotonic seconds
        self._failures: dict[str, str] = {}  # why parts do not work now, as was said
        self._stop_by = 0.0  # monotonic seconds
        self._scp: StorageScp | None = None
        self._certificates: list[Certificate] = []

    @property
    def port(self) -> int:
        """The open port of the Storage SCP; raises `StateError` where this node does not receive, or not yet."""
        if self._scp is None:
            raise StateError("this node does not receive: it has not the role, or was not started")
        return self._scp.port

    def read_counts(self) -> dict[str, int]:
        """Return what was counted since the start: metrics by name."""
        return {} if self._scp is None else self._scp.counts.read()

    def start(self, port: int | None = None) -> None:
        """Start the parts this node's roles name; the port opens last, when everything behind it is ready.

        Parameters
        ----------
        port : int, optional
            Instead of the settings' own; 0 takes any free one.

        Raises
        ------
        ConfigurationError, StorageFailedError, DatabaseUnavailableError
            If a part cannot start; those that did are stopped again.
        """
        with ExitStack() as started:
            self._start_parts(started, port)
            self._running = started.pop_all()
        log.info("node.started", roles=sorted(self.roles))

    def stop(self) -> None:
        """Take no new association, finish or abort what runs within `limits.shutdown_s`, put work back to waiting."""
        self._stop_by = time.monotonic() + self.settings.limits.shutdown_s
        self._running.close()
        self._scp = None
        log.info("node.stopped")

    def reload(self, settings: Settings) -> None:
        """Follow a changed configuration without dropping an association or a job.

        Raises
        ------
        ConfigurationError
            If a file of [tls] or [notices] cannot be used, or what has changed does not go together with what a running
            node keeps; the node goes on as it was.
        """
        certificates = self._read_certificates(settings)
        make_channels(settings)
        fixed = {section: getattr(self.settings, section) for section in FIXED_WHILE_RUNNING}
        changed = [section for section, value in fixed.items() if getattr(settings, section) != value]
        if changed:
            settings = keep_sections(settings, fixed)
            log.warning("node.restart_needed", sections=changed)
        self.settings, self._certificates = settings, certificates
        for reload in self._reloads:
            reload(self.settings)
        self._warn_of_expiry()
        log.info("node.reloaded")

    def is_healthy(self) -> bool:
        """Say whether the port is served and every part that the clock drives was heard of lately: for the watchdog."""
        now = time.monotonic()
        is_served = self._scp is None or self._scp.is_served()
        return is_served and all(now - at < LATE_TICK_S for at in self._ticked_at.values())

    def _start_parts(self, started: ExitStack, port: int | None) -> None:
        settings, clock = self.settings, time.time
        self._certificates = self._read_certificates(settings)
        store = Store(settings.node.storage_root)
        _make_folders(store, settings)
        migrate(settings.database_url)
        database = open_database(settings.database_url)
        started.callback(database.close)
        steps: dict[str, Callable[[], None]] = {}
        audit = AuditTrail(settings, database, clock, default_rng())
        audit.start()
        started.callback(lambda: audit.stop(self._remaining_s(), delivers="send" in self.roles))
        self._reloads.append(audit.reload)
        parts: dict[str, Part] = {}
        if "work" in self.roles:
            jobs = JobService(settings, database, clock)
            started.callback(self._end, jobs)
            jobs.start()
            parts["work"] = jobs
        if "send" in self.roles:
            steps["audit"] = audit.step
            for name, service in SENDING.items():
                parts[name] = part = service(settings, database, clock, default_rng())
                started.callback(self._end, part)
        for name, part in parts.items():
            self._reloads.append(part.reload)
            steps[name] = part.step
        if "pair" in self.roles:
            steps["pair"] = lambda: pairing.step(database, self.settings, clock())
        housekeeping = HousekeepingService(settings, database, clock) if "receive" in self.roles else None
        if housekeeping is not None:
            self._reloads.append(housekeeping.reload)
            steps["housekeeping"] = housekeeping.step
        scp = StorageScp(settings, database, store, clock) if "receive" in self.roles else None
        if scp is not None:
            steps["receive"] = scp.step
        self._start_clock(started, steps, housekeeping)
        if housekeeping is not None:
            started.callback(housekeeping.stop)  # before the clock, which waits for what it has called
        if scp is not None:
            self._scp = scp
            scp.start(port)
            started.callback(self._end, scp)
            self._reloads.append(scp.reload)

    def _start_clock(
        self, started: ExitStack, steps: dict[str, Callable[[], None]], housekeeping: HousekeepingService | None
    ) -> None:
        """Call every step each second, none twice at once, whatever the wall clock does; a backup may take longer."""
        scheduler = SteadyScheduler()
        for name, step in steps.items():
            self._ticked_at[name] = time.monotonic()
            scheduler.add_job(self._tick, Every(TICK_S), (name, step), id=name, next_run_time=datetime.now(UTC))
        if housekeeping is not None:
            scheduler.add_job(housekeeping.back_up, Every(BACKUP_TICK_S), id="backup")
        daily = Every(CERTIFICATES_TICK_S)
        scheduler.add_job(self._warn_of_expiry, daily, id="certificates", next_run_time=datetime.now(UTC))
        scheduler.start()
        started.callback(scheduler.shutdown)

    def _tick(self, name: str, step: Callable[[], None]) -> None:
        """Run one step; what it could not do now, the next one tries again.

        What keeps a part from its work is told when it begins, when it changes and when it is over. A fault of ours is
        the scheduler's to log, each time, with its traceback. A part that has one was heard of all the same: to start
        the node anew would cost every job and association that has none, and the fault would be there again.
        """
        try:
            step()
        except DicomnodeError as error:
            before, self._failures[name] = self._failures.get(name), str(error)
            if str(error) != before:
                log.warning("node.step_failed", part=name, reason=str(error))
        else:
            if self._failures.pop(name, None) is not None:
                log.info("node.step_recovered", part=name)
        finally:
            self._ticked_at[name] = time.monotonic()

    def _read_certificates(self, settings: Settings) -> list[Certificate]:
        """Read the certificates that this node's roles show to peers, or trust."""
        return read_certificates(settings.tls) if self.roles & {"receive", "send"} else []

    def _warn_of_expiry(self) -> None:
        """Name the certificates in use that run out soon, or have: those read at the start or the last reload."""
        now = datetime.now(UTC)
        for certificate, problem in find_invalid(self._certificates, now):
            log.error("tls.certificate_invalid", key=f"tls.{certificate.key}", problem=problem)
        for certificate in find_expiring(self._certificates, now):
            where = {"key": f"tls.{certificate.key}", "file": str(certificate.path)}
            log.warning("tls.certificate_expires", **where, at=certificate.validity.not_after.isoformat())

    def _end(self, part: Part) -> None:
        part.stop(self._remaining_s())

    def _remaining_s(self) -> float:
        return max(self._stop_by - time.monotonic(), 0.0)


def _make_folders(store: Store, settings: Settings) -> None:
    """Make the folders that are not there yet; where there is none, say so: a disk may not be mounted.

    Raises
    ------
    StorageFailedError
        If they cannot be made, or none is there and the database knows what was received; then none is made.
    """
    if not store.is_made:
        if _knows_what_was_received(store, settings):
            raise StorageFailedError(
                f"{store.spool_root} is not there, but the database knows what was received below {store.root}: "
                "mount its disk, or set node.storage_root to where it is now; where all of it is lost, make that "
                "folder for the node's user, and have sent again what is missing"
            )
        why = "nothing is there yet; if a node has run there, stop this one, and mount its disk"
        log.warning("node.storage_made", root=str(store.root), why=why)
    store.make_folders()


def _knows_what_was_received(store: Store, settings: Settings) -> bool:
    """Ask the database, unless it lies below the storage root, and is gone with it."""
    if not settings.database.url and not os.access(store.root / DATABASE_NAME, os.F_OK):
        return False
    database = open_database(settings.database_url)
    try:
        with database.read() as connection:
            return has_received(connection)
    finally:
        database.close()
