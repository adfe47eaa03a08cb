"""Sees to storage commitment both ways, each peer in a thread of its own.

Flow: app > [send/commitments] > send/committing, send/reporting > peers
Never: a rule about what a report means; a peer that holds up another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from numpy.random import Generator
from pynetdicom.association import Association

from dicomnode.database.commitment_requests import fetch_told_peers, has_due_requests
from dicomnode.database.commitments import has_due_commitments
from dicomnode.database.engine import Database
from dicomnode.errors import DicomnodeError
from dicomnode.logs import get_logger
from dicomnode.send.association import make_caller
from dicomnode.send.committing import Work, ask_due, see_to_destination
from dicomnode.send.reporting import report_due
from dicomnode.send.threads import Threads
from dicomnode.settings import PeerSettings, Settings

log = get_logger()


class CommitmentService:
    """The storage commitment of this node; `step` is called by a clock and returns at once."""

    def __init__(
        self, settings: Settings, database: Database, clock: Callable[[], float], generator: Generator
    ) -> None:
        self._database = database
        self._clock = clock
        self._generator = generator
        self._stopping = threading.Event()
        self._open: set[Association] = set()
        self._threads = Threads("commitment")
        self._work = self._make_work(settings)  # replaced as a whole

    def reload(self, settings: Settings) -> None:
        """Use other settings from the next association on."""
        self._work = self._make_work(settings)

    def step(self) -> None:
        """Open and settle transactions, and set every peer going that is to be asked or told and is idle."""
        work = self._work
        destinations = [one for one in work.settings.destinations if one.commitment]
        for destination in destinations:
            see_to_destination(work, destination)
        with self._database.read() as connection:
            wanted = {one.commitment for one in destinations} | fetch_told_peers(connection)
            turns = [(peer, work.make_turn(peer.name)) for peer in work.settings.peers if peer.name in wanted]
            due = [
                peer
                for peer, turn in turns
                if has_due_commitments(connection, turn) or has_due_requests(connection, turn)
            ]
        for peer in due:
            if not self._stopping.is_set():
                self._threads.set_going(peer.name, partial(self._turn_to, work, peer))

    def stop(self, deadline_s: float) -> None:
        """Finish what is on its way, or abort after `deadline_s` seconds; the rest stays owed."""
        self._stopping.set()
        self._threads.wait(deadline_s)
        for association in list(self._open):
            association.abort()
        self._threads.close(waits=True)

    def is_idle(self) -> bool:
        """Say whether no peer is being asked or told."""
        return self._threads.is_idle()

    def _make_work(self, settings: Settings) -> Work:
        caller = make_caller(settings)
        return Work(self._database, self._clock, self._generator, settings, caller, self._stopping, self._open)

    def _turn_to(self, work: Work, peer: PeerSettings) -> None:
        """Ask and tell a peer what is due, until nothing is or it fails."""
        try:
            while not self._stopping.is_set() and self._work is work:
                was_asked, was_told = ask_due(work, peer), report_due(work, peer)
                if not (was_asked or was_told):
                    return
        except DicomnodeError as error:  # the database: the leases run out, and a later step tries again
            log.warning("commitment.interrupted", peer=peer.name, reason=str(error))
