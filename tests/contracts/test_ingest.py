"""From bytes to a durable, indexed file, on both databases; and back in step after every kind of break."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Connection, delete, event, func, insert, select
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from dicomnode.database.engine import Database
from dicomnode.database.index import Recorded
from dicomnode.database.schema import associations, conflicts, instances, series
from dicomnode.database.store import Store, make_file_name
from dicomnode.errors import (
    DatabaseUnavailableError,
    DicomnodeError,
    InstanceConflictError,
    InstanceNotUnderstoodError,
    LimitExceededError,
    NotAuthorisedError,
    SopClassMismatchError,
    SopClassNotSupportedError,
    StorageFailedError,
    StorageFullError,
)
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.receive.ingest import StoreRequest, ingest
from dicomnode.receive.intake import Intake
from dicomnode.receive.part10 import FileMeta, encode_head, read_whole
from dicomnode.receive.recording import Sender
from dicomnode.receive.recovery import close_spool, open_spool, settle_dead_spools
from dicomnode.receive.spool import Spool
from dicomnode.settings_limits import LimitSettings
from tests.peers_programs import data_set_bytes
from tests.receiving import MR, PT, ROOT, encode, make_data_set, nested_sequences
from tests.storage_scp import find_spooled
from tests.waiting import wait_until

LIMITS = LimitSettings(disk_reserve_bytes=0)
NOW = 1000.0


@dataclass
class Bench:
    """A store, an intake and a sender on one database."""

    store: Store
    database: Database
    intake: Intake
    sender: Sender

    def send(self, request: StoreRequest, limits: LimitSettings = LIMITS) -> Recorded:
        return ingest(self.intake, request, self.sender, limits=limits, now=NOW)

    def send_and_flush(self, request: StoreRequest) -> Recorded:
        """Send, and wait until the row is there and the file in its place."""
        sent = self.send(request)
        wait_until(lambda: self.sender.unrecorded == 0, 10, "the row")
        return sent

    @property
    def spool_folder(self) -> Path:
        return self.intake.spool.folder

    def files(self, folder: str) -> list[Path]:
        """Return the files in `store`, `conflicts` or `spool` that hold something."""
        return find_spooled(self.store) if folder == "spool" else sorted((self.store.root / folder).rglob("*.dcm"))

    def count(self, table: object) -> int:
        with self.database.read() as connection:
            return len(connection.execute(select(table)).all())  # type: ignore[call-overload]  # any table

    def is_untouched(self) -> bool:
        nothing = not any(self.files(folder) for folder in ("spool", "store", "conflicts"))
        return nothing and not any(self.count(table) for table in (instances, series, conflicts))

    def crash(self) -> None:
        """Let go of everything as the end of the process would."""
        self.intake.spool.lock.close()

    def restart(self, now: float = NOW) -> None:
        """Begin again, as the next process does."""
        self.intake = Intake(open_spool(self.store, self.database, now), self.database)


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Iterator[Bench]:
    store = Store(tmp_path / "root")
    sender = Sender("SCANNER", "10.1.2.8", may_store=True, opened_at=900.0)
    bench = Bench(store, database, Intake(open_spool(store, database, NOW), database), sender)
    first = bench.intake
    yield bench
    for intake in {id(intake): intake for intake in (first, bench.intake)}.values():
        intake.stop()
        intake.spool.lock.close()


def make_request(number: int = 1, description: str = "T1 brain") -> StoreRequest:
    data = encode(make_data_set(number, SeriesDescription=description))
    return StoreRequest(MR, f"{ROOT}.3.{number}", MR, ExplicitVRLittleEndian, data)


def test_an_instance_is_stored_bit_for_bit(bench: Bench) -> None:
    request = make_request()
    assert bench.send_and_flush(request) is Recorded.NEW
    (path,) = bench.files("store")
    assert data_set_bytes(path.read_bytes()) == request.data
    meta = dcmread(path).file_meta
    assert meta.MediaStorageSOPClassUID == MR
    assert meta.MediaStorageSOPInstanceUID == request.sop_instance_uid
    assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert meta.SourceApplicationEntityTitle == "SCANNER"
    assert bench.files("spool") == []
    with bench.database.read() as connection:
        row = connection.execute(select(instances)).one()
        association = connection.execute(select(associations)).one()
    assert bench.store.instance_path(row.file_name) == path
    assert (row.size_bytes, row.received_at) == (len(request.data), NOW)
    assert (association.node, association.opened_at, association.closed_at) == (bench.intake.spool.node, 900.0, None)


def test_identical_bytes_change_nothing_on_disk(bench: Bench) -> None:
    bench.send_and_flush(make_request())
    (path,) = bench.files("store")
    before = path.stat()
    assert bench.send(make_request()) is Recorded.IDENTICAL
    assert (bench.files("store"), bench.files("spool"), bench.files("conflicts")) == ([path], [], [])
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_other_content_is_kept_apart_once_and_refused(bench: Bench) -> None:
    first, other = make_request(), make_request(1, "another")
    bench.send_and_flush(first)
    for _ in range(3):
        with pytest.raises(InstanceConflictError, match="stored already"):
            bench.send(other)
    (kept,), (apart,) = bench.files("store"), bench.files("conflicts")
    assert data_set_bytes(kept.read_bytes()) == first.data
    assert data_set_bytes(apart.read_bytes()) == other.data
    assert (bench.files("spool"), bench.count(conflicts)) == ([], 1)


def replaced(request: StoreRequest, **changes: object) -> StoreRequest:
    return StoreRequest(**{**vars(request), **changes})


@pytest.mark.parametrize(
    ("request_", "error", "status"),
    [
        (replaced(make_request(), data=b"this is not DICOM at all"), InstanceNotUnderstoodError, 0xC000),
        (replaced(make_request(), data=make_request().data[:-7]), InstanceNotUnderstoodError, 0xC000),
        (replaced(make_request(), data=b""), InstanceNotUnderstoodError, 0xC000),
        (replaced(make_request(), sop_instance_uid="../../../../tmp/x"), SopClassMismatchError, 0xA900),
        (replaced(make_request(), sop_class_uid=PT, context_sop_class_uid=PT), SopClassMismatchError, 0xA900),
        (replaced(make_request(), context_sop_class_uid=PT), SopClassNotSupportedError, 0x0122),
    ],
    ids=["no dicom", "truncated", "empty", "instance", "class", "context"],
)
def test_what_is_refused_leaves_nothing(
    bench: Bench, request_: StoreRequest, error: type[DicomnodeError], status: int
) -> None:
    with pytest.raises(error) as found:
        bench.send(request_)
    assert found.value.store_status == status
    assert bench.is_untouched()


def test_who_may_not_store_stores_nothing(bench: Bench) -> None:
    bench.sender.may_store = False
    with pytest.raises(NotAuthorisedError, match=r"'SCANNER' at 10\.1\.2\.8"):
        bench.send(make_request())
    assert bench.is_untouched()


def test_the_reserve_refuses_and_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(StorageFullError):
        bench.send(make_request(), LimitSettings(disk_reserve_bytes=1 << 60))
    assert bench.is_untouched()


def test_nesting_beyond_the_limit_ends_the_association_and_leaves_nothing(bench: Bench) -> None:
    request = make_request()
    nested = replace(request, data=request.data + nested_sequences(3))
    with pytest.raises(LimitExceededError, match="sequences nest deeper than 2 at byte") as caught:
        bench.send(nested, LimitSettings(disk_reserve_bytes=0, nesting_depth=2))
    assert caught.value.limit == "nesting_depth"
    assert bench.is_untouched()


def test_an_unwritable_spool_is_named_and_leaves_nothing(bench: Bench) -> None:
    folder = bench.spool_folder
    folder.rename(folder.with_name("away"))
    with pytest.raises(StorageFailedError, match="No such file or directory"):
        bench.send(make_request())
    folder.with_name("away").rename(folder)
    assert bench.is_untouched()
    assert bench.send_and_flush(make_request()) is Recorded.NEW


def test_of_files_that_cannot_all_be_made_none_is_left(tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    store.spool_folder("0" * 32).mkdir(parents=True)
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(40)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, most))
    for descriptor in free:
        os.close(descriptor)
    try:
        with (store.spool_root / "lock").open("wb") as lock:
            spool = Spool(store, "0" * 32, lock)
            with pytest.raises(StorageFullError, match="Too many open files"):
                spool.make_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    assert list(spool.folder.iterdir()) == []


def test_senders_that_find_the_spool_gone_at_once_wait_for_no_other(tmp_path: Path) -> None:
    store, at_once, done = Store(tmp_path / "root"), threading.Barrier(8), threading.Semaphore(0)
    store.spool_folder("0" * 32).mkdir(parents=True)
    with (store.spool_root / "lock").open("wb") as lock:
        spool = Spool(store, "0" * 32, lock)

        def close() -> None:
            at_once.wait(20)
            spool.close_files()
            done.release()

        for _ in range(5):
            spool.make_files()
            for _ in range(8):
                threading.Thread(target=close, daemon=True).start()
            assert all(done.acquire(timeout=20) for _ in range(8))


def test_a_failed_move_loses_nothing(bench: Bench) -> None:
    store_folder = bench.store.root / "store"
    store_folder.rename(bench.store.root / "away")
    assert bench.send_and_flush(make_request()) is Recorded.NEW
    (bench.store.root / "away").rename(store_folder)
    with bench.database.read() as connection:
        name = connection.execute(select(instances.c.file_name)).scalar_one()
    assert data_set_bytes(bench.store.find_instance(name).read_bytes()) == make_request().data
    assert bench.send(make_request()) is Recorded.IDENTICAL
    bench.intake.stop()
    close_spool(bench.intake.spool, bench.database, NOW)
    assert bench.files("store") == [bench.store.instance_path(name)]


def test_an_indexed_file_that_is_gone_is_replaced_by_its_like(bench: Bench) -> None:
    bench.send_and_flush(make_request())
    (path,) = bench.files("store")
    path.unlink()
    assert bench.send(make_request()) is Recorded.IDENTICAL
    assert data_set_bytes(path.read_bytes()) == make_request().data
    assert bench.files("spool") == []


@pytest.mark.parametrize("how", ["changed", "cut short", "emptied"])
def test_an_indexed_file_that_the_disk_has_changed_is_replaced_by_its_like(bench: Bench, how: str) -> None:
    bench.send_and_flush(make_request())
    (path,) = bench.files("store")
    whole = path.read_bytes()
    path.write_bytes({"changed": whole[:-1] + bytes([whole[-1] ^ 1]), "cut short": whole[:-2], "emptied": b""}[how])
    assert bench.send(make_request()) is Recorded.IDENTICAL
    assert data_set_bytes(path.read_bytes()) == make_request().data
    assert (bench.files("store"), bench.files("spool")) == ([path], [])


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_lost_answer_of_the_database_keeps_file_and_row_in_step(bench: Bench, is_committed: bool) -> None:
    bench.send_and_flush(make_request(1))

    def lose_answer(connection: Connection) -> None:
        if is_committed:
            connection.connection.commit()
        raise OperationalError("COMMIT", {}, Exception("the connection is gone"))

    event.listen(bench.database.engine, "commit", lose_answer, once=True)
    assert bench.send_and_flush(make_request(2)) is Recorded.NEW
    wait_until(lambda: len(bench.files("store")) == 2, 10, "the row to be written again")
    assert bench.count(instances) == 2
    assert bench.files("spool") == []
    assert bench.send(make_request(2)) is Recorded.IDENTICAL


def test_an_association_whose_row_s_commit_was_not_answered_has_one_row_and_is_closed(bench: Bench) -> None:
    def lose_answer(connection: Connection) -> None:
        connection.connection.commit()
        raise OperationalError("COMMIT", {}, Exception("the connection is gone"))

    event.listen(bench.database.engine, "commit", lose_answer, once=True)
    assert bench.send_and_flush(make_request()) is Recorded.NEW  # its first: the row is made with it
    bench.intake.close(bench.sender, 950.0)
    with bench.database.read() as connection:
        assert connection.execute(select(associations.c.closed_at)).scalars().all() == [950.0]


def test_an_association_is_closed_when_the_database_takes_rows_again_whatever_it_said(bench: Bench) -> None:
    def rename(old: str, new: str) -> None:
        with bench.database.write() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")

    bench.send_and_flush(make_request())
    rename("associations", "elsewhere")  # SQLite and PostgreSQL have other words, and other errors, for this
    try:
        with pytest.raises(DatabaseUnavailableError):
            bench.intake.close(bench.sender, 950.0)
    finally:
        rename("elsewhere", "associations")
    bench.intake.close(bench.sender, 960.0)
    with bench.database.read() as connection:
        assert connection.execute(select(associations.c.closed_at)).scalars().all() == [960.0]


def refuse(_connection: Connection) -> None:
    raise OperationalError("BEGIN", {}, Exception("the connection is gone"))


@contextmanager
def no_database(database: Database, stage: str = "begin") -> Iterator[None]:
    """Refuse every transaction, or every connection (`engine_connect`)."""
    event.listen(database.engine, stage, refuse)
    yield
    event.remove(database.engine, stage, refuse)


def test_a_database_that_does_not_answer_refuses_and_leaves_nothing(bench: Bench) -> None:
    with no_database(bench.database, "engine_connect"), pytest.raises(DatabaseUnavailableError):
        bench.send(make_request())
    assert bench.is_untouched()
    assert bench.send_and_flush(make_request()) is Recorded.NEW


def test_what_was_answered_has_its_row_when_the_database_is_back(bench: Bench) -> None:
    bench.send_and_flush(make_request(1))  # the look for known UIDs has its connection
    with no_database(bench.database):
        assert bench.send(make_request(2)) is Recorded.NEW
        wait_until(lambda: bench.intake._failure is not None, 10, "a commit that failed")
        assert len(bench.files("spool")) == 1
        with pytest.raises(DatabaseUnavailableError, match="rows wait"):  # whether it is the same, nobody knows yet
            bench.send(make_request(2))
    wait_until(lambda: bench.files("spool") == [], 10, "the row to be written")
    assert (bench.count(instances), len(bench.files("store"))) == (2, 2)


def test_a_start_finishes_what_was_answered(bench: Bench) -> None:
    bench.send_and_flush(make_request(1))
    with no_database(bench.database):
        for number in (2, 3):
            bench.send(make_request(number))
        bench.intake.stop()
    bench.crash()
    (bench.spool_folder / make_file_name().removesuffix(".dcm")).write_bytes(b"")
    torn = bench.files("spool")[0].with_name(make_file_name().removesuffix(".dcm"))
    torn.write_bytes(bench.files("spool")[0].read_bytes()[:-1])

    bench.restart(2000.0)

    with bench.database.read() as connection:
        rows = connection.execute(select(instances).order_by(instances.c.sop_instance_uid)).all()
        (association,) = connection.execute(select(associations)).all()
    assert [row.sop_instance_uid for row in rows] == [f"{ROOT}.3.{number}" for number in (1, 2, 3)]
    assert {row.association_id for row in rows} == {association.id}
    assert (association.calling_ae, association.address) == ("SCANNER", "10.1.2.8")
    assert (association.opened_at, association.closed_at) == (900.0, 2000.0)
    assert {row.received_at for row in rows} == {NOW}
    for number, row in enumerate(rows, start=1):
        file = bench.store.instance_path(row.file_name)
        assert data_set_bytes(file.read_bytes()) == make_request(number).data
        assert (row.size_bytes, row.sha256) == (
            len(make_request(number).data),
            sha256(make_request(number).data).hexdigest(),
        )
    assert bench.files("spool") == []
    assert [path for path in bench.store.spool_root.iterdir() if path.is_dir()] == [bench.spool_folder]


def test_a_start_takes_what_was_answered_however_deep_it_nests(bench: Bench) -> None:
    deep = LimitSettings(disk_reserve_bytes=0, nesting_depth=300)
    request = make_request()
    nested = replace(request, data=request.data + nested_sequences(200))
    bench.send_and_flush(make_request(2))
    with no_database(bench.database):
        assert bench.send(nested, deep) is Recorded.NEW
        bench.intake.stop()
    bench.crash()
    bench.restart()
    assert (bench.count(instances), bench.files("spool")) == (2, [])


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_file_that_has_to_stay_leaves_no_association_open(bench: Bench, is_closed: bool) -> None:
    bench.send_and_flush(make_request(1))
    bench.send_and_flush(make_request(2))
    nowhere = bench.files("store")[0]
    with bench.database.write() as connection:
        connection.execute(delete(instances).where(instances.c.file_name == nowhere.name))
    stays = bench.spool_folder / nowhere.stem
    stays.write_bytes(without_series(nowhere))
    nowhere.unlink()
    if is_closed:
        bench.intake.stop()
        close_spool(bench.intake.spool, bench.database, 2000.0)
    else:
        bench.crash()
        bench.restart(2000.0)
    assert stays.exists()
    with bench.database.read() as connection:
        assert connection.execute(select(associations.c.closed_at)).scalars().all() == [2000.0]


def without_series(path: Path) -> bytes:
    """Return a whole file of ours whose instance another version of this software may have understood."""
    with path.open("rb") as file:
        whole = read_whole(file)
    assert whole is not None
    data = encode(make_data_set(1, SeriesInstanceUID=None))
    meta = FileMeta(MR, f"{ROOT}.3.1", whole.transfer_syntax_uid, whole.calling_ae)
    return encode_head(meta, whole.origin, len(data), sha256(data).digest()) + data


def test_a_file_that_cannot_be_read_stays_and_keeps_no_node_from_starting(bench: Bench) -> None:
    bad = bench.spool_folder / make_file_name().removesuffix(".dcm")
    bad.mkdir()  # as with a bad sector, it is there and cannot be read
    (bad / "inside").touch()
    bench.crash()
    with capture_logs() as logs:
        bench.restart()
    assert bad.is_dir()
    assert [(row["file_name"], row["why"]) for row in logs if row["event"] == "receive.unindexed"] == [
        (f"{bad.name}.dcm", "Is a directory")
    ]
    assert bench.send_and_flush(make_request()) is Recorded.NEW


@pytest.mark.parametrize("at", ["magic", "record", "file meta", "data set"])
def test_a_file_that_is_not_whole_is_thrown_away(bench: Bench, at: str) -> None:
    bench.send_and_flush(make_request())
    (file,) = bench.files("store")
    whole = file.read_bytes()
    bench.crash()
    place = {"magic": 0, "record": 60, "file meta": 300, "data set": len(whole) - 1}[at]
    changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    (bench.spool_folder / make_file_name().removesuffix(".dcm")).write_bytes(changed)
    with capture_logs() as logs:
        bench.restart()
    assert bench.files("store") == [file]
    assert (bench.files("spool"), bench.files("conflicts"), bench.count(instances)) == ([], [], 1)
    assert [(row["event"], row["files"]) for row in logs] == [("receive.discarded", 1)]


@pytest.mark.parametrize("kind", ["identical", "conflict"])
def test_a_start_judges_a_uid_that_is_known_again(bench: Bench, kind: str) -> None:
    first, other = make_request(), make_request(1, "another")
    bench.send_and_flush(first)
    with pytest.raises(InstanceConflictError):
        bench.send(other)
    (kept,), (apart,) = bench.files("store"), bench.files("conflicts")
    bench.crash()
    copied = (kept if kind == "identical" else apart).read_bytes()
    (bench.spool_folder / make_file_name().removesuffix(".dcm")).write_bytes(copied)
    bench.restart()
    assert (bench.files("store"), bench.files("conflicts"), bench.files("spool")) == ([kept], [apart], [])


def test_after_a_crash_files_and_rows_are_put_in_step(bench: Bench) -> None:
    bench.send_and_flush(make_request(1))
    bench.send_and_flush(make_request(2))
    with pytest.raises(InstanceConflictError):
        bench.send(make_request(1, "another"))
    moved, conflict = bench.files("store")[0], bench.files("conflicts")[0]
    for path in (moved, conflict):  # as if the process had died before it moved them
        path.rename(bench.spool_folder / path.stem)
    bench.crash()
    bench.restart(2000.0)
    assert moved in bench.files("store")
    assert bench.files("conflicts") == [conflict]
    assert bench.files("spool") == []
    with bench.database.read() as connection:
        assert connection.execute(select(associations.c.closed_at)).scalar_one() == 2000.0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_a_start_does_after_a_crash_does_not_grow_with_the_archive(bench: Bench) -> None:
    few = _watch_a_start_after_a_crash(bench, 1)
    _archive(bench.database, 4000)
    many = _watch_a_start_after_a_crash(bench, 3)

    assert many.paths == few.paths
    assert many.hundred_steps < few.hundred_steps + 10


@dataclass(frozen=True)
class Watched:
    """What a start did: how many files it opened and folders it listed, and hundreds of steps of SQLite's machine."""

    paths: int
    hundred_steps: int


