"""What runs in a worker process: one job at a time, with a warm network, until its parent ends.

Flow: jobs/service > [worker] > jobs/pipeline > database/jobs
Never: a job that dies in silence: the one broad `except` here records what became of it; a worker that outlives the
node; `pipeline` at the top, for the receiving process imports this module and needs neither OpenCV nor ONNX Runtime.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from functools import lru_cache

from dicomnode import logs
from dicomnode.database.engine import Database, open_database
from dicomnode.database.jobs import Job
from dicomnode.errors import LeaseLostError
from dicomnode.jobs.failure import record_failure
from dicomnode.jobs.limits import limit_this_process
from dicomnode.settings import RegistrationSettings, Settings

log = logs.get_logger()


def start_worker(settings: Settings) -> None:
    """Make this process a worker: it ends with its parent, and leaves the signals that stop the node to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.configure(settings.node.log_format)
    limit_this_process(settings.jobs.open_files)
    parent = multiprocessing.parent_process()
    if parent is not None:
        watch = threading.Thread(target=_end_with, args=(parent,), name="end-with-parent", daemon=True)
        watch.start()


def warm_up(settings: RegistrationSettings) -> None:
    """Load the network before the first job needs it; raises `ConfigurationError` if it cannot be used."""
    from dicomnode.jobs.pipeline import load_network  # noqa: PLC0415  see the module's `Never`

    load_network(settings)


def work_on(job: Job, settings: Settings) -> None:
    """Run a claimed job; whatever happens, its row says so, unless it is another worker's by now.

    Raises
    ------
    DatabaseUnavailableError
        If the end could not be recorded: the lease runs out and the job is tried again.
    """
    database = _open_database(settings.database_url)
    try:
        from dicomnode.jobs.pipeline import run_job  # noqa: PLC0415  see the module's `Never`

        run_job(job, settings, database, time.time)
    except LeaseLostError:
        log.warning("job.lost", job_id=job.id)
    except Exception as error:  # the worker's boundary
        log.warning("job.attempt_failed", job_id=job.id, attempt=job.attempts, exc_info=True)
        record_failure(database, job, error, settings.jobs, time.time())


@lru_cache(maxsize=1)
def _open_database(url: str) -> Database:
    return open_database(url)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """Wait for the parent's end, also by SIGKILL, and end at once: nobody waits for the result."""
    parent.join()
    os._exit(1)
