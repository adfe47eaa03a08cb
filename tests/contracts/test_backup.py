"""A backup holds everything, on SQLite and PostgreSQL; what is made of it is the same node, on either."""

from __future__ import annotations

import hashlib
import json
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, text
from structlog.testing import capture_logs

from dicomnode.app import Node
from dicomnode.backup.make import Made, make_backup
from dicomnode.backup.manifest import FILES, FILES_LIST, MANIFEST
from dicomnode.backup.restore import restore_backup
from dicomnode.backup.schedule import list_backups, make_due_backup
from dicomnode.backup.verify import Difference, verify_backup, verify_node
from dicomnode.database.deletions import fetch_deletions
from dicomnode.database.engine import Database, open_database
from dicomnode.database.jobs import add_job, claim_job, fetch_jobs
from dicomnode.database.marks import BACKUP_LEASE_S, are_files_held, hold_files
from dicomnode.database.migrate import migrate
from dicomnode.database.outbox import claim_outbox, fetch_outbox
from dicomnode.database.snapshots import fetch_revision, insert_rows
from dicomnode.database.store import Store
from dicomnode.errors import InstanceConflictError, StorageFailedError, UsageError
from dicomnode.housekeeping.retention import delete_due
from dicomnode.housekeeping.service import HousekeepingService
from dicomnode.receive.recovery import close_spool, open_spool
from dicomnode.settings import DatabaseSettings, NodeSettings, Settings
from dicomnode.settings_keeping import BackupSettings, KeepSettings, RetentionSettings
from tests.house import DAY_S, House, fetch_all, spoil, without
from tests.peers_programs import data_set_bytes
from tests.rows import due
from tests.waiting import wait_until

HELD = ("marks",)  # of the process that made the backup


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "root", database) as opened:
        yield opened


def furnish(house: House) -> None:
    """Have something of everything: delivered, owed, running, refused, in conflict, deleted."""
    house.settle(house.receive("MR", 70), "unpaired")
    house.now += 9 * DAY_S
    by_age = Settings(retention=RetentionSettings(unpaired=KeepSettings(days=1)))
    assert delete_due(house.database, house.store, by_age, house.now, lambda: 0) == 1
    house.finish(house.pair(1)[0])
    house.deliver()
    house.finish(house.pair(2)[0], owed_to=("pacs", "archive"))
    claim_outbox(house.database, due("archive", house.now), 1)
    pair_id, _, _ = house.pair(3)
    with house.database.write() as connection:
        add_job(connection, pair_id, house.now)
    assert claim_job(house.database, house.now, lease_s=60.0) is not None
    house.receive("PT", 50)
    with pytest.raises(InstanceConflictError):
        house.receive("PT", 50, description="corrected")


def back_up(house: House, folder: Path, previous: Path | None = None) -> Made:
    return make_backup(house.store, house.database, folder, house.clock, previous)


def settings_at(root: Path, url: str = "") -> Settings:
    return Settings(node=NodeSettings(storage_root=root), database=DatabaseSettings(url=url))


def restore_to(root: Path, backup: Path, url: str = "") -> tuple[Store, Database]:
    settings = settings_at(root, url)
    restore_backup(backup, settings)
    return Store(root), open_database(settings.database_url)


@pytest.fixture(params=["sqlite", "postgresql"])
def other_url(request: pytest.FixtureRequest) -> str:
    """Give the URL of another empty database; empty for SQLite below the storage root."""
    if request.param == "sqlite":
        return ""
    make_database: Callable[[], str] = request.getfixturevalue("postgresql").make_database
    return make_database()