def _watch_a_start_after_a_crash(bench: Bench, number: int) -> Watched:
    """Let a process die that left one file without a row, and one whose row is there in the wrong place."""
    before = set(bench.files("store"))
    bench.send_and_flush(make_request(number))
    bench.send_and_flush(make_request(number + 1))
    for path, has_row in zip(set(bench.files("store")) - before, (True, False), strict=True):
        path.rename(bench.spool_folder / path.stem)
        if not has_row:
            with bench.database.write() as connection:
                connection.execute(delete(instances).where(instances.c.file_name == path.name))
    bench.crash()
    paths, steps = [], []
    is_watching = True

    def see(what: str, arguments: tuple[Any, ...]) -> None:
        if is_watching and what in ("open", "os.listdir", "os.scandir"):
            paths.append(str(arguments[0]))

    def watch(connection: Any, *_: object) -> None:
        connection.set_progress_handler(lambda: steps.append(1), 100)

    sys.addaudithook(see)  # for as long as this process lives
    event.listen(bench.database.engine, "checkout", watch)
    spool = open_spool(bench.store, bench.database, NOW)
    is_watching = False
    event.remove(bench.database.engine, "checkout", watch)
    watched = Watched(sum(str(bench.store.root) in path for path in paths), len(steps))
    bench.intake = Intake(spool, bench.database)
    bench.sender.association_id = None
    return watched


