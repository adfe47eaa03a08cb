"""A node that is started and killed many times, and senders that remember what it answered with Success.

Flow: tests.system > [crashing_node] > tests.system.forked_node, tests.raw_association
Never: a wait without an end; an instance counted as acknowledged whose answer did not come whole.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

from pydicom.uid import ExplicitVRLittleEndian

from tests.builders import NODE_AE
from tests.peers_programs import data_set_bytes
from tests.raw_association import (
    A_RELEASE_RQ,
    COMMAND,
    P_DATA,
    RawAssociation,
    associate_request,
    fragments,
    pdu,
    store_command,
)
from tests.receiving import MR, ROOT, encode, make_data_set
from tests.waiting import wait_until

START_S = 60.0
IS_SUCCESS = b"\0\0\0\x09\x02\0\0\0\0\0"  # (0000,0900) is 0000
PDU_BYTES = 16384


class CrashingNode:
    """A node that `start` starts anew, and `kill` ends as power would."""

    def __init__(self, config: Path, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.forked_node", str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(START_S)
        self.process.stdout.close()

    def start(self) -> None:
        """Return when the port is open, what the last one left is put in order."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer.isdigit(), f"the node did not start: {answer}"
        self.pid = int(answer)

    def kill(self) -> None:
        """End the node at once."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        self.pid = 0


class Senders:
    """Associations that each send their share of a run of instances, until they are done or the node is gone."""

    def __init__(self, port: int, shares: Iterable[range], size: int) -> None:
        self.sent: dict[str, bytes] = {}
        self.acknowledged: set[str] = set()
        self._port, self._size = port, size
        self._threads = [threading.Thread(target=self._send, args=(share,)) for share in shares]
        for thread in self._threads:
            thread.start()

    def wait_for(self, count: int) -> None:
        """Return when so many instances were answered with Success, or all senders have ended."""
        wait_until(
            lambda: len(self.acknowledged) >= count or not any(thread.is_alive() for thread in self._threads), START_S
        )

    def join(self) -> None:
        """Wait for the senders' end."""
        for thread in self._threads:
            thread.join(START_S)

    def _send(self, share: range) -> None:
        try:
            with RawAssociation(self._port) as raw:
                raw.send(associate_request("SCANNER", NODE_AE, [(MR, (ExplicitVRLittleEndian,))], PDU_BYTES))
                if raw.read() is None:
                    return
                for number in share:
                    data = encode(make_data_set(number, size=self._size))
                    uid = f"{ROOT}.3.{number}"
                    self.sent[uid] = data
                    command = store_command(MR, uid)
                    for pdv in [*fragments(1, COMMAND, command, PDU_BYTES), *fragments(1, 0, data, PDU_BYTES)]:
                        raw.send(pdu(P_DATA, pdv))
                    answer = raw.read()
                    if answer is None:
                        return
                    assert IS_SUCCESS in answer, answer
                    self.acknowledged.add(uid)
                raw.send(A_RELEASE_RQ)
                raw.read()
        except OSError:  # the node was killed
            return


def fetch_rows(root: Path) -> dict[str, str]:
    """Return SOP Instance UID -> file name of every indexed instance."""
    with closing(sqlite3.connect(root / "dicomnode.sqlite")) as connection:
        return dict(connection.execute("SELECT sop_instance_uid, file_name FROM instances"))


def find_broken(root: Path, sent: Mapping[str, bytes], acknowledged: Iterable[str]) -> list[str]:
    """Say what is wrong with rows and files of a node that has just started; nothing when they are in step."""
    rows = fetch_rows(root)
    stored = {path.name: path for path in (root / "store").rglob("*.dcm")}
    problems = [f"{uid} was acknowledged, and has no row" for uid in acknowledged if uid not in rows]
    problems += [f"{name} has no row" for name in stored.keys() - set(rows.values())]
    problems += [f"{uid} has no file" for uid, name in rows.items() if name not in stored]
    problems += [
        f"{uid} is not what was sent"
        for uid, name in rows.items()
        if name in stored and data_set_bytes(stored[name].read_bytes()) != sent[uid]
    ]
    spooled = [path for path in (root / "spool").rglob("*") if path.is_file() and path.stat().st_size]
    return problems + [f"{path.name} is left in the spool" for path in spooled]
