"""Decides what becomes of a job whose attempt failed: tried again later, or given up.

Flow: jobs/worker, jobs/service > [retry] > database/jobs
Never: a clock, a database: the rule is a function of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dicomnode.errors import DicomnodeError, TransientError, WorkerLostError
from dicomnode.settings import JobSettings

DOUBLINGS_AT_MOST = 16


@dataclass(frozen=True)
class AfterFailure:
    """The state a job moves to; `not_before` in UTC epoch seconds says when it may be tried again."""

    state: Literal["retry", "failed"]
    reason: str
    not_before: float


def decide_after_failure(error: Exception, attempts: int, now: float, settings: JobSettings) -> AfterFailure:
    """Choose between another attempt and failure.

    A `TransientError` is tried again after `retry_first_s`, doubled with each attempt, until `attempts` are used up;
    anything else fails again with the same input, an error nobody foresaw included.

    Parameters
    ----------
    error : Exception
        What the attempt ended with.
    attempts : int
        Used so far, this one included.
    now : float
        UTC epoch seconds.
    settings : JobSettings
        How many attempts there are, and the first wait, s.
    """
    if isinstance(error, MemoryError):
        error = WorkerLostError("it ran out of memory")
    if not isinstance(error, DicomnodeError):  # its message is not ours: it may hold what a reason must not
        return AfterFailure("failed", f"unforeseen {type(error).__name__}, the log has it", now)
    reason = str(error)
    if not isinstance(error, TransientError):
        return AfterFailure("failed", reason, now)
    if attempts >= settings.attempts:
        return AfterFailure("failed", f"{reason}; attempt {attempts} of {settings.attempts} was the last", now)
    return AfterFailure("retry", reason, now + _wait_s(attempts, settings))


def find_longest_wait_s(settings: JobSettings) -> float:
    """Return the longest wait between two attempts that there can be, s."""
    return _wait_s(settings.attempts, settings)


def _wait_s(attempts: int, settings: JobSettings) -> float:
    return settings.retry_first_s * 2.0 ** min(attempts - 1, DOUBLINGS_AT_MOST)
