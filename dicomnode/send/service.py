"""Delivers what is owed, each destination by threads of its own, so that one that is down holds up no other.

Flow: jobs > database/outbox > [send/service] > send/delivery > destinations
Never: an instance given up for a transient failure before its attempts are used up; more than one connection attempt
for each step of a destination's back-off, however much is owed to it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

from numpy.random import Generator

from dicomnode.database.engine import Database
from dicomnode.database.outbox import count_due_rows
from dicomnode.errors import DicomnodeError
from dicomnode.logs import get_logger
from dicomnode.send.breaker import Breaker
from dicomnode.send.delivery import WORTH_ONE, Delivery, Lane, find_due
from dicomnode.send.scu import Caller, make_caller
from dicomnode.settings import ASSOCIATIONS_AT_MOST, DestinationSettings, Settings

log = get_logger()

Clock = Callable[[], float]


@dataclass(frozen=True)
class _Senders:
    """The threads of one destination, and what they share."""

    executor: ThreadPoolExecutor
    lane: Lane
    lock: threading.Lock = field(default_factory=threading.Lock)  # to start one
    running: set[Future[None]] = field(default_factory=set)


class SendService:
    """The senders of this node; `step` is called by a clock and returns at once."""

    def __init__(self, settings: Settings, database: Database, clock: Clock, generator: Generator) -> None:
        self._in_force = (settings, make_caller(settings))  # replaced as a whole
        self._database = database
        self._clock = clock
        self._generator = generator
        self._senders: dict[str, _Senders] = {}
        self._stopping = threading.Event()

    def reload(self, settings: Settings) -> None:
        """Use other settings from the next instance on; one that was down may have moved: it is tried at once."""
        self._in_force = (settings, make_caller(settings))
        for senders in self._senders.values():
            senders.lane.breaker.forget()

    def step(self) -> None:
        """Give every destination that may be tried as many senders as what is due to it is worth."""
        for destination in self._in_force[0].destinations:
            senders = self._senders.get(destination.peer) or self._hire(destination.peer)
            self._collect(senders)
            self._set_going(senders, destination)

    def stop(self, deadline_s: float) -> None:
        """Finish the instances on their way, or hang up after `deadline_s` seconds; the rest stays owed."""
        self._stopping.set()
        running = [run for senders in self._senders.values() for run in tuple(senders.running)]
        _, late = wait(running, timeout=deadline_s)
        for senders in self._senders.values():
            for association in list(senders.lane.open) if late else ():
                association.hang_up()
            senders.executor.shutdown(wait=True)
        self._senders = {}

    def is_idle(self) -> bool:
        """Say whether no sender is at work."""
        return all(run.done() for senders in self._senders.values() for run in tuple(senders.running))

    def _hire(self, name: str) -> _Senders:
        executor = ThreadPoolExecutor(ASSOCIATIONS_AT_MOST, thread_name_prefix=f"send-{name}")
        generators = self._generator.spawn(2)
        self._senders[name] = _Senders(executor, Lane(Breaker(generators[0]), generators[1]))
        return self._senders[name]

    def _collect(self, senders: _Senders) -> None:
        """Let go of the senders that have ended; what none of them foresaw is raised here."""
        with senders.lock:
            ended = {run for run in senders.running if run.done()}
            senders.running.difference_update(ended)
        for run in ended:
            run.result()

    def _set_going(self, senders: _Senders, destination: DestinationSettings) -> None:
        """Start one sender, and the others once the destination has taken something: a failure costs one attempt."""
        if self._stopping.is_set():
            return
        now, send = self._clock(), self._in_force[0].send
        with senders.lock:
            allowed = senders.lane.breaker.allows(now, destination.associations, send)
            free = (allowed if senders.lane.open else min(allowed, 1)) - len(senders.running)
            enough = WORTH_ONE * max(free, 0)
            due = count_due_rows(self._database, find_due(destination, send, now), enough) if enough else 0
            if not (due or senders.running):
                senders.lane.breaker.widen()
            for _ in range(math.ceil(due / WORTH_ONE)):
                senders.running.add(senders.executor.submit(self._deliver, senders, destination.peer))

    def _deliver(self, senders: _Senders, name: str) -> None:
        """Deliver until nothing is due, or the destination fails or is one no more."""
        try:
            while True:
                settings, caller = in_force = self._in_force
                destination = next((one for one in settings.destinations if one.peer == name), None)
                if destination is None or not senders.lane.breaker.allows(self._clock(), 1, settings.send):
                    return
                is_over = partial(self._is_over, in_force)
                delivery = Delivery(self._database, self._clock, settings, caller, destination, senders.lane, is_over)
                if not delivery.run(partial(self._set_going, senders, destination)):
                    return
        except DicomnodeError as error:  # the database: the leases run out, and a later step tries again
            log.warning("send.interrupted", destination=name, reason=str(error))

    def _is_over(self, in_force: tuple[Settings, Caller]) -> bool:
        return self._stopping.is_set() or self._in_force is not in_force
