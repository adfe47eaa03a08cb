"""Tells people what needs them: notes it, owes one notice of each kind, and sends it by each channel.

Flow: rows, send/conditions > [send/notices] > database/notices > send/channels
Never: anything sent to anybody whom the settings do not name; more than one notice of a kind by one channel in its
window; a notice lost with the process: what it was made from is a row, or is there still at the next look.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from numpy.random import Generator

from dicomnode.database.engine import Database
from dicomnode.database.notices import (
    Cause,
    DueNotice,
    Notice,
    claim_notice,
    fetch_owable_kinds,
    fetch_unnoted,
    finish_notice,
    is_notice_due,
    note_causes,
    owe_notice,
    put_notice_off,
)
from dicomnode.errors import DatabaseUnavailableError, DicomnodeError, LeaseLostError, PermanentError
from dicomnode.logs import get_logger
from dicomnode.send.channels import Channel, make_channels
from dicomnode.send.conditions import Conditions
from dicomnode.send.notice_words import Message, make_message
from dicomnode.send.retry import draw_wait_s
from dicomnode.send.threads import Threads
from dicomnode.settings import Settings

log = get_logger()

Clock = Callable[[], float]
LEASE_MARGIN_S = 30.0
DATABASE_AWAY_S = 60.0  # a locked database comes back before


class NoticeService:
    """The notices of this node; `step` is called by a clock and returns at once."""

    def __init__(self, settings: Settings, database: Database, clock: Clock, generator: Generator) -> None:
        self._in_force = (settings, make_channels(settings))  # replaced as a whole
        self._database = database
        self._clock = clock
        self._generator = generator
        self._conditions = Conditions(clock)
        self._threads = Threads("notice")
        self._stopping = threading.Event()
        self._database_away_since: float | None = None
        self._cries: dict[tuple[str, Cause], _Cry] = {}  # what is told without a row, as there is nowhere to keep one

    def reload(self, settings: Settings) -> None:
        """Tell others, or otherwise, from the next notice on; raises `ConfigurationError`, and goes on as it was."""
        self._in_force = (settings, make_channels(settings))

    def step(self) -> None:
        """Note what needs a person, owe notices, and set every channel going that is owed one and is idle.

        Raises
        ------
        DatabaseUnavailableError
            If nothing can be noted now. What is wrong with the disk, or with a database that stays away, is told all
            the same.
        """
        settings, channels = self._in_force
        if not channels or self._stopping.is_set():
            return
        causes = self._conditions.find(settings)
        try:
            for name in channels:
                told = {cause for (channel, cause), cry in self._cries.items() if channel == name and cry.attempts}
                self._owe(name, [cause for cause in causes if cause not in told], settings)
                if self._is_due(name, settings):
                    self._threads.set_going(name, partial(self._send_all, name))
        except DatabaseUnavailableError:
            self._cry(causes)
            raise
        self._database_away_since = None
        self._cries = {key: cry for key, cry in self._cries.items() if key[1] in causes}

    def stop(self, deadline_s: float) -> None:
        """Wait for the notices on their way, for `deadline_s` seconds at most; the rest stays owed."""
        self._stopping.set()
        self._threads.wait(deadline_s)
        self._threads.close(waits=False)

    def is_idle(self) -> bool:
        """Say whether no channel is at work."""
        return self._threads.is_idle()

    def _owe(self, channel: str, causes: list[Cause], settings: Settings) -> None:
        """Note what is new, and owe what may be told now; nothing is written where there is nothing."""
        now, window_s = self._clock(), settings.notices.window_s
        with self._database.read() as connection:
            new = fetch_unnoted(connection, channel, causes)
            kinds = fetch_owable_kinds(connection, channel, now, window_s)
        if not (new or kinds):
            return
        with self._database.write() as connection:
            note_causes(connection, channel, new, now)
            owed = {kind: owe_notice(connection, channel, kind, now, window_s) for kind in _all_kinds(kinds, new)}
        for kind, notice_id in owed.items():
            if notice_id is not None:
                log.info("notice.owed", notice_id=notice_id, channel=channel, kind=kind)

    def _due(self, channel: str, settings: Settings) -> DueNotice:
        lease_s = 2 * settings.send.timeout_s + LEASE_MARGIN_S
        return DueNotice(channel, self._clock(), lease_s, settings.send.retry_ceiling_s)

    def _is_due(self, channel: str, settings: Settings) -> bool:
        with self._database.read() as connection:
            return is_notice_due(connection, self._due(channel, settings))

    def _send_all(self, name: str) -> None:
        """Send one notice after the other by a channel, until none is due."""
        try:
            while not self._stopping.is_set():
                settings, channels = self._in_force
                channel = channels.get(name)
                notice = claim_notice(self._database, self._due(name, settings)) if channel else None
                if notice is None or channel is None:
                    return
                self._send(notice, channel, settings)
        except LeaseLostError:
            log.warning("notice.lost", channel=name)  # another node has it: it is told twice
        except DicomnodeError as error:  # the database: the lease runs out, and a later step tries again
            log.warning("notice.interrupted", channel=name, reason=str(error))

    def _send(self, notice: Notice, channel: Channel, settings: Settings) -> None:
        about = {"notice_id": notice.id, "channel": notice.channel, "kind": notice.kind}
        try:
            said = channel.send(make_message(notice, settings.node.ae_title), self._clock())
        except DicomnodeError as error:
            is_last = isinstance(error, PermanentError) or notice.attempts >= settings.send.attempts
            with self._database.write() as connection:
                if is_last:
                    finish_notice(connection, notice, "dead", self._clock(), str(error))
                else:
                    wait_s = draw_wait_s(notice.attempts, settings.send, self._generator)
                    put_notice_off(connection, notice, self._clock() + wait_s, str(error))
            log.warning("notice.dead" if is_last else "notice.retry", **about, reason=str(error))
            return
        with self._database.write() as connection:
            finish_notice(connection, notice, "sent", self._clock(), said)
        log.info("notice.sent", **about, count=notice.count)

    def _cry(self, causes: list[Cause]) -> None:
        """Tell, without a row, what keeps rows from being written: by each channel once, and tried again as others."""
        now = self._clock()
        if self._database_away_since is None or now < self._database_away_since:
            self._database_away_since = now
        urgent = [cause for cause in causes if cause.kind == "disk"]
        if not urgent and now - self._database_away_since >= DATABASE_AWAY_S:
            urgent = [Cause("database", "the database", self._database_away_since)]
        for name in self._in_force[1]:
            for cause in urgent:
                if now >= self._cries.setdefault((name, cause), _Cry()).not_before:
                    self._threads.set_going(name, partial(self._cry_out, name, cause))

    def _cry_out(self, name: str, cause: Cause) -> None:
        settings, channels = self._in_force
        cry, channel = self._cries[name, cause], channels.get(name)
        if channel is None or self._clock() < cry.not_before:
            return
        number = f"{cause.kind}-{int(cause.occurrence)}"
        message = Message(number, settings.node.ae_title, cause.kind, 1, (cause.subject,), cause.occurrence)
        cry.attempts += 1
        try:
            channel.send(message, self._clock())
        except DicomnodeError as error:
            cry.not_before = self._clock() + draw_wait_s(cry.attempts, settings.send, self._generator)
            log.warning("notice.retry", channel=name, kind=cause.kind, reason=str(error))
        else:
            cry.not_before = math.inf
            log.info("notice.sent", channel=name, kind=cause.kind, count=1)


@dataclass
class _Cry:
    """What became of a notice that has no row."""

    attempts: int = 0
    not_before: float = 0.0


def _all_kinds(kinds: list[str], causes: list[Cause]) -> list[str]:
    return sorted({*kinds, *(cause.kind for cause in causes)})