def test_what_is_restored_on_either_database_is_what_was_there(house: House, tmp_path: Path, other_url: str) -> None:
    furnish(house)
    made = back_up(house, tmp_path / "backup")
    before = fetch_all(house.database)
    assert made.damaged == ()
    assert verify_backup(tmp_path / "backup")[1] == []

    store, database = restore_to(tmp_path / "other", tmp_path / "backup", other_url)

    after = fetch_all(database)
    assert without(after, "jobs", "outbox", *HELD) == without(before, "jobs", "outbox", *HELD)
    assert verify_node(store, database)[1] == []
    kept = house.files() - {row["path"] for row in before["doomed_files"]}
    assert {path: (store.root / path).read_bytes() for path in kept} == {
        path: (house.root / path).read_bytes() for path in kept
    }
    with database.read() as connection:
        states = [(job.state, job.attempts, job.lease_until) for job in fetch_jobs(connection)]
        rows = fetch_outbox(connection)
        assert fetch_deletions(connection)[0].kind == "unpaired"
    assert states == [("done", 1, None), ("done", 1, None), ("waiting", 0, None)]
    assert sorted(row.state for row in rows) == ["owed"] * 4 + ["sent"] * 2
    assert all(row.lease_until is None for row in rows)
    # It goes on: new rows have ids of their own, and what was owed can be taken.
    with database.write() as connection:
        assert add_job(connection, 3, house.now) == 4
    assert len(claim_outbox(database, due("archive", house.now), 10)) == 2
    database.close()


def test_only_this_user_can_read_a_backup_and_no_list_of_it_says_whose_it_is(house: House, tmp_path: Path) -> None:
    house.receive("MR", 50, patient="SECRET-4711")
    (tmp_path / "backup").mkdir(mode=0o755)
    back_up(house, tmp_path / "backup")
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o700
    for name in (MANIFEST, FILES_LIST, "rows/series.jsonl", "rows/instances.jsonl"):
        assert "SECRET" not in (tmp_path / "backup" / name).read_text(encoding="ascii")


