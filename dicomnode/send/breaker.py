"""How a destination does, and so how many associations it may be asked for now.

Flow: send/service, send/delivery > [breaker] > send/retry
Never: a clock, a socket; a failure counted twice because several associations met it.
"""

from __future__ import annotations

import threading

from numpy.random import Generator

from dicomnode.send.retry import draw_wait_s
from dicomnode.settings import SendSettings


class Breaker:
    """The state of one destination, shared by its threads: closed, open until an instant, or half open.

    Closed, every association is allowed. A failure opens it: none is, until the wait is over. Then one association
    shows whether the destination is back; its first success closes it, its failure opens it for longer.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._lock = threading.Lock()
        self._failures = 0
        self._not_before = 0.0  # UTC epoch seconds
        self._width: int | None = None  # as many associations as the destination took, where it took fewer

    @property
    def failures(self) -> int:
        """How often it failed in a row."""
        return self._failures

    def allows(self, now: float, associations: int, settings: SendSettings) -> int:
        """Return how many associations there may be, at most `associations`."""
        with self._lock:
            # A wait that is longer than the longest was set by a clock that has been put back.
            if now < self._not_before <= now + settings.retry_ceiling_s:
                return 0
            return 1 if self._failures else min(associations, self._width or associations)

    def fail(self, now: float, seen: int, settings: SendSettings) -> float:
        """Count a failure met by who has `seen` so many before, and return when to try again (UTC epoch seconds)."""
        with self._lock:
            if seen == self._failures:  # else another association of the same time has met it
                self._failures += 1
                self._not_before = now + draw_wait_s(self._failures, settings, self._generator)
            return self._not_before

    def succeed(self) -> None:
        """Close it: the destination took an instance."""
        with self._lock:
            self._failures = 0

    def narrow(self, associations: int) -> None:
        """Ask for no more associations than it took, until `widen`."""
        with self._lock:
            self._width = associations

    def widen(self) -> None:
        """Ask for as many as are set again."""
        with self._lock:
            self._width = None

    def forget(self) -> None:
        """Start anew: a destination that was down may have moved."""
        with self._lock:
            self._failures, self._not_before, self._width = 0, 0.0, None
