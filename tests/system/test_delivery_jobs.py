"""Jobs survive their worker: real worker processes that are killed, hang, or lose their parent.

A job hangs here as it does in the world: a file of its series that never answers, which a named pipe is.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from dicomnode.database.engine import Database, open_database
from dicomnode.database.jobs import Job, fetch_job
from dicomnode.database.pairs import fetch_pair
from dicomnode.database.series import fetch_instance_paths
from dicomnode.database.store import Store
from dicomnode.jobs.limits import read_resident_bytes
from dicomnode.jobs.service import START_AGAIN_S, JobService
from dicomnode.pairing.decisions import give_up_job
from dicomnode.settings import JobSettings, NodeSettings, RegistrationSettings, Settings
from tests.databases import make_sqlite
from tests.rows import add_waiting_job
from tests.waiting import wait_until

START_TIMEOUT_S = 60.0
NO_MORE_FILES = 3  # than standard input, output and error: what is open stays, and whatever closes makes no room


def _settings(root: Path, **jobs: float) -> Settings:
    values = {"workers": 1, "attempts": 3, "retry_first_s": 3600.0, "deadline_s": 900.0, **jobs}
    return Settings(
        node=NodeSettings(storage_root=root),
        jobs=JobSettings.model_validate(values),
        registration=RegistrationSettings(device="cpu"),
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    settings = _settings(tmp_path)
    Store(tmp_path).make_folders()
    make_sqlite(settings.database_url)
    opened = open_database(settings.database_url)
    yield opened
    opened.close()


@pytest.fixture
def start(tmp_path: Path, database: Database) -> Iterator[Callable[..., JobService]]:
    """Give a function that starts a service, which is stopped with the test."""
    started: list[JobService] = []

    def start_service(**jobs: float) -> JobService:
        service = JobService(_settings(tmp_path, **jobs), database, time.time)
        service.start()
        started.append(service)
        return service

    yield start_service
    for service in started:
        service.stop(0.0)


def _add_hanging_job(database: Database, root: Path) -> int:
    job_id = add_waiting_job(database)
    with database.read() as connection:
        pair = fetch_pair(connection, fetch_job(connection, job_id).pair_id)
        path = fetch_instance_paths(connection, Store(root), pair.fixed_series_id)[0]
    os.mkfifo(path)
    return job_id


def _job(database: Database, job_id: int) -> Job:
    with database.read() as connection:
        return fetch_job(connection, job_id)


def _step_until(service: JobService, condition: Callable[[], bool], what: str) -> None:
    def stepped() -> bool:
        service.step()
        return condition()

    wait_until(stepped, START_TIMEOUT_S, what)


def _run_until_it_hangs(service: JobService, database: Database, job_id: int) -> None:
    _step_until(service, lambda: _job(database, job_id).stage == "load", "the job reads its series")


def _workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def test_a_job_that_cannot_read_its_files_is_tried_again_and_then_fails(
    start: Callable[..., JobService], database: Database
) -> None:
    job_id = add_waiting_job(database)  # rows without files

    service = start(attempts=2, retry_first_s=0.1)
    _step_until(service, lambda: _job(database, job_id).state == "failed", "the attempts are used up")

    job = _job(database, job_id)
    assert job.attempts == 2
    assert job.reason.endswith("attempt 2 of 2 was the last")


def test_a_killed_worker_costs_an_attempt_and_no_job(
    start: Callable[..., JobService], database: Database, tmp_path: Path
) -> None:
    job_id = _add_hanging_job(database, tmp_path)
    service = start()
    _run_until_it_hangs(service, database, job_id)

    [worker] = _workers()
    os.kill(worker, signal.SIGKILL)
    _step_until(service, lambda: _job(database, job_id).state == "retry", "the death is noticed")

    assert (_job(database, job_id).reason, _job(database, job_id).attempts) == ("its worker process died", 1)
    assert worker not in _workers()


def test_a_job_that_hangs_is_ended_at_its_deadline_and_holds_up_no_other(database: Database, tmp_path: Path) -> None:
    later_s = 0.0
    service = JobService(_settings(tmp_path, workers=2), database, time.time, lambda: time.monotonic() + later_s)
    service.start()
    hanging = _add_hanging_job(database, tmp_path)
    _run_until_it_hangs(service, database, hanging)
    other = add_waiting_job(database)

    _step_until(service, lambda: _job(database, other).state == "retry", "the other job ends")
    assert _job(database, hanging).state == "running"
    later_s = 901.0
    service.step()
    service.stop(0.0)

    assert _job(database, hanging).reason == "it ran for more than 900 s and was ended"
    assert "was ended" not in _job(database, other).reason


def test_what_runs_when_the_node_stops_goes_back_to_waiting(
    start: Callable[..., JobService], database: Database, tmp_path: Path
) -> None:
    job_id = _add_hanging_job(database, tmp_path)
    service = start()
    _run_until_it_hangs(service, database, job_id)
    workers = _workers()

    service.stop(0.2)

    assert (_job(database, job_id).state, _job(database, job_id).attempts) == ("waiting", 0)
    wait_until(lambda: not any(map(psutil.pid_exists, workers)), START_TIMEOUT_S, "the workers end")


def test_a_node_stops_with_all_its_workers_though_the_database_is_away(database: Database, tmp_path: Path) -> None:
    jobs = [_add_hanging_job(database, tmp_path) for _ in range(2)]
    service = JobService(_settings(tmp_path, workers=2), database, time.time)
    service.start()
    for job_id in jobs:
        _run_until_it_hangs(service, database, job_id)
    workers = _workers()
    database.close()
    for path in tmp_path.glob("*.sqlite*"):
        path.write_bytes(b"no database any more" * 1000)

    with capture_logs() as logged:
        service.stop(0.0)

    assert {entry["job_id"] for entry in logged if entry["event"] == "job.not_given_back"} == set(jobs)
    wait_until(lambda: not any(map(psutil.pid_exists, workers)), START_TIMEOUT_S, "the workers end")


def test_a_worker_that_died_idle_is_replaced_for_the_next_job(
    start: Callable[..., JobService], database: Database
) -> None:
    service = start()
    wait_until(lambda: len(_workers()) == 1, START_TIMEOUT_S)
    [idle] = _workers()
    os.kill(idle, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(idle) or _workers() == [], START_TIMEOUT_S)
    job_id = add_waiting_job(database)

    _step_until(service, lambda: _job(database, job_id).state == "retry", "the job ran")

    assert "worker" not in _job(database, job_id).reason


@pytest.mark.parametrize("cause", ["it dies at once", "there is no room for it"])
def test_a_worker_that_cannot_start_costs_no_job_an_attempt(database: Database, tmp_path: Path, cause: str) -> None:
    later_s = 0.0
    service = JobService(_settings(tmp_path), database, time.time, lambda: time.monotonic() + later_s)
    files, program = resource.getrlimit(resource.RLIMIT_NOFILE), spawn.get_executable()
    try:
        service.start()
        wait_until(lambda: len(_workers()) == 1, START_TIMEOUT_S)
        job_id = add_waiting_job(database)
        service.step()  # the database is open
        if cause == "it dies at once":
            spawn.set_executable("/bin/false")
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (NO_MORE_FILES, files[1]))
        for worker in _workers():
            os.kill(worker, signal.SIGKILL)
        for _ in range(4):
            later_s += START_AGAIN_S
            wait_until(lambda: not _workers(), START_TIMEOUT_S, "the new process ends too")
            service.step()
        spawn.set_executable(program)
        resource.setrlimit(resource.RLIMIT_NOFILE, files)

        assert (_job(database, job_id).state, _job(database, job_id).attempts) == ("waiting", 0)
        later_s += START_AGAIN_S
        _step_until(service, lambda: _job(database, job_id).state == "retry", "the job is run")
        assert "worker" not in _job(database, job_id).reason
    finally:
        spawn.set_executable(program)
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        service.stop(0.0)


def test_a_lease_that_ran_out_elsewhere_gives_the_job_back(
    start: Callable[..., JobService], database: Database, tmp_path: Path
) -> None:
    job_id = _add_hanging_job(database, tmp_path)
    dead = start(lease_s=5.0)
    _run_until_it_hangs(dead, database, job_id)  # and is never stepped again, as if its node had been killed

    other = JobService(_settings(tmp_path), database, lambda: time.time() + 6.0)
    other.step()
    other.stop(0.0)

    assert _job(database, job_id).state == "retry"
    assert _job(database, job_id).reason.startswith("its worker gave no sign")


def test_a_lease_is_extended_while_the_job_runs(
    start: Callable[..., JobService], database: Database, tmp_path: Path
) -> None:
    job_id = _add_hanging_job(database, tmp_path)
    service = start(lease_s=5.0)
    _run_until_it_hangs(service, database, job_id)
    first = _job(database, job_id).lease_until

    _step_until(service, lambda: _job(database, job_id).lease_until != first, "the lease is extended")

    assert _job(database, job_id).state == "running"


def test_a_job_that_a_person_cancels_is_left_by_its_worker_for_the_next(
    start: Callable[..., JobService], database: Database, tmp_path: Path
) -> None:
    job_id = _add_hanging_job(database, tmp_path)
    service = start(attempts=1, lease_s=600.0)  # nobody waits for a lease
    _run_until_it_hangs(service, database, job_id)
    (worker,) = _workers()
    next_id = add_waiting_job(database)  # rows without files

    give_up_job(database, job_id, time.time())
    _step_until(service, lambda: _job(database, next_id).state == "failed", "the next job is run")

    assert not psutil.pid_exists(worker)
    assert (_job(database, job_id).state, _job(database, job_id).reason) == ("failed", "cancelled by a person")


def test_a_worker_ends_with_its_parent(database: Database, tmp_path: Path) -> None:
    _add_hanging_job(database, tmp_path)
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, sys, time\n"
        "from pathlib import Path\n"
        "from dicomnode.database.engine import open_database\n"
        "from dicomnode.jobs.service import JobService\n"
        "from dicomnode.settings import NodeSettings, Settings\n"
        "if __name__ == '__main__':\n"
        "    settings = Settings(node=NodeSettings(storage_root=Path(sys.argv[1])))\n"
        "    service = JobService(settings, open_database(settings.database_url), time.time)\n"
        "    service.start()\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    sys.stdin.read()\n",
        encoding="utf-8",
    )
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert psutil.pid_exists(worker)

    parent.kill()
    parent.communicate()

    wait_until(lambda: not psutil.pid_exists(worker), START_TIMEOUT_S, "the worker ends")


def test_a_worker_that_holds_too_much_memory_is_ended_and_its_job_tried_again(
    start: Callable[..., JobService], database: Database, tmp_path: Path
) -> None:
    job_id = _add_hanging_job(database, tmp_path)
    service = start()
    _run_until_it_hangs(service, database, job_id)
    [worker] = _workers()
    settings = _settings(tmp_path)
    less_than_it_holds = settings.jobs.model_copy(update={"memory_bytes": 1_000_000})

    service.reload(settings.model_copy(update={"jobs": less_than_it_holds}))
    service.step()

    job = _job(database, job_id)
    assert job.state == "retry"
    assert "may hold 1000000 and was ended" in job.reason
    wait_until(lambda: worker not in _workers(), START_TIMEOUT_S, "the worker ends")


def test_a_worker_is_replaced_after_its_share_of_jobs(start: Callable[..., JobService], database: Database) -> None:
    service = start(recycle_after=2)
    processes = []
    for _ in range(3):
        job_id = add_waiting_job(database)  # rows without files
        service.step()
        processes += _workers()
        _step_until(service, lambda job=job_id: _job(database, job).state == "retry", "it ends")  # type: ignore[misc]  # lambda

    assert processes[0] == processes[1] != processes[2]


def test_a_worker_may_open_so_many_files_and_is_the_first_to_go_when_memory_runs_out(
    start: Callable[..., JobService], database: Database, tmp_path: Path
) -> None:
    job_id = _add_hanging_job(database, tmp_path)
    _run_until_it_hangs(start(open_files=200), database, job_id)

    [worker] = _workers()
    assert psutil.Process(worker).rlimit(psutil.RLIMIT_NOFILE)[0] == 200
    assert int(Path(f"/proc/{worker}/oom_score_adj").read_text(encoding="ascii")) > 0
    assert read_resident_bytes(worker) > 50e6
    assert read_resident_bytes(0) == 0