def _archive(database: Database, count: int) -> None:
    """Add rows as of instances that came long ago, each over an association of its own."""
    with database.write() as connection:
        known = dict(connection.execute(select(instances)).mappings().first() or {})
        came = dict(connection.execute(select(associations)).mappings().first() or {})
        first = 1 + connection.execute(select(func.max(associations.c.id))).scalar_one()
        rows = range(first, first + count)
        times = [{"opened_at": float(row), "closed_at": NOW} for row in rows]
        connection.execute(insert(associations), [came | {"id": row} | at for row, at in zip(rows, times, strict=True)])
        named = [{"sop_instance_uid": f"1.2.{row}", "file_name": make_file_name()} for row in rows]
        kept = [{**known, "id": 10**6 + row, "association_id": row} for row in rows]
        connection.execute(insert(instances), [one | name for one, name in zip(kept, named, strict=True)])


def test_the_spool_of_a_living_process_is_left_alone(bench: Bench, database_url: str, repository: Path) -> None:
    bench.send_and_flush(make_request(1))
    bench.crash()
    program = (
        "import sys; from pathlib import Path; from dicomnode.database.engine import open_database;"
        "from dicomnode.database.store import Store; from dicomnode.receive.recovery import open_spool;"
        "spool = open_spool(Store(Path(sys.argv[1])), open_database(sys.argv[2]), 1.0);"
        "print(spool.node, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(bench.store.root), database_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        node = other.stdout.readline().strip()
        under_way = bench.store.spool_folder(node) / make_file_name().removesuffix(".dcm")
        under_way.write_bytes(b"half an inst")

        close_spool(open_spool(bench.store, bench.database, NOW), bench.database, NOW)
        assert under_way.exists()

        other.kill()
        other.wait(10)
        close_spool(open_spool(bench.store, bench.database, NOW), bench.database, NOW)
        assert not under_way.exists()


def test_a_closed_spool_leaves_no_folder_and_no_open_association(bench: Bench) -> None:
    bench.send(make_request())
    bench.intake.stop()
    close_spool(bench.intake.spool, bench.database, 3000.0)
    assert [path.name for path in bench.store.spool_root.iterdir()] == ["lock"]
    assert bench.count(instances) == 1
    with bench.database.read() as connection:
        assert connection.execute(select(associations.c.closed_at)).scalar_one() == 3000.0


def kept_spools(logs: list[Any]) -> list[str]:
    return [row["folder"] for row in logs if row["event"] == "receive.spool_kept"]


@pytest.mark.parametrize("how", ["start", "stop"])
def test_a_spool_with_a_file_that_is_none_of_ours_is_left_and_named_once(bench: Bench, how: str) -> None:
    bench.send(make_request())
    folder = bench.spool_folder
    (folder / "Doe^Jane.txt").write_bytes(b"somebody put it here")
    with capture_logs() as logs:
        if how == "stop":
            bench.intake.stop()
            close_spool(bench.intake.spool, bench.database, NOW)
        else:
            bench.crash()
            bench.restart()
        for _ in range(2):
            settle_dead_spools(bench.store, bench.database, NOW)
    assert [path.name for path in folder.iterdir()] == ["Doe^Jane.txt"]
    assert kept_spools(logs) == [str(folder)]
    assert "Doe" not in str(logs)
    bench.crash()
    with capture_logs() as logs:
        bench.restart()
    assert kept_spools(logs) == []
    assert bench.send_and_flush(make_request(2)) is Recorded.NEW


def test_a_folder_beside_the_spools_is_left_alone(bench: Bench) -> None:
    (bench.store.spool_root / "lost+found").mkdir()
    bench.crash()
    bench.restart()
    assert bench.send_and_flush(make_request()) is Recorded.NEW


def test_a_spool_that_cannot_be_locked_is_named_in_a_line(bench: Bench) -> None:
    lock = bench.store.spool_root / "lock"
    lock.unlink()
    lock.mkdir()
    with pytest.raises(StorageFailedError, match=rf"^{lock}: Is a directory$"):
        open_spool(bench.store, bench.database, NOW)
    bench.store.spool_root.rename(bench.store.root / "away")
    for settle in (settle_dead_spools, lambda *rest: close_spool(bench.intake.spool, *rest[1:])):
        with pytest.raises(StorageFailedError, match=rf"^{lock}: No such file or directory$"):
            settle(bench.store, bench.database, NOW)


def test_a_storage_root_that_cannot_be_made_is_named(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailedError, match=r"storage root .*file/root: .*; it must be writable"):
        open_spool(Store(tmp_path / "file" / "root"), database, NOW)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_refuses_and_leaves_nothing(database: Database, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a full disk: run as root, which may mount a small tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        bench = Bench(
            Store(disk),
            database,
            Intake(open_spool(Store(disk), database, NOW), database),
            Sender("SCANNER", "10.1.2.8", may_store=True, opened_at=900.0),
        )
        bench.send_and_flush(make_request(1))
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        with pytest.raises(StorageFullError, match="bytes are free"):
            bench.send(make_request(2))
        # The look at the free space can be overtaken by another writer: then the write itself fails.
        with pytest.raises(StorageFullError, match="No space left"):
            bench.send(
                make_request(2), LimitSettings.model_construct(disk_reserve_bytes=-1 << 40, data_set_bytes=1 << 30)
            )
        assert bench.files("spool") == []
        assert (bench.count(instances), len(bench.files("store"))) == (1, 1)
        filler.unlink()
        assert bench.send_and_flush(make_request(2)) is Recorded.NEW
        bench.intake.stop()
        close_spool(bench.intake.spool, database, NOW)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
