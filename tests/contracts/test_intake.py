"""Who waits for what: answers do not wait for rows, rows share commits, and one UID is stored once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, select

from dicomnode.database.engine import Database
from dicomnode.database.index import Recorded
from dicomnode.database.schema import associations, conflicts, instances
from dicomnode.database.store import Store
from dicomnode.errors import DatabaseUnavailableError, InstanceConflictError, StorageFailedError
from dicomnode.receive import intake as intake_module
from dicomnode.receive.ingest import StoreRequest, ingest
from dicomnode.receive.intake import Intake
from dicomnode.receive.recording import Sender
from dicomnode.receive.recovery import close_spool, open_spool
from dicomnode.settings_limits import LimitSettings
from tests.peers_programs import data_set_bytes
from tests.receiving import MR, ROOT, encode, make_data_set
from tests.waiting import wait_until

LIMITS = LimitSettings(disk_reserve_bytes=0)
LIMIT_S = 30.0
SENDERS = 8


@pytest.fixture
def intake(database: Database, tmp_path: Path) -> Iterator[Intake]:
    opened = Intake(open_spool(Store(tmp_path / "root"), database, 1.0), database)
    yield opened
    opened.stop()
    close_spool(opened.spool, database, 9.0)


def make_sender(opened_at: float = 1.0) -> Sender:
    return Sender("SCANNER", "10.1.2.8", may_store=True, opened_at=opened_at)


def make_request(number: int, description: str = "T1 brain") -> StoreRequest:
    data = encode(make_data_set(number, SeriesDescription=description))
    return StoreRequest(MR, f"{ROOT}.3.{number}", MR, "1.2.840.10008.1.2.1", data)


def send(intake: Intake, request: StoreRequest, sender: Sender) -> Recorded | type[Exception]:
    try:
        return ingest(intake, request, sender, limits=LIMITS, now=2.0)
    except (InstanceConflictError, DatabaseUnavailableError, StorageFailedError) as error:
        return type(error)


class Lock:
    """Keeps everybody else from writing to the database, inside the `with` block."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.free = threading.Event()
        self.asked = threading.Event()

    def __enter__(self) -> Lock:
        event.listen(self.database.engine, "begin", self._wait)
        return self

    def __exit__(self, *_error: object) -> None:
        self.free.set()  # the listener stays: who removes it disturbs who is just being told

    def _wait(self, _connection: Connection) -> None:
        self.asked.set()
        self.free.wait(LIMIT_S)


def test_an_answer_does_not_wait_for_its_row_and_rows_share_a_commit(intake: Intake) -> None:
    commits: list[Connection] = []
    event.listen(intake.database.engine, "commit", commits.append)
    senders = [make_sender(float(number)) for number in range(SENDERS)]
    with Lock(intake.database) as lock:
        assert send(intake, make_request(99), senders[0]) is Recorded.NEW
        assert lock.asked.wait(LIMIT_S)  # the first group has gone to be committed
        for number in range(5 * SENDERS):
            assert send(intake, make_request(number), senders[number % SENDERS]) is Recorded.NEW
        assert commits == []
    wait_until(lambda: not any(sender.unrecorded for sender in senders), LIMIT_S, "all rows")
    assert len(commits) == 2  # of the first, and of all the others
    with intake.database.read() as connection:
        rows = connection.execute(select(instances.c.sop_instance_uid, instances.c.association_id)).all()
        opened = {row.id: row.opened_at for row in connection.execute(select(associations))}
    assert len(rows) == 5 * SENDERS + 1
    by_uid = {row.sop_instance_uid: opened[row.association_id] for row in rows}
    assert all(by_uid[f"{ROOT}.3.{number}"] == float(number % SENDERS) for number in range(5 * SENDERS))


@pytest.mark.parametrize("is_same", [True, False])
def test_of_many_that_bring_one_uid_at_once_one_is_new(intake: Intake, is_same: bool) -> None:
    requests = [make_request(1, "same" if is_same else f"content {number}") for number in range(SENDERS)]
    with ThreadPoolExecutor(SENDERS) as pool:
        found = list(pool.map(lambda request: send(intake, request, make_sender()), requests))
    other = Recorded.IDENTICAL if is_same else InstanceConflictError
    assert sorted(map(str, found)) == sorted(map(str, [Recorded.NEW, *[other] * (SENDERS - 1)]))
    with intake.database.read() as connection:
        row = connection.execute(select(instances)).one()
        kept = connection.execute(select(conflicts.c.file_name)).scalars().all()
    stored = data_set_bytes(intake.spool.store.instance_path(row.file_name).read_bytes())
    assert stored == requests[found.index(Recorded.NEW)].data
    assert len(kept) == (0 if is_same else SENDERS - 1)
    assert {path.name for path in (intake.spool.store.root / "conflicts").iterdir()} == set(kept)


