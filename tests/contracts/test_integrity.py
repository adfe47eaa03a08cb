"""Files that are not what was written are found, put aside, neither used nor sent, and whole when they come again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

from dicomnode.database.damages import fetch_damages
from dicomnode.database.engine import Database
from dicomnode.database.jobs import add_job, claim_job, record_outputs
from dicomnode.database.marks import fetch_mark
from dicomnode.database.outbox import fetch_outbox
from dicomnode.database.schema import instances, series
from dicomnode.errors import FileDamagedError, StorageFailedError
from dicomnode.housekeeping.integrity import check_damaged, scan
from dicomnode.housekeeping.leftovers import OLD_S, clear_folder, list_folders
from dicomnode.housekeeping.retention import remove_doomed
from dicomnode.jobs.pipeline import run_job
from dicomnode.receive.recovery import settle_dead_spools
from dicomnode.settings import NodeSettings, Settings
from tests.house import DAY_S, SLICES, House, fetch_all, spoil

ALL = 10**9


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "root", database) as opened:
        yield opened


def scan_all(house: House, budget_bytes: int = ALL, days: float = 30.0) -> int:
    """Scan until nothing is left to be checked; return how many files were."""
    checked = 0
    while found := scan(house.database, house.store, budget_bytes, days, house.now):
        checked += found
    return checked


def damages(house: House) -> list[tuple[str, str]]:
    with house.database.read() as connection:
        return [(one.of, one.reason) for one in fetch_damages(connection)]


def test_every_file_is_checked_once_in_so_many_days_and_a_little_at_a_time(house: House) -> None:
    house.finish(house.pair(1)[0])
    assert scan(house.database, house.store, 1, 30.0, house.now) == 1
    assert scan(house.database, house.store, 1, 30.0, house.now) == 1
    with house.database.read() as connection:
        mark = fetch_mark(connection, "scan_instances")
    assert mark is not None
    assert mark.position == 2  # the next process goes on from here
    assert scan_all(house, 1) == 2 * SLICES + 2 - 2
    house.now += 29.9 * DAY_S
    assert scan_all(house) == 0
    house.now += 0.2 * DAY_S
    assert scan_all(house) == 2 * SLICES + 2
    house.now -= 365 * DAY_S  # a clock that was put back keeps nothing from being checked
    assert scan_all(house) == 2 * SLICES + 2


def test_a_damaged_file_is_put_aside_named_and_whole_again_when_its_instance_is_sent_again(house: House) -> None:
    house.receive("MR", 50)
    house.receive("MR", 51)
    path = house.root / sorted(house.files("store"))[0]
    spoil(path)
    series_id = {row["file_name"]: row["series_id"] for row in fetch_all(house.database)["instances"]}[path.name]
    of = {row["id"]: row["series_uid"] for row in fetch_all(house.database)["series"]}[series_id]

    scan_all(house)

    [(found_of, reason)] = damages(house)
    assert found_of == f"series {of}"
    assert "was received" in reason
    assert house.files("damaged") == {f"damaged/{path.name}"}
    assert not path.exists()
    assert check_damaged(house.database, house.store) == 0
    house.receive("MR", int(of.rpartition(".")[2]))
    assert path.exists()
    assert check_damaged(house.database, house.store) == 1
    assert damages(house) == []


def test_a_damaged_result_is_named_until_its_file_was_put_back(house: House) -> None:
    job_id = house.finish(house.pair(1)[0])
    [path, _] = house.outputs(job_id)
    good = path.read_bytes()
    spoil(path)
    scan_all(house)
    assert [of for of, _ in damages(house)] == [f"job {job_id}"]
    assert check_damaged(house.database, house.store) == 0
    path.write_bytes(good)  # from a backup
    assert check_damaged(house.database, house.store) == 1
    assert damages(house) == []


def test_a_look_at_what_is_damaged_that_is_cut_short_is_gone_on_with(house: House) -> None:
    [one, other] = house.outputs(house.finish(house.pair(1)[0]))
    house.receive("MR", 50)
    received = house.root / sorted(house.files("store"))[0]
    good = {path: path.read_bytes() for path in (received, one, other)}
    for path in good:
        spoil(path)
    scan_all(house)
    assert len(damages(house)) == 3
    for path in (one, other):
        path.write_bytes(good[path])  # from a backup

    looks = [check_damaged(house.database, house.store, lambda: True) for _ in range(6)]

    assert sorted(looks[:3]) == [0, 1, 1]
    assert looks[3:] == [0, 0, 0]
    assert len(damages(house)) == 1


def test_a_missing_file_is_named_and_a_missing_disk_is_not_the_files_fault(house: House) -> None:
    house.receive("MR", 50)
    path = house.root / sorted(house.files("store"))[0]
    path.unlink()
    scan_all(house)
    assert [reason for _, reason in damages(house)] == [f"{path.name} is missing"]
    house.now += 31 * DAY_S
    house.root.joinpath("store").rename(house.root / "away")
    with pytest.raises(StorageFailedError, match="is its disk mounted"):
        scan(house.database, house.store, ALL, 30.0, house.now)
    (house.root / "outputs").rename(house.root / "made")
    with pytest.raises(StorageFailedError, match="is its disk mounted"):
        list_folders(house.store)
    (house.root / "away").rename(house.root / "store")
    assert len(damages(house)) == 1


def test_a_file_that_cannot_be_read_is_named_and_stays_where_it_is(house: House) -> None:
    house.receive("MR", 50)
    path = house.root / sorted(house.files("store"))[0]
    good = path.rename(house.root / "good")
    path.symlink_to(path)  # which the system refuses to read

    scan_all(house)

    assert [reason.partition(": ")[0] for _, reason in damages(house)] == [f"{path.name} cannot be read"]
    assert path.is_symlink()
    assert house.files("damaged") == set()
    good.replace(path)
    assert check_damaged(house.database, house.store) == 1
    assert damages(house) == []


def test_a_damaged_series_is_not_registered(house: House) -> None:
    pair_id, _, _ = house.pair(1)
    with house.database.write() as connection:
        add_job(connection, pair_id, house.now)
    job = claim_job(house.database, house.now, lease_s=60.0)
    assert job is not None
    path = house.root / sorted(house.files("store"))[0]
    spoil(path)
    with pytest.raises(FileDamagedError, match=f"1 of {2 * SLICES} files are not what was received; {path.name} has"):
        run_job(job, Settings(node=NodeSettings(storage_root=house.root)), house.database, time.time)
    assert len(damages(house)) == 1
    assert house.files("outputs") == set()


def test_a_damaged_output_is_named_stays_where_it_is_and_is_whole_when_it_is_made_again(house: House) -> None:
    job_id = house.finish(house.pair(1)[0])
    path = house.outputs(job_id)[0]
    spoil(path)
    scan_all(house)
    assert [of for of, _ in damages(house)] == [f"job {job_id}"]
    assert path.exists()
    row = {**house._write_output(job_id, 1), "path": f"outputs/{job_id}/again.dcm"}
    with house.database.write() as connection:
        record_outputs(connection, job_id, [row])
        assert fetch_outbox(connection)[0].path == row["path"]
    assert damages(house) == []


def clear(house: House, later_s: float = OLD_S + 60.0) -> int:
    """Look at every folder as if so long had passed, a day by default."""
    folders = list_folders(house.store)
    return sum(clear_folder(house.database, house.store, one, time.time() + later_s) for one in folders)


def test_a_received_file_without_a_row_gets_it_again(house: House) -> None:
    """As when a database is put back that is older than the files."""
    uid = house.receive("MR", 50)
    with house.database.write() as connection:
        for table in (instances, series):
            connection.execute(delete(table))
    assert clear(house, OLD_S - 60.0) == 0  # its row may be on its way

    assert clear(house) == SLICES
    assert house.files("store") == set()
    settle_dead_spools(house.store, house.database, house.now)

    assert house.state_of(uid) == "receiving"
    assert house.files() == house.named_files()
    assert len(house.files()) == SLICES
    assert clear(house) == 0


def test_what_a_dead_job_left_goes_and_what_a_job_is_at_stays(house: House) -> None:
    job_id = house.finish(house.pair(1)[0])
    left = [house.store.outputs_folder(job_id) / name for name in ("rgb-0001.dcm", "pt-0001.part")]
    copy = house.store.outputs_folder(job_id) / "pt-0001.jpeg-ls.dcm"
    pair_id, _, _ = house.pair(2)
    with house.database.write() as connection:
        running = add_job(connection, pair_id, house.now)
    assert claim_job(house.database, house.now, lease_s=60.0) is not None
    at_work = house.store.outputs_folder(running) / "pt-0001.part"
    stranger = house.store.outputs_folder(4711) / "pt-0001.dcm"  # of another database
    for path in (*left, copy, at_work, stranger):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"left")

    assert clear(house) == len(left)
    assert remove_doomed(house.database, house.store, house.now)

    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in (copy, at_work, stranger, *house.outputs(job_id)))
    assert house.files("store") == house.named_files() & house.files("store")
    assert clear(house) == 0
