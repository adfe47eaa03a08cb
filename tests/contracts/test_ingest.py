"""From bytes to a durable, indexed file, on both databases; and back in step after every kind of break."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Connection, event, select
from sqlalchemy.exc import OperationalError

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
from dicomnode.receive.intake import Intake, Sender
from dicomnode.receive.spool import Spool, open_spool
from dicomnode.settings import LimitSettings
from tests.peers_programs import data_set_bytes
from tests.receiving import MR, PT, ROOT, encode, make_data_set, nested_sequences

LIMITS = LimitSettings(disk_reserve_bytes=0)
NOW = 1000.0


@dataclass
class Bench:
    """A store, a spool and a sender on one database."""

    store: Store
    database: Database
    spool: Spool
    sender: Sender

    def send(self, request: StoreRequest, limits: LimitSettings = LIMITS) -> Recorded:
        return ingest(Intake(self.spool, self.database), request, self.sender, limits=limits, now=NOW)

    def files(self, folder: str) -> list[Path]:
        return sorted((self.store.root / folder).rglob("*.dcm"))

    def count(self, table: object) -> int:
        with self.database.read() as connection:
            return len(connection.execute(select(table)).all())  # type: ignore[call-overload]  # any table

    def is_untouched(self) -> bool:
        nothing = not any(self.files(folder) for folder in ("spool", "store", "conflicts"))
        return nothing and not any(self.count(table) for table in (instances, series, conflicts))


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Iterator[Bench]:
    store = Store(tmp_path / "root")
    spool = open_spool(store, database, NOW)
    yield Bench(store, database, spool, Sender("SCANNER", "10.1.2.8", may_store=True, opened_at=900.0))
    if not spool.lock.closed:
        spool.lock.close()


def make_request(number: int = 1, description: str = "T1 brain") -> StoreRequest:
    data = encode(make_data_set(number, SeriesDescription=description))
    return StoreRequest(MR, f"{ROOT}.3.{number}", MR, ExplicitVRLittleEndian, data)


def test_an_instance_is_stored_bit_for_bit(bench: Bench) -> None:
    request = make_request()
    assert bench.send(request) is Recorded.NEW
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
    assert (association.node, association.opened_at, association.closed_at) == (bench.spool.node, 900.0, None)


def test_identical_bytes_change_nothing_on_disk(bench: Bench) -> None:
    bench.send(make_request())
    (path,) = bench.files("store")
    before = path.stat()
    assert bench.send(make_request()) is Recorded.IDENTICAL
    assert (bench.files("store"), bench.files("spool"), bench.files("conflicts")) == ([path], [], [])
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_other_content_is_kept_apart_once_and_refused(bench: Bench) -> None:
    first, other = make_request(), make_request(1, "another")
    bench.send(first)
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
    folder = bench.store.spool_folder(bench.spool.node)
    folder.rename(folder.with_name("away"))
    with pytest.raises(StorageFailedError, match="No such file or directory"):
        bench.send(make_request())
    folder.with_name("away").rename(folder)
    assert bench.is_untouched()


def test_a_failed_move_loses_nothing(bench: Bench) -> None:
    store_folder = bench.store.root / "store"
    store_folder.rename(bench.store.root / "away")
    with pytest.raises(StorageFailedError):
        bench.send(make_request())
    (bench.store.root / "away").rename(store_folder)
    with bench.database.read() as connection:
        name = connection.execute(select(instances.c.file_name)).scalar_one()
    assert data_set_bytes(bench.store.find_instance(name).read_bytes()) == make_request().data
    assert bench.send(make_request()) is Recorded.IDENTICAL
    bench.spool.close(bench.database, NOW)
    assert bench.files("store") == [bench.store.instance_path(name)]


def test_an_indexed_file_that_is_gone_is_replaced_by_its_like(bench: Bench) -> None:
    bench.send(make_request())
    (path,) = bench.files("store")
    path.unlink()
    assert bench.send(make_request()) is Recorded.IDENTICAL
    assert data_set_bytes(path.read_bytes()) == make_request().data
    assert bench.files("spool") == []


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_lost_answer_of_the_database_keeps_file_and_row_in_step(bench: Bench, is_committed: bool) -> None:
    bench.send(make_request(1))

    def lose_answer(connection: Connection) -> None:
        if is_committed:
            connection.connection.commit()
        raise OperationalError("COMMIT", {}, Exception("the connection is gone"))

    event.listen(bench.database.engine, "commit", lose_answer, once=True)
    with pytest.raises(DatabaseUnavailableError):
        bench.send(make_request(2))
    assert bench.count(instances) == len(bench.files("store")) == (2 if is_committed else 1)
    assert bench.files("spool") == []
    assert bench.send(make_request(2)) is (Recorded.IDENTICAL if is_committed else Recorded.NEW)
    assert bench.count(instances) == len(bench.files("store")) == 2


def test_a_database_that_is_away_leaves_the_file_to_the_next_start(bench: Bench) -> None:
    def refuse(connection: Connection) -> None:
        raise OperationalError("BEGIN", {}, Exception("the connection is gone"))

    event.listen(bench.database.engine, "begin", refuse)
    with pytest.raises(DatabaseUnavailableError):
        bench.send(make_request())
    event.remove(bench.database.engine, "begin", refuse)
    assert len(bench.files("spool")) == 1
    bench.spool.lock.close()
    open_spool(bench.store, bench.database, NOW).lock.close()
    assert bench.is_untouched()


def test_after_a_crash_files_and_rows_are_put_in_step(bench: Bench) -> None:
    bench.send(make_request(1))
    bench.send(make_request(2))
    with pytest.raises(InstanceConflictError):
        bench.send(make_request(1, "another"))
    moved, conflict = bench.files("store")[0], bench.files("conflicts")[0]
    folder = bench.store.spool_folder(bench.spool.node)
    moved.rename(folder / moved.name)  # as if the process had died before it moved them
    conflict.rename(folder / conflict.name)
    (folder / make_file_name()).write_bytes(b"half an inst")
    bench.spool.lock.close()

    spool = open_spool(bench.store, bench.database, 2000.0)

    assert moved in bench.files("store")
    assert bench.files("conflicts") == [conflict]
    assert bench.files("spool") == []
    assert [path.name for path in bench.store.spool_root.iterdir() if path.is_dir()] == [spool.node]
    with bench.database.read() as connection:
        assert connection.execute(select(associations.c.closed_at)).scalar_one() == 2000.0
    spool.lock.close()


def test_the_spool_of_a_living_process_is_left_alone(bench: Bench, database_url: str, repository: Path) -> None:
    bench.send(make_request(1))
    bench.spool.lock.close()
    program = (
        "import sys; from pathlib import Path; from dicomnode.database.engine import open_database;"
        "from dicomnode.database.store import Store; from dicomnode.receive.spool import open_spool;"
        "spool = open_spool(Store(Path(sys.argv[1])), open_database(sys.argv[2]), 1.0);"
        "print(spool.node, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(bench.store.root), database_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        node = other.stdout.readline().strip()
        under_way = bench.store.spool_path(node, make_file_name())
        under_way.write_bytes(b"half an inst")

        open_spool(bench.store, bench.database, NOW).close(bench.database, NOW)
        assert under_way.exists()

        other.kill()
        other.wait(10)
        open_spool(bench.store, bench.database, NOW).close(bench.database, NOW)
        assert not under_way.exists()


def test_a_closed_spool_leaves_no_folder_and_no_open_association(bench: Bench) -> None:
    bench.send(make_request())
    bench.spool.close(bench.database, 3000.0)
    assert [path.name for path in bench.store.spool_root.iterdir()] == ["lock"]
    with bench.database.read() as connection:
        assert connection.execute(select(associations.c.closed_at)).scalar_one() == 3000.0


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
        spool = open_spool(Store(disk), database, NOW)
        bench = Bench(Store(disk), database, spool, Sender("SCANNER", "10.1.2.8", may_store=True, opened_at=900.0))
        bench.send(make_request(1))
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
        assert bench.send(make_request(2)) is Recorded.NEW
        spool.close(database, NOW)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
