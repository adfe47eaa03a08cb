"""A node makes its folders once: where the database knows what was received, an empty place is a disk not mounted.

Flow: app > [test_storage_root] > database/index, database/store
Never: a mount; `tests/system/test_receive_disk.py` takes a disk away.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import delete
from structlog.testing import capture_logs

from dicomnode.app import Node
from dicomnode.database.engine import Database, open_database
from dicomnode.database.index import has_received, open_association, record_instance
from dicomnode.database.schema import associations, instances
from dicomnode.errors import StorageFailedError
from dicomnode.settings import DatabaseSettings, NodeSettings, Settings
from dicomnode.settings_limits import LimitSettings
from tests.receiving import make_arrival, make_file, make_header


@contextmanager
def running(settings: Settings) -> Iterator[Node]:
    node = Node(settings, ["receive"])
    node.start(0)
    try:
        yield node
    finally:
        node.stop()


def test_what_was_received_is_known_until_nothing_was(database: Database) -> None:
    with database.write() as connection:
        assert not has_received(connection)
        opened = open_association(connection, node="0" * 32, calling_ae="SCANNER", address="192.0.2.1", now=1.0)
        assert has_received(connection)
        record_instance(connection, make_header(), make_file(), make_arrival(opened))
        for table in (instances, associations):  # as when they end by their age
            connection.execute(delete(table))
        assert has_received(connection)


def test_a_database_without_tables_knows_of_nothing(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'new.sqlite'}")
    with database.read() as connection:
        assert not has_received(connection)
    database.close()


def test_a_start_makes_no_second_tree_where_the_disk_is_not_mounted(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    settings = Settings(
        node=NodeSettings(storage_root=root),
        database=DatabaseSettings(url=database_url),
        limits=LimitSettings(disk_reserve_bytes=0),
    )
    with capture_logs() as logs:
        for _ in range(2):
            with running(settings):
                assert (root / "store").is_dir()
    assert [row["root"] for row in logs if row["event"] == "node.storage_made"] == [str(root)]
    with database.write() as connection:
        open_association(connection, node="0" * 32, calling_ae="SCANNER", address="192.0.2.1", now=1.0)
    root.rename(tmp_path / "away")
    root.mkdir()
    for _ in range(2):
        words = rf"^{root}/spool is not there, but the database knows what was received below {root}: mount"
        with pytest.raises(StorageFailedError, match=words), running(settings):
            pass
        assert list(root.iterdir()) == []
    root.rmdir()
    (tmp_path / "away").rename(root)
    with running(settings):
        pass
    shutil.rmtree(root)
    (root / "spool").mkdir(parents=True)  # a person says that all is lost
    with running(settings):
        assert (root / "store").is_dir()