def test_what_was_answered_and_has_no_row_yet_is_restored_too(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.receive("MR", 50)
    first = next(iter(house.files("store")))
    unrecorded = house.intake.spool.folder / Path(first).stem
    with house.database.write() as connection:  # as it is until half a second after the answer
        connection.execute(text("DELETE FROM instances WHERE file_name = :name"), {"name": Path(first).name})
    (house.root / first).rename(unrecorded)
    back_up(house, tmp_path / "backup")

    store, database = restore_to(tmp_path / "other", tmp_path / "backup")
    close_spool(open_spool(store, database, house.now), database, house.now)

    rows = fetch_all(database)["instances"]
    found = {row["sop_instance_uid"]: store.instance_path(row["file_name"]) for row in rows}
    assert {uid: data_set_bytes(path.read_bytes()) for uid, path in found.items()} == house.sent
    database.close()


def test_a_backup_of_a_house_that_is_lived_in_is_of_one_moment(house: House, tmp_path: Path) -> None:
    numbers = iter(range(1000, 2000))
    stop = threading.Event()

    def live() -> None:
        while not stop.is_set():
            house.receive("MR", next(numbers))

    living = threading.Thread(target=live)
    living.start()
    try:
        for round_number in range(3):
            back_up(house, tmp_path / f"backup{round_number}")
    finally:
        stop.set()
        living.join()
    for round_number in range(3):
        store, database = restore_to(tmp_path / f"other{round_number}", tmp_path / f"backup{round_number}")
        close_spool(open_spool(store, database, house.now), database, house.now)
        assert verify_node(store, database)[1] == []
        database.close()


def test_nothing_is_deleted_while_a_backup_is_made_and_its_death_holds_nothing_for_long(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(house)
    seen: list[bool] = []

    def fail(*_: Any) -> None:
        with house.database.write() as connection:
            seen.append(are_files_held(connection, house.now))
            seen.append(are_files_held(connection, house.now + BACKUP_LEASE_S))
        raise OSError(28, "No space left on device", "backup/files")

    monkeypatch.setattr("dicomnode.backup.make._copy", fail)
    with pytest.raises(StorageFailedError, match="backup/files: No space left on device; no backup was made"):
        back_up(house, tmp_path / "backup")
    assert seen == [True, False]
    assert not (tmp_path / "backup").exists()


def test_a_backup_that_ends_leaves_the_files_to_one_that_goes_on(house: House, tmp_path: Path) -> None:
    house.receive("MR", 50)
    moments = iter(range(3))

    def clock() -> float:
        if next(moments, None) == 1:  # the files are held, and the rows are read next
            house.now += 1.0
            back_up(house, tmp_path / "other")
            with house.database.write() as connection:
                assert are_files_held(connection, house.now)
        return house.now

    make_backup(house.store, house.database, tmp_path / "backup", clock)
    assert next(moments, None) is None


def test_a_damaged_and_a_missing_file_are_named_when_the_backup_is_made_and_when_it_is_verified(
    house: House, tmp_path: Path
) -> None:
    furnish(house)
    spoiled, missing = sorted(
        house.files("store") - {row["path"] for row in fetch_all(house.database)["doomed_files"]}
    )[:2]
    spoil(house.root / spoiled)
    (house.root / missing).unlink()

    made = back_up(house, tmp_path / "backup")

    assert {entry.path for entry in made.damaged} == {spoiled, missing}
    found = {one.path: one.text for one in verify_backup(tmp_path / "backup")[1]}
    assert found.keys() == {spoiled, missing}
    assert found[missing] == "when the backup was made: it is missing"
    assert "was written" in found[spoiled]
    store, database = restore_to(tmp_path / "other", tmp_path / "backup")
    assert {one.path for one in verify_node(store, database)[1]} == {spoiled, missing}
    database.close()


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_backed_up(house: House, tmp_path: Path) -> None:
    house.receive("MR", 50)
    unreadable, *others = sorted(house.files("store"))
    path = house.root / unreadable
    path.unlink()
    path.symlink_to(path)  # which the system refuses to read

    made = back_up(house, tmp_path / "backup")

    assert [entry.path for entry in made.damaged] == [unreadable]
    [found] = verify_backup(tmp_path / "backup")[1]
    assert (found.path, found.text) == (
        unreadable,
        "when the backup was made: it cannot be read: Too many levels of symbolic links",
    )
    store, database = restore_to(tmp_path / "other", tmp_path / "backup")
    assert all((store.root / other).is_file() for other in others)
    database.close()


@pytest.mark.parametrize("harm", ["changed", "gone", "new", "row", "list", "manifest"])
def test_whatever_happens_to_a_backup_is_found(house: House, tmp_path: Path, harm: str) -> None:
    furnish(house)
    back_up(house, tmp_path / "backup")
    folder = tmp_path / "backup"
    path = sorted(str(file.relative_to(folder / FILES)) for file in (folder / FILES / "store").rglob("*.dcm"))[0]
    spoiled = {"row": folder / "rows" / "jobs.jsonl", "list": folder / FILES_LIST, "changed": folder / FILES / path}
    if harm in spoiled:
        spoil(spoiled[harm])
    elif harm == "gone":
        (folder / FILES / path).unlink()
    elif harm == "new":
        (folder / FILES / "store" / "stranger").touch()
    else:
        (folder / MANIFEST).write_text("{}", encoding="ascii")

    if harm in ("row", "list", "manifest"):
        with pytest.raises(UsageError, match="it is no manifest" if harm == "manifest" else "the backup is damaged"):
            verify_backup(folder)
        with pytest.raises(UsageError):
            restore_backup(folder, settings_at(tmp_path / "other"))
        assert not (tmp_path / "other").exists()
        return
    told = {"changed": "was copied", "gone": "No such file", "new": "the manifest does not name it"}[harm]
    [difference] = verify_backup(folder)[1]
    assert told in difference.text
    if harm in ("changed", "gone"):
        with pytest.raises(StorageFailedError):
            restore_backup(folder, settings_at(tmp_path / "other"))
        with pytest.raises(StorageFailedError, match="was not restored to its end; empty it, and restore again"):
            Store(tmp_path / "other").make_folders()


def test_nothing_is_restored_over_anything(house: House, tmp_path: Path, database_url: str) -> None:
    furnish(house)
    back_up(house, tmp_path / "backup")
    with pytest.raises(UsageError, match="holds something already"):
        back_up(house, tmp_path / "backup")
    assert verify_backup(tmp_path / "backup")[1] == []
    with pytest.raises(UsageError, match="an empty storage root is needed"):
        restore_backup(tmp_path / "backup", settings_at(house.root))
    with pytest.raises(UsageError, match="the database holds rows already"):
        restore_backup(tmp_path / "backup", settings_at(tmp_path / "other", database_url))
    with pytest.raises(UsageError, match="a folder that `dicomnode backup` finished is needed"):
        restore_backup(house.root, settings_at(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_path_that_leads_out_of_the_storage_root_is_refused(house: House, tmp_path: Path) -> None:
    furnish(house)
    back_up(house, tmp_path / "backup")
    line = json.dumps({"path": "../../etc/cron.d/x", "size_bytes": 0, "sha256": "", "damage": ""}) + "\n"
    (tmp_path / "backup" / FILES_LIST).write_text(line, encoding="ascii")
    manifest = json.loads((tmp_path / "backup" / MANIFEST).read_text(encoding="ascii"))
    manifest["files_sha256"] = hashlib.sha256(line.encode()).hexdigest()
    (tmp_path / "backup" / MANIFEST).write_text(json.dumps(manifest), encoding="ascii")
    with pytest.raises(UsageError, match="it names a path outside the storage root"):
        restore_backup(tmp_path / "backup", settings_at(tmp_path / "other"))


def columns_of_revision(revision: str, tmp_path: Path) -> dict[str, set[str]]:
    url = f"sqlite:///{tmp_path / 'earlier.sqlite'}"
    migrate(url, revision)
    earlier, reflected = open_database(url), MetaData()
    with earlier.read() as connection:
        reflected.reflect(connection)
    earlier.close()
    return {name: set(table.c.keys()) for name, table in reflected.tables.items()}


def test_a_backup_of_an_earlier_schema_is_brought_to_this_one(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(house)
    back_up(house, tmp_path / "backup")
    folder = tmp_path / "backup"
    manifest = json.loads((folder / MANIFEST).read_text(encoding="ascii"))
    manifest["revision"] = "0003"
    columns = columns_of_revision("0003", tmp_path)
    manifest["tables"] = {name: entry for name, entry in manifest["tables"].items() if name in columns}
    for name, entry in manifest["tables"].items():
        path = folder / "rows" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
        lines = [json.dumps({key: row[key] for key in columns[name]}) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="ascii")
        entry["sha256"] = hashlib.sha256("".join(lines).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="ascii")

    schemas = set()

    def insert_and_look(connection: Connection, *arguments: Any) -> int:
        schemas.add(fetch_revision(connection))
        return insert_rows(connection, *arguments)

    monkeypatch.setattr("dicomnode.backup.restore.insert_rows", insert_and_look)
    store, database = restore_to(tmp_path / "other", folder)

    assert schemas == {"0003"}
    assert fetch_all(database)["outputs"] == fetch_all(house.database)["outputs"]
    assert verify_node(store, database)[1] == []
    database.close()


def test_a_database_of_another_version_is_not_backed_up(house: House, tmp_path: Path) -> None:
    told = text("UPDATE alembic_version SET version_num = :revision")
    with house.database.write() as connection:
        revision = fetch_revision(connection)
        connection.execute(told, {"revision": "0003"})
    try:
        with pytest.raises(UsageError, match="start the node once with this version of dicomnode"):
            back_up(house, tmp_path / "backup")
    finally:
        with house.database.write() as connection:  # another test has this database next
            connection.execute(told, {"revision": revision})
    assert not (tmp_path / "backup").exists()


def test_backups_are_made_when_due_share_what_is_the_same_and_the_oldest_go(house: House, tmp_path: Path) -> None:
    kept = BackupSettings(folder=str(tmp_path / "backups"), every_hours=24.0, keep=2)
    settings = settings_at(house.root).model_copy(update={"backup": kept})
    house.receive("MR", 50)
    made = []
    for day in range(3):
        assert make_due_backup(settings, house.database, house.clock)
        assert not make_due_backup(settings, house.database, house.clock)
        made.append(list_backups(tmp_path / "backups")[-1])
        house.receive("MR", 51 + day)
        house.now += DAY_S
    assert list_backups(tmp_path / "backups") == made[1:]
    shared = [path for path in made[2].rglob("*.dcm") if path.stat().st_nlink > 1]
    assert len(shared) == len(list(made[1].rglob("*.dcm")))
    assert verify_backup(made[2])[1] == []


def test_a_backup_outlives_those_of_a_clock_that_was_ahead(house: House, tmp_path: Path) -> None:
    kept = BackupSettings(folder=str(tmp_path / "backups"), every_hours=24.0, keep=2)
    settings = Settings(node=NodeSettings(storage_root=house.root), backup=kept)
    right = house.now
    for ahead_s in (1000 * DAY_S, 1001 * DAY_S):
        house.now = right + ahead_s
        assert make_due_backup(settings, house.database, house.clock)
    of_the_future = list_backups(tmp_path / "backups")
    for day in (0, 1):
        house.now = right + day * DAY_S
        assert make_due_backup(settings, house.database, house.clock)

        assert len(list_backups(tmp_path / "backups")) == 2
        assert not of_the_future.pop(0).exists()


def test_a_backup_that_fails_is_tried_again_soon(house: House, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file", encoding="ascii")
    settings = settings_at(house.root).model_copy(update={"backup": BackupSettings(folder=str(blocked / "backups"))})
    assert not make_due_backup(settings, house.database, house.clock)
    blocked.unlink()
    house.now += 60.0
    assert not make_due_backup(settings, house.database, house.clock)
    house.now += 600.0
    assert make_due_backup(settings, house.database, house.clock)


@pytest.mark.parametrize("harm", [MANIFEST, FILES_LIST])
def test_a_backup_that_is_damaged_keeps_no_other_from_being_made(house: House, tmp_path: Path, harm: str) -> None:
    kept = BackupSettings(folder=str(tmp_path / "backups"), every_hours=24.0, keep=3)
    settings = settings_at(house.root).model_copy(update={"backup": kept})
    house.receive("MR", 50)
    for _ in range(2):
        assert make_due_backup(settings, house.database, house.clock)
        house.now += DAY_S
    first, second = list_backups(tmp_path / "backups")
    spoil(second / harm, at=0)

    with capture_logs() as logs:
        assert make_due_backup(settings, house.database, house.clock)

    told = [line for line in logs if line["event"] == "backup.unusable"]
    assert [str(second / harm) in line["reason"] for line in told] == [True]
    made = list_backups(tmp_path / "backups")[-1]
    assert verify_backup(made)[1] == []
    assert {path.stat().st_ino for path in made.rglob("*.dcm")} == {path.stat().st_ino for path in first.rglob("*.dcm")}


def test_a_backup_that_a_killed_process_began_goes_with_the_next(house: House, tmp_path: Path) -> None:
    kept = BackupSettings(folder=str(tmp_path / "backups"), every_hours=1.0)
    settings = settings_at(house.root).model_copy(update={"backup": kept})
    half = tmp_path / "backups" / "20010909T000000Z"
    others = [tmp_path / "backups" / "of a person", tmp_path / "backups" / "20010909"]
    for folder in (half, *others):
        (folder / FILES).mkdir(parents=True)
    with house.database.write() as connection:
        hold_files(connection, house.now)  # it may be another process that makes it, and lives
    assert make_due_backup(settings, house.database, house.clock)
    assert half.exists()
    house.now += 3600.0
    assert make_due_backup(settings, house.database, house.clock)
    assert not half.exists()
    assert all(folder.exists() for folder in others)
    assert len(list_backups(tmp_path / "backups")) == 2


def test_a_node_that_stops_does_not_wait_for_its_backup_which_is_tried_again_soon(house: House, tmp_path: Path) -> None:
    kept = BackupSettings(folder=str(tmp_path / "backups"), every_hours=24.0)
    settings = settings_at(house.root).model_copy(update={"backup": kept})
    house.receive("MR", 50)
    moments = iter(range(100))

    def clock() -> float:
        if next(moments) == 2:  # it is under way
            stopping.stop()
        return house.now

    stopping = HousekeepingService(settings, house.database, clock)
    with capture_logs() as logs:
        stopping.back_up()

    assert [(line["event"], line["reason"]) for line in logs] == [("backup.failed", "the node stops")]
    assert list((tmp_path / "backups").iterdir()) == []
    house.now += 600.0
    assert make_due_backup(settings, house.database, house.clock)


def test_a_stop_of_the_whole_node_ends_its_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomnode.app.BACKUP_TICK_S", 0.1)
    settings = settings_at(tmp_path / "root").model_copy(
        update={"backup": BackupSettings(folder=str(tmp_path / "backups"))}
    )
    waiting = Store(tmp_path / "root").fetched_folder(99)  # of another database: each is copied
    waiting.mkdir(parents=True)
    for number in range(5000):
        (waiting / f"{number:032x}.dcm").write_bytes(b"instance")
    node = Node(settings, ["receive"])
    node.start(0)
    try:
        wait_until(lambda: any((tmp_path / "backups").glob(f"*/{FILES}/**/*.dcm")), 30.0, "a backup under way")
    finally:
        node.stop()
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_backup_folder_that_cannot_be_read_is_said_and_looked_at_again_soon(house: House, tmp_path: Path) -> None:
    kept = BackupSettings(folder=str(tmp_path / ("x" * 300)), every_hours=24.0)
    settings = settings_at(house.root).model_copy(update={"backup": kept})
    with capture_logs() as logs:
        assert not make_due_backup(settings, house.database, house.clock)
    assert [line["event"] for line in logs] == ["backup.failed"]
    assert "File name too long" in logs[0]["reason"]
    good = settings.model_copy(update={"backup": BackupSettings(folder=str(tmp_path / "backups"))})
    house.now += 600.0
    assert make_due_backup(good, house.database, house.clock)


def test_a_backup_that_is_due_while_the_database_is_away_is_said(tmp_path: Path) -> None:
    kept = BackupSettings(folder=str(tmp_path / "backups"))
    settings = settings_at(tmp_path / "root").model_copy(update={"backup": kept})
    away = open_database(f"sqlite:///{tmp_path / 'gone' / 'dicomnode.sqlite'}")

    with capture_logs() as logs:
        HousekeepingService(settings, away, time.time).back_up()

    assert [line["event"] for line in logs] == ["backup.failed"]
    assert not (tmp_path / "backups").exists()
    away.close()


def test_a_node_is_verified_by_its_own_rows(house: House) -> None:
    furnish(house)
    count, differences = verify_node(house.store, house.database)
    doomed = {row["path"] for row in fetch_all(house.database)["doomed_files"]}
    kept = house.files("store", "outputs") - doomed
    assert (count, differences) == (len(kept), [])
    spoiled, missing = sorted(kept & house.files("store"))[:2]
    spoil(house.root / spoiled)
    (house.root / missing).unlink()
    made = sorted(house.files("outputs"))[0]
    spoil(house.root / made)
    stranger = f"store/00/{'0' * 32}.dcm"
    (house.root / stranger).touch()
    differences = verify_node(house.store, house.database)[1]
    assert {one.path for one in differences} == {spoiled, missing, made, stranger}
    assert Difference(stranger, "no row names it") in differences
