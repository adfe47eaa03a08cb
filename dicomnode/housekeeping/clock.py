"""Tells whether the wall clock can be believed: it may be put forward by years, and nothing is old because of that.

Flow: housekeeping/retention > [clock]
Never: a clock of its own; a rule about what goes.
"""

from __future__ import annotations

from dataclasses import dataclass

STEADY_WITHIN_S = 300.0  # what a clock is put right by, or a machine stands still for, without a word
AWAY_AT_MOST_S = 86400.0  # of a process that starts: longer, and the clock may as well have been put forward


@dataclass(frozen=True)
class Moment:
    """The wall clock, UTC epoch seconds, and one that nobody puts back or forward, s."""

    wall: float
    monotonic: float


def find_move_s(now: Moment, before: Moment | None, last_seen: float | None) -> float | None:
    """Return by how much the wall clock seems to have been put forward, or back; None where it runs as it should.

    Parameters
    ----------
    now : Moment
    before : Moment or None
        The last look of this process; None for its first.
    last_seen : float or None
        What the wall clock showed at the last look of any process on this database; None where there was none.
    """
    if before is not None:
        moved = (now.wall - before.wall) - (now.monotonic - before.monotonic)
        return moved if abs(moved) > STEADY_WITHIN_S else None
    if last_seen is None:
        return 0.0
    away = now.wall - last_seen
    return away if not -STEADY_WITHIN_S <= away <= AWAY_AT_MOST_S else None
