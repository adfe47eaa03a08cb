"""The Storage SCPs that are measured, each tuned, with what each of them costs.

Flow: run > [scps] > tests.builders, tests.peers_programs, tests.shims
Never: a peer as it comes: with Nagle's algorithm on they take 44 ms an instance, so theirs has TCP_NODELAY=1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.builders import NODE_AE, NodeProcess, Peer, make_config
from tests.peers_programs import Orthanc, Process, StoreScp, free_port
from tests.shims import build_shim

NODE, STORESCP, STORESCP_FLUSHED, ORTHANC = "node", "storescp", "storescp + fsync", "Orthanc"
CALLERS = ("SCANNER", "STORESCU", "DCMSEND")
# One peer holds as many associations as the node takes in all, and as many connections wait as `beset` holds.
LIMITS = {"limits": {"associations_per_peer": 100, "waiting_connections": 250}}
ORTHANC_TUNING = {"StorageCompression": False, "SyncStorageArea": True, "ConcurrentJobs": 2}
_PSS = re.compile(r"^Pss: +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Scp:
    """A Storage SCP that runs."""

    name: str
    process: Process
    port: int
    ae_title: str

    def cpu_s(self) -> float:
        """Return what it and its children have used, those that have ended too."""
        total = 0.0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
                total += times.children_user + times.children_system
        return total

    def pss_mb(self) -> float:
        """Return its share of memory, with its children's: what would be free without it."""
        found = 0
        for process in self._processes():
            with suppress(OSError):
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
                found += sum(int(size) for size in _PSS.findall(text))
        return found / 1000

    def _processes(self) -> Iterator[psutil.Process]:
        own = psutil.Process(self.process.pid)
        yield own
        yield from own.children(recursive=True)


def make_node(folder: Path) -> NodeProcess:
    """Return a node that has not started, and only receives."""
    port = free_port()
    folder.mkdir()
    peers = [Peer(name.lower(), name) for name in CALLERS]
    return NodeProcess(make_config(folder, peers, port, LIMITS), port, ["receive"])


def start_scps(running: ExitStack, folder: Path) -> list[Scp]:
    """Start every one of them; they end with the stack."""
    node = make_node(folder / "node")
    storescp, flushed = StoreScp(folder / "storescp"), StoreScp(folder / "flushed")
    flushed.environment["LD_PRELOAD"] = str(build_shim("flush_on_close", folder))
    orthanc = Orthanc(folder / "orthanc", further=ORTHANC_TUNING)
    scps = [
        Scp(NODE, node, node.port, NODE_AE),
        Scp(STORESCP, storescp, storescp.port, storescp.ae_title),
        Scp(STORESCP_FLUSHED, flushed, flushed.port, flushed.ae_title),
        Scp(ORTHANC, orthanc, orthanc.port, orthanc.ae_title),
    ]
    for scp in scps:
        running.enter_context(scp.process)
    return scps
