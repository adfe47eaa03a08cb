"""A transient failure is tried again until the attempts are used up; anything else fails at once."""

from __future__ import annotations

import pytest

from dicomnode.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    PermanentError,
    RegistrationRefusedError,
    SeriesRefusedError,
    StorageFullError,
    TransientError,
    WorkerLostError,
)
from dicomnode.jobs.retry import decide_after_failure
from dicomnode.settings import JobSettings

SETTINGS = JobSettings(attempts=4, retry_first_s=10.0)


@pytest.mark.parametrize("error", [WorkerLostError, StorageFullError, DatabaseUnavailableError, TransientError])
@pytest.mark.parametrize(("attempts", "wait_s"), [(1, 10.0), (2, 20.0), (3, 40.0)])
def test_a_transient_failure_waits_twice_as_long_each_time(
    error: type[TransientError], attempts: int, wait_s: float
) -> None:
    after = decide_after_failure(error("no room"), attempts, 1000.0, SETTINGS)

    assert (after.state, after.reason, after.not_before) == ("retry", "no room", 1000.0 + wait_s)


def test_the_last_attempt_fails_and_says_so() -> None:
    after = decide_after_failure(WorkerLostError("its worker process died"), 4, 1000.0, SETTINGS)

    assert (after.state, after.reason) == ("failed", "its worker process died; attempt 4 of 4 was the last")


@pytest.mark.parametrize("error", [SeriesRefusedError, RegistrationRefusedError, ConfigurationError, PermanentError])
def test_a_permanent_failure_is_not_tried_again(error: type[PermanentError]) -> None:
    after = decide_after_failure(error("slice gap 6.2 mm at k=41, 3.0 mm expected"), 1, 1000.0, SETTINGS)

    assert (after.state, after.reason) == ("failed", "slice gap 6.2 mm at k=41, 3.0 mm expected")


def test_memory_that_ran_out_may_be_there_next_time() -> None:
    after = decide_after_failure(MemoryError("Doe^Jane"), 1, 1000.0, SETTINGS)

    assert (after.state, after.reason) == ("retry", "it ran out of memory")


def test_an_unforeseen_error_fails_without_its_words() -> None:
    after = decide_after_failure(KeyError("Doe^Jane"), 1, 1000.0, SETTINGS)

    assert (after.state, after.reason) == ("failed", "unforeseen KeyError, the log has it")


def test_the_wait_stays_finite_after_many_attempts() -> None:
    settings = JobSettings(attempts=10_000, retry_first_s=10.0)

    assert decide_after_failure(TransientError("x"), 9_999, 0.0, settings).not_before < 1e6
