"""Jobs run when they are due, once each, whatever the wall clock does meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import ClassVar, Self

import pytest

from dicomnode.scheduler import Every, SteadyScheduler
from tests.waiting import wait_until

HOUR_S = 3600.0
OFTEN_S = 0.02
WITHIN_S = 20.0
ROUNDS = 5


class WallClock(datetime):
    """The wall clock of this process and of APScheduler, as a test moves it."""

    moved_s: ClassVar[Callable[[], float]]

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Return the moment, moved."""
        return super().now(tz) + timedelta(seconds=cls.moved_s())


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[SteadyScheduler]:
    monkeypatch.setattr(WallClock, "moved_s", staticmethod(lambda: 0.0), raising=False)
    for module in ("apscheduler.schedulers.base", "apscheduler.executors.base", "dicomnode.scheduler", __name__):
        monkeypatch.setattr(f"{module}.datetime", WallClock)
    opened = SteadyScheduler()
    opened.start()
    yield opened
    opened.shutdown()


def add_counter(scheduler: SteadyScheduler, every_s: float) -> list[int]:
    """Add a job that is due now; the list grows with each run."""
    runs: list[int] = []
    scheduler.add_job(lambda: runs.append(1), Every(every_s), next_run_time=datetime.now(UTC))
    return runs


def wait_for_more(runs: list[int], what: str) -> None:
    seen = len(runs)
    wait_until(lambda: len(runs) >= seen + ROUNDS, WITHIN_S, what)


@pytest.mark.parametrize(
    "moved_s",
    [
        pytest.param(lambda _: -HOUR_S, id="put back"),
        pytest.param(lambda _: HOUR_S, id="put forward"),
        pytest.param(lambda ran_s: -ran_s, id="stands still"),
        pytest.param(lambda ran_s: -3 * ran_s, id="runs backwards"),
    ],
)
def test_a_job_goes_on_under_any_wall_clock(
    scheduler: SteadyScheduler, monkeypatch: pytest.MonkeyPatch, moved_s: Callable[[float], float]
) -> None:
    runs = add_counter(scheduler, OFTEN_S)
    wait_for_more(runs, "the job runs")
    moved_at = time.monotonic()
    monkeypatch.setattr(WallClock, "moved_s", staticmethod(lambda: moved_s(time.monotonic() - moved_at)))
    wait_for_more(runs, "the job runs on")


def test_what_is_rare_runs_once_after_a_machine_was_suspended(
    scheduler: SteadyScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    often, hourly = add_counter(scheduler, OFTEN_S), add_counter(scheduler, HOUR_S)
    wait_until(lambda: hourly, WITHIN_S, "it runs at the start")
    monkeypatch.setattr(WallClock, "moved_s", staticmethod(lambda: 1000 * HOUR_S))
    wait_until(lambda: len(hourly) > 1, WITHIN_S, "it runs when the machine is awake again")
    wait_for_more(often, "the clock goes on")
    assert len(hourly) == 2


def test_what_is_rare_does_not_run_again_when_the_clock_is_put_back(
    scheduler: SteadyScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    often, hourly = add_counter(scheduler, OFTEN_S), add_counter(scheduler, HOUR_S)
    wait_until(lambda: hourly, WITHIN_S, "it runs at the start")
    monkeypatch.setattr(WallClock, "moved_s", staticmethod(lambda: -1000 * HOUR_S))
    wait_for_more(often, "the clock goes on")
    assert len(hourly) == 1


def test_a_job_that_takes_long_is_not_run_twice_at_once(scheduler: SteadyScheduler) -> None:
    begun: list[int] = []
    may_end = threading.Event()

    def take_long() -> None:
        begun.append(1)
        may_end.wait(WITHIN_S)

    scheduler.add_job(take_long, Every(OFTEN_S), next_run_time=datetime.now(UTC))
    try:
        wait_for_more(add_counter(scheduler, OFTEN_S), "others run")
        assert len(begun) == 1
    finally:
        may_end.set()
    wait_until(lambda: len(begun) > 1, WITHIN_S, "it runs again")


def test_the_first_run_is_an_interval_away_where_nothing_else_is_said(scheduler: SteadyScheduler) -> None:
    runs: list[int] = []
    scheduler.add_job(lambda: runs.append(1), Every(HOUR_S))
    wait_for_more(add_counter(scheduler, OFTEN_S), "others run")
    assert runs == []


def test_a_time_that_was_missed_is_not_made_up_for() -> None:
    begun = datetime(1970, 1, 1, tzinfo=UTC)  # as a machine may that has no battery
    now = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    assert Every(1.0).get_next_fire_time(begun, now) == now + timedelta(seconds=1)
