"""A real PostgreSQL for tests, from Debian's programs, in a folder of its own.

Flow: tests > [postgresql] > initdb, postgres
Never: the system's cluster, a TCP port, a process left behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from tests.conftest import find_peer_program

USER = "postgres"  # PostgreSQL refuses to run as root
# Contracts judge what is stored, not what survives power loss: no fsync, so that a test takes milliseconds.
OPTIONS = "-c listen_addresses='' -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=50"


class PostgreSQL:
    """A cluster that runs inside the `with` block and is reached over a socket in its folder."""

    def __enter__(self) -> Self:
        self._prefix = ["setpriv", f"--reuid={USER}", "--regid", USER, "--clear-groups"] if os.geteuid() == 0 else []
        self._pg_ctl, initdb = find_peer_program("pg_ctl"), find_peer_program("initdb")
        self.folder = Path(tempfile.mkdtemp(prefix="dicomnode-pg-"))  # a socket's path is at most 107 bytes
        if self._prefix:
            shutil.chown(self.folder, USER)
        self._run(initdb, "-D", self.folder / "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        self._run(
            self._pg_ctl, "-D", self.folder / "data", "-l", self.folder / "log", "-w", "-o", self._options, "start"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run(self._pg_ctl, "-D", self.folder / "data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder)

    @property
    def _options(self) -> str:
        return f"{OPTIONS} -k {self.folder}"

    def make_database(self) -> str:
        """Create an empty database and return its SQLAlchemy URL."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(host=str(self.folder), user=USER, dbname="postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql+psycopg://{USER}@/{name}?host={self.folder}"

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            [*self._prefix, *map(str, command)], cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")
