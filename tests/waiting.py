"""Waiting for a condition with a deadline, the only way a test waits.

Flow: tests > [waiting]
Never: a fixed sleep in a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_S = 0.02


def wait_until(
    condition: Callable[[], object], timeout_s: float, what: str = "the condition", poll_s: float = POLL_S
) -> None:
    """Return once `condition()` is true; fail the test when it is not within `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        time.sleep(poll_s)
