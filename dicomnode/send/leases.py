"""Keeps what is claimed while it takes long.

Flow: send/delivery, send/reporting > [leases] > database/outbox, database/commitment_requests
Never: a thread: who makes no headway keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable

# What is left of a lease at any time must outlast all that is waited for between two calls.
EXTENDED_AFTER = 1 / 3


def make_keeper(
    extend: Callable[[float], object], clock: Callable[[], float], lease_s: float, claimed_at: float
) -> Callable[[], None]:
    """Return what is called again and again while claimed rows are worked on, and extends their leases now and then.

    Parameters
    ----------
    extend : callable
        Extends the leases until an instant, UTC epoch seconds.
    clock : callable
        The time, UTC epoch seconds.
    lease_s : float
        How long a row is held from each time on, s. More than two thirds of it are left after each call.
    claimed_at : float
        When the rows were claimed, UTC epoch seconds.
    """
    leased_at = claimed_at

    def keep() -> None:
        nonlocal leased_at
        now = clock()
        if abs(now - leased_at) > lease_s * EXTENDED_AFTER:  # a clock that is put back counts as well
            leased_at = now
            extend(now + lease_s)

    return keep
