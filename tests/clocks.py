"""A clock that a test moves.

Flow: tests > [clocks]
Never: the time of day.
"""

from __future__ import annotations


class Clock:
    """A clock that stands still until its `now`, in UTC epoch seconds, is set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