def test_a_uid_whose_first_bytes_could_not_be_written_is_free_again(intake: Intake) -> None:
    folder = intake.spool.folder
    folder.rename(folder.with_name("away"))
    assert send(intake, make_request(1), make_sender()) is StorageFailedError
    folder.with_name("away").rename(folder)
    assert send(intake, make_request(1), make_sender()) is Recorded.NEW


def test_without_a_thread_for_rows_nothing_is_stored_and_later_it_is(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sender = make_sender()
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        send(intake, make_request(1), sender)
    monkeypatch.undo()
    assert not any(path.stat().st_size for path in intake.spool.store.list_spool(intake.spool.node).values())
    assert send(intake, make_request(1), sender) is Recorded.NEW
    wait_until(lambda: sender.unrecorded == 0, LIMIT_S, "the row")


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_file_that_its_name_leads_to_no_more_is_not_answered_with_success(intake: Intake, how: str) -> None:
    sender = make_sender()
    assert send(intake, make_request(1), sender) is Recorded.NEW
    wait_until(lambda: sender.unrecorded == 0, LIMIT_S, "the row")
    folder = intake.spool.folder
    away = folder.with_name("away")
    if how == "moved":
        folder.rename(away)
    else:
        for path in intake.spool.store.list_spool(intake.spool.node).values():
            path.unlink()
            if how == "replaced":
                path.touch()
    assert send(intake, make_request(2), sender) is StorageFailedError
    if how == "moved":
        assert not [path for path in away.iterdir() if path.stat().st_size]
        away.rename(folder)
    assert send(intake, make_request(3), sender) is Recorded.NEW
    wait_until(lambda: sender.unrecorded == 0, LIMIT_S, "the row")
    with intake.database.read() as connection:
        stored = connection.execute(select(instances.c.sop_instance_uid)).scalars()
        assert sorted(stored) == [f"{ROOT}.3.1", f"{ROOT}.3.3"]


def test_no_more_wait_for_rows_than_a_start_can_put_in_order(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "UNRECORDED_MAX", 5)
    sender = make_sender()
    with Lock(intake.database) as lock, ThreadPoolExecutor(1) as pool:
        assert send(intake, make_request(0), sender) is Recorded.NEW
        assert lock.asked.wait(LIMIT_S)
        for number in range(1, 6):
            assert send(intake, make_request(number), sender) is Recorded.NEW
        late = pool.submit(send, intake, make_request(6), sender)
        assert not late.done()
        lock.free.set()
        assert late.result(LIMIT_S) is Recorded.NEW
    wait_until(lambda: sender.unrecorded == 0, LIMIT_S, "all rows")


def test_the_end_of_an_association_is_written_after_its_instances(intake: Intake) -> None:
    sender = make_sender()
    for number in range(3):
        send(intake, make_request(number), sender)
    intake.close(sender, 7.0)
    with intake.database.read() as connection:
        association = connection.execute(select(associations)).one()
        assert len(connection.execute(select(instances)).all()) == 3
    assert association.closed_at == 7.0


def test_who_stored_nothing_leaves_no_row(intake: Intake) -> None:
    intake.close(make_sender(), 7.0)
    with intake.database.read() as connection:
        assert connection.execute(select(associations)).all() == []


def test_files_made_beforehand_are_enough_and_closed_in_the_end(intake: Intake) -> None:
    sender = make_sender()
    for number in range(300):
        assert send(intake, make_request(number), sender) is Recorded.NEW
    wait_until(lambda: not intake.spool.is_short_of_files, LIMIT_S, "files for the next instances")
    open_before = count_open(intake.spool.folder)
    intake.stop()
    assert open_before >= 64
    assert count_open(intake.spool.folder) == 1  # the lock


def count_open(folder: Path) -> int:
    """Return how many files below a folder this process holds open."""
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(str(link.readlink()).startswith(str(folder)) for link in links if link.is_symlink())
