"""The node's Storage SCP in this process, on loopback, over an SQLite database; and what it stored.

Flow: tests > [storage_scp] > dicomnode.receive.scp
Never: the rest of the node (`tests.builders` starts that).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import select

from dicomnode.database.engine import Database, open_database
from dicomnode.database.schema import instances
from dicomnode.database.store import Store
from dicomnode.receive.scp import StorageScp
from dicomnode.settings import NodeSettings, PeerSettings, ReceiveSettings, Settings, TlsSettings
from dicomnode.settings_limits import LimitSettings
from tests.databases import make_sqlite
from tests.peers_programs import LOOPBACK, data_set_bytes
from tests.waiting import wait_until

SCANNER = PeerSettings(name="scanner", ae_title="SCANNER", host=LOOPBACK, port=104, may=("store",))
VIEWER = PeerSettings(name="viewer", ae_title="VIEWER", host=LOOPBACK, port=104, may=("receive",))
ELSEWHERE = PeerSettings(name="elsewhere", ae_title="MODALITY7", host="192.0.2.8", port=104, may=("store",))
STOP_S = 5.0
SETTLE_S = 10.0


@dataclass(frozen=True)
class Stored:
    """One indexed instance as it stands on disk."""

    data_set: bytes
    transfer_syntax_uid: str
    path: Path


def find_spooled(store: Store) -> list[Path]:
    """Return the files of every spool that hold something."""
    nodes = [path.name for path in store.spool_root.iterdir() if path.is_dir()]
    return [path for node in nodes for path in store.list_spool(node).values() if _holds_something(path)]


def _holds_something(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:  # moved since we looked
        return False


class RunningScp:
    """A Storage SCP that runs inside the `with` block, `port` its port."""

    def __init__(
        self,
        root: Path,
        peers: Iterable[PeerSettings] = (SCANNER, VIEWER, ELSEWHERE),
        *,
        limits: LimitSettings | None = None,
        receive: ReceiveSettings | None = None,
        tls: TlsSettings | None = None,
    ) -> None:
        self.settings = Settings(
            node=NodeSettings(ae_title="DICOMNODE", bind=LOOPBACK, storage_root=root),
            receive=receive or ReceiveSettings(),
            tls=tls or TlsSettings(),
            peers=tuple(peers),
            limits=limits or LimitSettings(disk_reserve_bytes=0),
        )
        self.store = Store(root)

    def __enter__(self) -> Self:
        self.store.make_folders()
        make_sqlite(self.settings.database_url)
        self.database: Database = open_database(self.settings.database_url)
        self.scp = StorageScp(self.settings, self.database, self.store, time.time)
        self.scp.start(0)
        self.port = self.scp.port
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(STOP_S)
        self.database.close()

    def stop(self, deadline_s: float) -> None:
        """Stop the SCP; leaving the block does not mind that it has stopped."""
        if not self.is_stopped:
            self.is_stopped = True
            self.scp.stop(deadline_s)

    is_stopped = False

    def stored(self) -> dict[str, Stored]:
        """Return what is indexed, by SOP Instance UID, read from disk; what was answered is waited for."""
        wait_until(lambda: not find_spooled(self.store), SETTLE_S, "what was answered to be in its place")
        with self.database.read() as connection:
            rows = connection.execute(select(instances)).all()
        paths = {row.sop_instance_uid: self.store.instance_path(row.file_name) for row in rows}
        return {
            row.sop_instance_uid: Stored(
                data_set_bytes(paths[row.sop_instance_uid].read_bytes()),
                row.transfer_syntax_uid,
                paths[row.sop_instance_uid],
            )
            for row in rows
        }

    def files(self) -> list[Path]:
        """Return every instance below the storage root, wherever it stands."""
        return sorted([*self.store.root.rglob("*.dcm"), *find_spooled(self.store)])
