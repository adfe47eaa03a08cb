"""One thread for each peer or channel: one that is slow holds up none of the others.

Flow: send/queries, send/commitments, send/notices, send/audit > [threads]
Never: two pieces of work of one name at once; a fault of ours that nobody hears of.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from dicomnode.logs import get_logger

log = get_logger()


class Threads:
    """The threads of one service, by name; `service` begins the names of the threads and of the event of a fault."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._threads: dict[str, tuple[ThreadPoolExecutor, Future[None]]] = {}

    def set_going(self, name: str, work: Callable[[], None]) -> None:
        """Let the thread of this name do some work, unless it is still at some."""
        known = self._threads.get(name)
        if known is not None and not known[1].done():
            return
        executor = known[0] if known else ThreadPoolExecutor(1, thread_name_prefix=f"{self._service}-{name}")
        running = executor.submit(work)
        running.add_done_callback(self._log_fault)
        self._threads[name] = (executor, running)

    def is_idle(self) -> bool:
        """Say whether none is at work."""
        return all(running.done() for _, running in tuple(self._threads.values()))

    def wait(self, deadline_s: float) -> None:
        """Wait until all have done what they are at, for `deadline_s` seconds at most."""
        wait([running for _, running in self._threads.values()], timeout=deadline_s)

    def close(self, *, waits: bool) -> None:
        """Take no more work; with `waits` only return when all have ended."""
        for executor, _ in self._threads.values():
            executor.shutdown(wait=waits, cancel_futures=not waits)
        self._threads = {}

    def _log_fault(self, running: Future[None]) -> None:
        """Say that work ended by a fault of ours; what it had claimed is taken up again when the lease is over."""
        if not running.cancelled() and (error := running.exception()) is not None:
            log.error(f"{self._service}.interrupted", reason=type(error).__name__)
