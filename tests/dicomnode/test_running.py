"""Which processes serve a storage root, judged by the lock they hold and not by a number in a file.

Flow: running > [test_running]
Never: a signal to a process the test did not start.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicomnode.errors import StorageFailedError
from dicomnode.running import announce_node, ask_to_reload, find_running_nodes

NODE = """
import signal, sys, time
from pathlib import Path
from dicomnode.running import announce_node
signal.signal(signal.SIGHUP, lambda *_: print("reloaded", flush=True))
with announce_node(Path(sys.argv[1])):
    print("running", flush=True)
    sys.stdin.read()
"""


@contextmanager
def run_node(root: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", NODE, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            yield process
        finally:
            process.kill()


def test_nobody_runs_on_a_new_root(tmp_path: Path) -> None:
    assert find_running_nodes(tmp_path) == []
    assert ask_to_reload(tmp_path) == []


def test_two_processes_on_one_root_are_both_told(tmp_path: Path) -> None:
    with run_node(tmp_path) as one, run_node(tmp_path) as two:
        assert sorted(find_running_nodes(tmp_path)) == sorted([one.pid, two.pid])
        assert sorted(ask_to_reload(tmp_path)) == sorted([one.pid, two.pid])
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == "reloaded\n"


def test_a_killed_process_does_not_count_although_its_file_is_there(tmp_path: Path) -> None:
    with run_node(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list((tmp_path / "run").iterdir())) == 1
        assert find_running_nodes(tmp_path) == []


def test_a_number_in_a_name_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{os.getpid()}@{socket.gethostname()}.pid").touch()
    assert find_running_nodes(tmp_path) == []


def test_an_end_removes_the_file(tmp_path: Path) -> None:
    with announce_node(tmp_path) as path:
        assert path.is_file()
        assert find_running_nodes(tmp_path) == [os.getpid()]
    assert list((tmp_path / "run").iterdir()) == []


def test_that_none_runs_is_not_said_of_a_root_that_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(StorageFailedError, match="File name too long; run this as the node's user"):
        find_running_nodes(tmp_path / ("a" * 300))  # even root may not look there


def test_a_root_that_cannot_be_written_is_named() -> None:
    with pytest.raises(StorageFailedError, match="the storage root must be writable"), announce_node(Path("/proc")):
        pass
