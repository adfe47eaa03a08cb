"""What a start takes after a crash that left many instances without rows, beside one that left none.

Flow: run > [recovery] > tests.builders, senders
Never: a crash that lets rows be written first: another connection holds the database meanwhile.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.ingest.scps import make_node
from tests.benchmarks.ingest.senders import FIRST, Load, hold_raw
from tests.builders import NODE_AE, NodeProcess

ASSOCIATIONS = 50
TURNS = 10


@dataclass(frozen=True)
class Recovery:
    """Seconds until the port is open."""

    files: int
    clean_s: float
    after_crash_s: float


def measure_recovery(turns: int = TURNS) -> Recovery:
    """Start a node, kill it while the rows of its instances wait, and start it again."""
    files = turns * ASSOCIATIONS
    with tempfile.TemporaryDirectory() as name:
        node = make_node(Path(name) / "node")
        clean_s = _start(node)
        node.stop()
        clean_s = min(clean_s, _start(node))
        database = node.config.parent / "storage" / "dicomnode.sqlite"
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for turn in range(turns):
                for raw in hold_raw(Load(node.port, NODE_AE, ASSOCIATIONS, ASSOCIATIONS, FIRST + turn * ASSOCIATIONS)):
                    raw.socket.close()
            node.kill()
        after_crash_s = _start(node)
        with closing(sqlite3.connect(database)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM instances").fetchone()
        node.stop()
    if count != files:
        raise RuntimeError(f"{files} instances were acknowledged, {count} have rows after the start")
    return Recovery(files, clean_s, after_crash_s)


def _start(node: NodeProcess) -> float:
    began = time.perf_counter()
    node.start()
    return time.perf_counter() - began
