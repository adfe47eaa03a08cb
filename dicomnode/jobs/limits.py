"""What a worker process may take of the machine: memory, open files, and who is ended first when memory runs out.

Flow: jobs/worker sets, jobs/service watches > [limits] > the kernel
Never: a limit on address space: CUDA and ONNX Runtime reserve far more of it than they use.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

# Of -1000 to 1000 (proc_pid_oom_score_adj(5)): the kernel ends a worker before the node, which only costs an attempt.
WORKER_FIRST = 500


def limit_this_process(open_files: int) -> None:
    """Let this process open no more files than `open_files`, and be the first to go when the machine has no memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = open_files if hard == resource.RLIM_INFINITY else min(open_files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    with contextlib.suppress(OSError):  # where /proc may not be written, the kernel chooses by size alone
        Path("/proc/self/oom_score_adj").write_text(str(WORKER_FIRST), encoding="ascii")


def read_resident_bytes(process_id: int) -> int:
    """Return the memory that a process holds, bytes; 0 when it has ended, or where the kernel does not tell."""
    try:
        resident_pages = int(Path(f"/proc/{process_id}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return resident_pages * os.sysconf("SC_PAGE_SIZE")
