"""What C-GET brought is received like what a peer sends: the SCP over SQLite, files as `send/fetch` writes them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, select
from structlog.testing import capture_logs

from dicomnode.database.queries import Query, add_query, claim_query, finish_query
from dicomnode.database.schema import associations
from dicomnode.database.series import SeriesRow, fetch_series
from dicomnode.database.store import make_file_name
from dicomnode.database.turns import Turn
from dicomnode.errors import StorageFullError
from dicomnode.receive.fetched import receive_fetched
from dicomnode.receive.intake import Intake
from dicomnode.receive.recovery import close_spool, open_spool
from dicomnode.settings_limits import LimitSettings
from tests.dicomnode.series_files import SeriesSpec, write_series
from tests.rows import PET, receive
from tests.storage_scp import SCANNER, RunningScp

SPEC = SeriesSpec(shape=(12, 8, 8))
SERIES_UID = f"{SPEC.uid}.2"


@pytest.fixture
def scp(tmp_path: Path) -> Iterator[RunningScp]:
    with RunningScp(tmp_path / "storage") as running:
        yield running


def _ask(scp: RunningScp) -> Query:
    receive(scp.database, PET, now=1.0)
    with scp.database.write() as connection:
        add_query(connection, "fetch", fetch_series(connection, PET.series_uid).row.id, SCANNER.name, 2.0)
    query = claim_query(scp.database, Turn(SCANNER.name, 3.0, 60.0, 3600.0))
    assert query is not None
    return query


def _land(scp: RunningScp, query_id: int, scratch: Path) -> Path:
    """Put a series where C-GET puts it; return the folder."""
    folder = scp.store.fetched_folder(query_id)
    folder.mkdir(exist_ok=True)
    for path in write_series(scratch, SPEC):
        path.rename(folder / make_file_name())
    return folder


def _row(scp: RunningScp) -> SeriesRow:
    with scp.database.read() as connection:
        return fetch_series(connection, SERIES_UID).row


def _finish(scp: RunningScp, query: Query) -> None:
    with scp.database.write() as connection:
        finish_query(connection, query, "done", 4.0)


def test_what_landed_is_indexed_as_the_peers_and_its_folder_goes_with_the_query(
    scp: RunningScp, tmp_path: Path
) -> None:
    query = _ask(scp)
    folder = _land(scp, query.id, tmp_path)

    scp.scp.step()

    assert (_row(scp).instance_count, _row(scp).calling_ae) == (12, SCANNER.ae_title)
    assert list(folder.iterdir()) == []
    with scp.database.read() as connection:
        closed = connection.execute(select(associations.c.closed_at).order_by(associations.c.id.desc())).scalars()
        assert next(iter(closed)) is not None
    (folder / "half-written.part").touch()
    _finish(scp, query)
    scp.scp.step()
    assert not folder.exists()


def test_what_was_indexed_before_a_crash_is_not_received_twice(scp: RunningScp, tmp_path: Path) -> None:
    query = _ask(scp)
    for scratch in ("first", "again"):
        _land(scp, query.id, tmp_path / scratch)
        scp.scp.step()

    assert _row(scp).instance_count == 12
    assert len(scp.files()) == 12


def test_a_damaged_file_keeps_no_other_back(scp: RunningScp, tmp_path: Path) -> None:
    query = _ask(scp)
    folder = _land(scp, query.id, tmp_path)
    (folder / make_file_name()).write_bytes(b"\0" * 500)

    with capture_logs() as logs:
        scp.scp.step()

    assert _row(scp).instance_count == 12
    assert list(folder.iterdir()) == []
    assert [log["status"] for log in logs if log["event"] == "receive.failed"] == ["C000"]


@pytest.mark.parametrize("seed", range(2))
def test_whatever_the_disk_has_changed_of_a_file_it_keeps_no_other_back(
    scp: RunningScp, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)  # noqa: S311  damage, not a secret
    folder = _land(scp, _ask(scp).id, tmp_path)
    whole = next(iter(folder.iterdir())).read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(128, 400)] = draw.randrange(256)
        (folder / make_file_name()).write_bytes(damaged[: draw.choice((len(whole), draw.randrange(500)))])

    scp.scp.step()

    assert list(folder.iterdir()) == []
    assert _row(scp).instance_count == 12


def test_what_is_no_folder_of_ours_stands_in_the_way_of_none(scp: RunningScp, tmp_path: Path) -> None:
    (scp.store.fetched_root / "lost+found").mkdir()
    (scp.store.fetched_root / "7").touch()
    query = _ask(scp)
    _land(scp, query.id, tmp_path)

    scp.scp.step()

    assert _row(scp).instance_count == 12


def test_two_processes_on_one_storage_root_receive_a_file_once(scp: RunningScp, tmp_path: Path) -> None:
    query = _ask(scp)
    folder = _land(scp, query.id, tmp_path)
    _finish(scp, query)
    other = Intake(open_spool(scp.store, scp.database, 5.0), scp.database)
    meanwhile: list[bool] = []

    def receive_too(_connection: Connection) -> None:
        if not meanwhile:
            meanwhile.append(True)
            receive_fetched(other, scp.settings, 5.0)
            meanwhile.append(folder.exists())

    event.listen(scp.database.engine, "begin", receive_too)  # the first process has looked which folders there are
    scp.scp.step()

    assert meanwhile == [True, True]
    assert (_row(scp).instance_count, folder.exists()) == (12, False)
    other.stop()
    close_spool(other.spool, scp.database, 6.0)


def test_what_does_not_fit_the_disk_waits(tmp_path: Path) -> None:
    full = LimitSettings(disk_reserve_bytes=2**60)
    with RunningScp(tmp_path / "storage", limits=full) as scp:
        folder = _land(scp, _ask(scp).id, tmp_path)

        with pytest.raises(StorageFullError):
            scp.scp.step()

        assert len(list(folder.iterdir())) == 12


def test_a_folder_of_another_database_is_left_alone(scp: RunningScp, tmp_path: Path) -> None:
    folder = _land(scp, 99, tmp_path)

    scp.scp.step()

    assert len(list(folder.iterdir())) == 12


def test_nothing_is_received_before_the_start_or_after_the_stop(scp: RunningScp, tmp_path: Path) -> None:
    folder = _land(scp, _ask(scp).id, tmp_path)
    scp.stop(1.0)

    scp.scp.step()

    assert len(list(folder.iterdir())) == 12
