"""Runs the command in this process, with a configuration and a database of the test's own.

Flow: cli > [conftest] > tests
Never: the log set-up or the environment of one test in the next.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from dicomnode.cli import main
from dicomnode.database.engine import Database, open_database
from tests.databases import make_sqlite


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, parsed."""
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DICOMNODE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Give a function that runs `dicomnode` with arguments."""
    handlers, level = logging.root.handlers[:], logging.root.level
    configure = structlog.configure

    def configure_for_now(**options: Any) -> None:  # a logger that is cached would keep this set-up for ever
        configure(**{**options, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", configure_for_now)

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    yield call
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Give a configuration file whose storage root is the test's."""
    path = tmp_path / "n.toml"
    path.write_text(f'[node]\nstorage_root = "{tmp_path / "storage"}"\nport = 11112 # ours\n', encoding="utf-8")
    return path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Give the database of that storage root, empty."""
    (tmp_path / "storage").mkdir()
    url = f"sqlite:///{tmp_path / 'storage' / 'dicomnode.sqlite'}"
    make_sqlite(url)
    database = open_database(url)
    yield database
    database.close()
