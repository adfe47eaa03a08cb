"""What goes, with its rows and files and never one without the other, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from dicomnode.commitment import Reference
from dicomnode.database.audit import fetch_messages
from dicomnode.database.commitment_requests import record_promises
from dicomnode.database.commitments import owe_commitments
from dicomnode.database.deletions import fetch_deletions, fetch_doomed
from dicomnode.database.engine import Database
from dicomnode.database.jobs import JobClaim, claim_job, fetch_job, move_claimed_job, record_outputs
from dicomnode.database.marks import BACKUP_LEASE_S, fetch_mark, hold_files, set_mark
from dicomnode.database.origins import fetch_made, fetch_origin
from dicomnode.database.outbox import claim_outbox, fetch_outbox, record_all_sent, record_dead, retry_outbox_row
from dicomnode.database.pairs import fetch_pairs
from dicomnode.database.schema import commitments, outputs
from dicomnode.database.series import fetch_instance_uids, fetch_series
from dicomnode.errors import InstanceConflictError, StateError, StorageFailedError
from dicomnode.housekeeping.retention import CLOCK, delete_due, fetch_subjects, remove_doomed
from dicomnode.housekeeping.rules import HOUR_S, Subject, Verdict, choose, judge_outputs, judge_series
from dicomnode.housekeeping.service import AT_MOST_S, HousekeepingService
from dicomnode.jobs.reprocess import reprocess_job
from dicomnode.outputs.compression import find_copy_path
from dicomnode.pairing import service as pairing
from dicomnode.pairing.decisions import reject_pair, request_pair, retry_job
from dicomnode.settings import NodeSettings, PairingSettings, Settings
from dicomnode.settings_keeping import KeepSettings, RetentionSettings
from dicomnode.settings_limits import LimitSettings
from dicomnode.settings_reporting import AuditSettings
from tests.house import DAY_S, SLICES, House, fetch_all
from tests.receiving import ROOT
from tests.rows import MR_CLASS, PET_CLASS, due

SOON = KeepSettings(days=2)
ALL = RetentionSettings(paired=SOON, unpaired=SOON, refused=SOON, failed=SOON, outputs=SOON, conflicts=SOON)
AUDIT = AuditSettings(file="/nowhere/audit.xml")  # nobody writes it here: its spool is what is looked at
PLENTY = 10**12
UNLINK_S = 3.0  # of a slow disk
HEAD = 8  # slices: fewer are refused


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "root", database) as opened:
        yield opened


def clean(house: House, settings: RetentionSettings = ALL, free_bytes: int = PLENTY) -> int:
    """Delete what may go, wholly; return how many things went."""
    told = Settings(retention=settings, audit=AUDIT, limits=LimitSettings(disk_reserve_bytes=0))
    deleted = delete_due(house.database, house.store, told, house.now, lambda: free_bytes)
    assert remove_doomed(house.database, house.store, house.now)
    return deleted


def make_all(house: House) -> dict[str, str]:
    """Bring one of each kind into the house; return the series by what became of them."""
    pair_id, mr, pet = house.pair(1)
    house.finish(pair_id)
    house.deliver()
    made = {"mr": mr, "pet": pet, "unpaired": house.receive("MR", 50), "refused": house.receive("MR", 51)}
    house.settle(made["unpaired"], "unpaired")
    house.settle(made["refused"], "refused", "too thin")
    with pytest.raises(InstanceConflictError):
        house.receive("MR", 50, description="corrected")
    return made


def test_what_is_too_old_goes_with_its_rows_and_files_and_what_it_was_stays_known(house: House) -> None:
    made = make_all(house)
    assert house.files() == house.named_files()
    house.now += 1.9 * DAY_S
    assert clean(house) == 0
    house.now += 0.2 * DAY_S

    assert clean(house) == 6

    assert house.files() == house.named_files() == set()
    assert {house.state_of(uid) for uid in made.values()} == {"deleted"}
    with house.database.read() as connection:
        series = fetch_series(connection, made["mr"])
        assert (series.row.reason, series.row.instance_count) == ("deleted: retention.paired.days = 2", 0)
        (result,) = fetch_made(connection, series.row.id)
        assert (result.other_series_uid, result.sent_to) == (made["pet"], ("pacs sent 2",))
        origin = fetch_origin(connection, result.series_uid)
        assert origin is not None
        assert origin.fixed_series_uid == made["mr"]
        log = fetch_deletions(connection)
    assert sorted((one.kind, one.files) for one in log) == [
        ("conflicts", 1),
        ("outputs", 2),
        ("paired", SLICES),
        ("paired", SLICES),
        ("refused", SLICES),
        ("unpaired", SLICES),
    ]
    assert all(one.done_at == house.now for one in log)


@pytest.mark.parametrize("moment", ["before the commit", "after the commit", "files half gone", "files gone"])
def test_a_crash_at_any_moment_leaves_no_file_without_a_row_nor_the_reverse(
    house: House, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_all(house)
    everything = house.files()
    house.now += 3 * DAY_S

    class PowerFailedError(Exception):
        pass

    def fail(*_: object) -> None:
        raise PowerFailedError

    if moment == "before the commit":
        monkeypatch.setattr("dicomnode.housekeeping.retention._tell", fail)
    elif moment == "files half gone":
        unlinked: list[Path] = []
        unlink = Path.unlink

        def unlink_some(path: Path, *, missing_ok: bool = False) -> None:
            if len(unlinked) == 3:
                raise PowerFailedError
            unlinked.append(path)
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink_some)
    elif moment == "files gone":
        monkeypatch.setattr("dicomnode.housekeeping.retention.record_gone", fail)
    if moment == "after the commit":
        delete_due(house.database, house.store, Settings(retention=ALL), house.now, lambda: PLENTY)
    else:
        with pytest.raises(PowerFailedError):
            clean(house)
    monkeypatch.undo()
    assert house.files() <= house.named_files()
    assert house.named_files() == everything

    clean(house)

    assert house.files() == house.named_files() == set()
    with house.database.read() as connection:
        assert fetch_doomed(connection, 0, 10) == {}
        assert all(one.done_at is not None for one in fetch_deletions(connection))


def test_what_changed_since_it_was_judged_stays(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = house.receive("MR", 50)
    house.settle(uid, "unpaired")
    house.now += 3 * DAY_S

    def choose_and_receive(*arguments: Any) -> tuple[Verdict, ...]:
        verdicts = choose(*arguments)
        house.receive("MR", 50, slices=SLICES + 1)
        return verdicts

    monkeypatch.setattr("dicomnode.housekeeping.retention.choose", choose_and_receive)
    assert clean(house) == 0
    assert house.state_of(uid) == "receiving"
    assert len(house.files("store")) == SLICES + 1


def test_while_a_backup_is_made_nothing_goes(house: House) -> None:
    make_all(house)
    house.now += 3 * DAY_S
    with house.database.write() as connection:
        hold_files(connection, house.now)
    assert clean(house) == 0
    house.now += BACKUP_LEASE_S
    assert clean(house) == 6


def test_a_deleted_series_that_comes_again_is_taken_again_and_makes_no_second_job(house: House) -> None:
    house.finish(house.pair(1, slices=HEAD)[0])
    house.deliver()
    house.now += 3 * DAY_S
    assert clean(house) == 3

    mr, pet = house.receive("MR", 10, slices=HEAD), house.receive("PT", 11, slices=HEAD)
    assert {house.state_of(uid) for uid in (mr, pet)} == {"receiving"}
    quiet = Settings(pairing=PairingSettings(series_quiet_period_s=1.0, study_quiet_period_s=1.0))
    for _ in range(3):
        house.now += 10.0
        pairing.step(house.database, quiet, house.now)

    assert {house.state_of(uid) for uid in (mr, pet)} == {"paired"}
    assert len(fetch_all(house.database)["jobs"]) == 1
    assert house.files() == house.named_files()


def test_a_deleted_series_is_no_partner_and_a_corrected_one_begins_anew(house: House) -> None:
    uid = house.receive("MR", 50, patient="P-1", slices=HEAD)
    house.settle(uid, "unpaired")
    house.now += 3 * DAY_S
    assert clean(house) == 1
    pet = house.receive("PT", 60, patient="P-1", slices=HEAD)
    quiet = Settings(pairing=PairingSettings(series_quiet_period_s=1.0, study_quiet_period_s=1.0))
    for _ in range(3):
        house.now += 10.0
        pairing.step(house.database, quiet, house.now)
    with house.database.read() as connection:
        assert fetch_pairs(connection) == []
    assert house.state_of(pet) == "unpaired"

    house.receive("MR", 50, patient="P-2")  # its ID was corrected at the source

    with house.database.read() as connection:
        found = fetch_series(connection, uid)
    assert (found.row.state, found.row.reason, found.patient.patient_id) == ("receiving", "", "P-2")


def test_what_was_deleted_is_neither_run_nor_paired_nor_sent_again(house: House) -> None:
    made = make_all(house)
    failed, mr, pet = house.pair(2)
    failed_job = house.finish(failed, state="failed", owed_to=())
    house.now += 3 * DAY_S
    clean(house)
    assert house.state_of(mr) == house.state_of(pet) == "deleted"

    with pytest.raises(StateError, match="were deleted; have it sent again"):
        retry_job(house.database, failed_job, house.now)
    with pytest.raises(StateError, match="were deleted; have it sent again"):
        reprocess_job(house.database, 1, house.now)
    with pytest.raises(StateError, match="were deleted; have it sent again"):
        request_pair(house.database, (made["mr"], pet), PairingSettings(), house.now)
    with house.database.read() as connection:
        assert fetch_job(connection, failed_job).state == "failed"


def test_what_a_person_rejected_goes_with_what_earlier_jobs_of_the_pair_made(house: House) -> None:
    pair_id, mr, pet = house.pair(1)
    first = house.finish(pair_id, state="review")
    second = reprocess_job(house.database, first, house.now)
    job = claim_job(house.database, house.now, 60.0)
    assert job is not None
    with house.database.write() as connection:
        move_claimed_job(connection, JobClaim(second, job.token), "review", finished_at=house.now)
    house.now += 3 * DAY_S
    assert clean(house) == 0

    reject_pair(house.database, pair_id, house.now)
    house.now += 3 * DAY_S

    assert clean(house) == 3
    assert (house.state_of(mr), house.state_of(pet), house.files()) == ("deleted", "deleted", set())


def test_a_dead_row_keeps_everything_and_a_deleted_file_is_not_owed_again(house: House) -> None:
    pair_id, mr, _ = house.pair(1)
    job_id = house.finish(pair_id)
    (first, second) = claim_outbox(house.database, due(now=house.now), 10)
    with house.database.write() as connection:
        record_dead(connection, first, "refused")
        record_dead(connection, second, "refused")
    house.now += 9 * DAY_S
    assert clean(house) == 0

    with house.database.write() as connection:
        connection.execute(update(outputs).values(deleted_at=house.now))
    told = f"its file was deleted; make it again: dicomnode jobs reprocess {job_id}"
    with pytest.raises(StateError, match=told), house.database.write() as connection:
        retry_outbox_row(connection, first.id, house.now)
    assert house.state_of(mr) == "paired"


def test_the_audit_trail_says_which_study_lost_what_and_why(house: House) -> None:
    made = make_all(house)
    house.now += 3 * DAY_S

    clean(house)

    with house.database.read() as connection:
        told = [message.text for message in fetch_messages(connection, "file", 100)]
    assert len(told) == len(made)
    assert all('csd-code="110105"' in text and "retention." in text for text in told)
    assert all(f'UID="{MR_CLASS}"' in text or f'UID="{PET_CLASS}"' in text for text in told)


def test_what_a_destination_has_not_committed_yet_stays(house: House) -> None:
    pair_id, _, _ = house.pair(1)
    house.finish(pair_id)
    rows = claim_outbox(house.database, due(now=house.now), 10)
    with house.database.write() as connection:
        record_all_sent(connection, rows, house.now, owes_commitment=True)
    house.now += 9 * DAY_S
    assert clean(house) == 0
    with house.database.write() as connection:
        owe_commitments(connection, "pacs", "archive", house.now)
    assert clean(house) == 0

    with house.database.write() as connection:
        connection.execute(update(commitments).values(state="dead"))  # given up: the destination did say Success

    assert clean(house) == 3


def named(house: House, series_uid: str) -> list[Reference]:
    """Return what a peer would ask to be committed of a series."""
    with house.database.read() as connection:
        uids = fetch_instance_uids(connection, fetch_series(connection, series_uid).row.id)
    return [Reference(MR_CLASS, uid) for uid in uids]


def promise(house: House, references: list[Reference]) -> set[str]:
    with house.database.write() as connection:
        return record_promises(connection, references, house.now)


def test_what_a_peer_was_told_is_kept_is_not_deleted_before_the_promise_has_ended(house: House) -> None:
    made = make_all(house)
    promised = named(house, made["unpaired"])
    house.now += DAY_S
    assert promise(house, promised) == {one.sop_instance_uid for one in promised}
    promise(house, [Reference(MR_CLASS, f"{ROOT}.9.1.1")])  # a result that somebody was sent
    house.now += 9 * DAY_S
    assert clean(house) == 4
    assert house.state_of(made["unpaired"]) == "unpaired"
    assert clean(house, ALL.model_copy(update={"committed_days": 9.0})) == 0
    house.now += 1.0
    assert clean(house, ALL.model_copy(update={"committed_days": 9.0})) == 2


def test_what_was_deleted_is_not_promised(house: House) -> None:
    made = make_all(house)
    everything = [*named(house, made["unpaired"]), Reference(MR_CLASS, f"{ROOT}.9.1.1")]
    house.now += 3 * DAY_S
    clean(house)
    assert promise(house, everything) == set()


@pytest.mark.parametrize("what", ["unpaired", "outputs"])
def test_of_a_promise_and_a_deletion_at_once_one_comes_too_late(
    house: House, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_all(house)
    wanted = {"unpaired": named(house, made["unpaired"]), "outputs": [Reference(MR_CLASS, f"{ROOT}.9.1.1")]}[what]
    place, judge = ("judge_series", judge_series) if what == "unpaired" else ("judge_outputs", judge_outputs)
    house.now += 3 * DAY_S
    promises: list[Future[set[str]]] = []
    with ThreadPoolExecutor(1) as threads:

        def judge_and_promise(facts: Any) -> Subject:
            """Let the promise come when the deletion has judged, as late as its locks let it."""
            found: Subject = judge(facts)
            if not promises and is_deleting:
                promises.append(threads.submit(promise, house, wanted))
                wait(promises, timeout=0.5)
            return found

        def choose_and_delete(*arguments: Any) -> tuple[Verdict, ...]:
            verdicts = choose(*arguments)
            is_deleting.append(True)
            return verdicts

        is_deleting: list[bool] = []
        monkeypatch.setattr(f"dicomnode.housekeeping.retention.{place}", judge_and_promise)
        monkeypatch.setattr("dicomnode.housekeeping.retention.choose", choose_and_delete)
        only = RetentionSettings().model_copy(update={what: SOON})
        assert clean(house, only) == 1
    assert [one.result() for one in promises] == [set()]


def test_compressed_copies_go_with_what_they_are_of(house: House) -> None:
    pair_id, _, _ = house.pair(1)
    job_id = house.finish(pair_id)
    house.deliver()
    copies = [find_copy_path(path, "jpeg-ls") for path in house.outputs(job_id)]
    for copy in copies:
        copy.write_bytes(b"a copy")
    house.now += 3 * DAY_S
    assert clean(house, RetentionSettings(outputs=SOON)) == 1
    assert house.files("outputs") == set()
    assert not house.store.outputs_folder(job_id).exists()


def test_a_result_that_is_made_again_after_it_was_deleted_has_its_file(house: House) -> None:
    pair_id, _, _ = house.pair(1)
    house.finish(pair_id)
    house.deliver()
    house.now += 3 * DAY_S
    clean(house, RetentionSettings(outputs=SOON))
    again = reprocess_job(house.database, 1, house.now)
    row = {**house._write_output(1, 1), "path": f"outputs/{again}/pt-0001.dcm"}

    with house.database.write() as connection:
        record_outputs(connection, again, [row])
        rows = fetch_outbox(connection)

    assert [
        (one.path, one.deleted_at, one.state) for one in rows if one.sop_instance_uid == row["sop_instance_uid"]
    ] == [(row["path"], None, "sent")]


def test_a_nearly_full_disk_is_emptied_of_what_is_delivered_until_enough_is_free(house: House) -> None:
    for number in (1, 2, 3):
        pair_id, _, _ = house.pair(number)
        house.finish(pair_id)
        house.deliver()
        house.now += 10.0
    lonely = house.receive("MR", 50)
    house.settle(lonely, "unpaired")
    house.now += 3 * DAY_S
    settings = RetentionSettings(free_start_bytes=1000, free_stop_bytes=1500)
    assert clean(house, settings, free_bytes=1000) == 0
    assert clean(house, settings, free_bytes=999) == 2  # 501 bytes: the outputs of the first job, and one series
    assert house.state_of(lonely) == "unpaired"
    assert clean(house, settings, free_bytes=0) == 1
    assert house.state_of(lonely) == "unpaired"
    assert clean(house, settings, free_bytes=-(10**6)) == 6


def make_service(house: House, moments: dict[str, float], settings: RetentionSettings) -> HousekeepingService:
    node = Settings(node=NodeSettings(storage_root=house.root), retention=settings)
    return HousekeepingService(node, house.database, house.clock, lambda: moments["monotonic"], lambda: PLENTY)


def test_a_clock_that_jumps_deletes_nothing_and_steady_time_does(house: House) -> None:
    made = make_all(house)
    moments = {"monotonic": 0.0}
    service = make_service(house, moments, ALL)

    def live(hours: float, jump_s: float = 0.0) -> None:
        house.now += jump_s
        for _ in range(int(hours * 2)):
            house.now += 1800.0
            moments["monotonic"] += 1800.0
            service.step()

    live(20)
    live(20, jump_s=3650 * DAY_S)
    assert house.state_of(made["mr"]) == "paired"
    live(20, jump_s=-3650 * DAY_S)
    service = make_service(house, moments, ALL)  # it starts again, on a machine whose clock went wrong meanwhile
    live(20, jump_s=3650 * DAY_S)
    assert {house.state_of(uid) for uid in made.values()} == {"paired", "unpaired", "refused"}
    live(20, jump_s=-3650 * DAY_S)
    assert {house.state_of(uid) for uid in made.values()} == {"paired", "unpaired", "refused"}
    live(6)
    assert {house.state_of(uid) for uid in made.values()} == {"deleted"}


def hook_unlink(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Let something happen whenever a file is removed."""
    unlink = Path.unlink

    def unlink_and_do(path: Path, *, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        do()

    monkeypatch.setattr(Path, "unlink", unlink_and_do)


def test_a_slow_disk_makes_a_step_no_longer_and_nothing_more_go(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = 4
    for number in range(1, pairs + 1):
        house.finish(house.pair(number)[0])
        house.deliver()
        house.now += 10.0
    house.now += 3 * DAY_S
    with house.database.write() as connection:
        set_mark(connection, CLOCK, at=house.now, until=0.0)
    moments = {"monotonic": 0.0}
    hook_unlink(monkeypatch, lambda: moments.update(monotonic=moments["monotonic"] + UNLINK_S))

    def measure_free_bytes() -> int:
        return room_bytes - sum((house.root / path).stat().st_size for path in house.files())

    room_bytes = 0
    room_bytes = -measure_free_bytes()
    wanted_bytes = room_bytes // 2
    retention = RetentionSettings(free_start_bytes=wanted_bytes, free_stop_bytes=wanted_bytes)
    limits = LimitSettings(disk_reserve_bytes=0)
    node = Settings(node=NodeSettings(storage_root=house.root), retention=retention, limits=limits)
    service = HousekeepingService(node, house.database, house.clock, lambda: moments["monotonic"], measure_free_bytes)
    service.step()
    with house.database.read() as connection:
        chosen = fetch_deletions(connection)
        waiting = fetch_doomed(connection, 0, 1000)
    while waiting:
        begun = moments["monotonic"]
        service.step()
        assert moments["monotonic"] - begun < AT_MOST_S + UNLINK_S
        moments["monotonic"] += 1.0
        house.now += moments["monotonic"] - begun
        with house.database.read() as connection:
            waiting = fetch_doomed(connection, 0, 1000)

    assert moments["monotonic"] > 2 * AT_MOST_S, "the disk is not slow"
    assert measure_free_bytes() >= wanted_bytes
    with house.database.read() as connection:
        assert len(fetch_deletions(connection)) == len(chosen) < 3 * pairs


def test_a_file_that_cannot_be_removed_keeps_no_other_nor_any_chore_and_nothing_more_is_deleted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomnode.housekeeping.retention.AT_ONCE", 1)  # the others are beyond it
    made = make_all(house)
    moments = {"monotonic": 0.0}
    service = make_service(house, moments, RetentionSettings(unpaired=SOON, refused=SOON))
    house.now += 3 * DAY_S
    with house.database.write() as connection:
        set_mark(connection, CLOCK, at=house.now, until=0.0)
    settings = Settings(retention=RetentionSettings(unpaired=SOON))
    delete_due(house.database, house.store, settings, house.now, lambda: PLENTY)
    with house.database.read() as connection:
        doomed = fetch_doomed(connection, 0, 1000)
    stuck = house.root / doomed[min(doomed)]
    stuck.unlink()
    stuck.mkdir()  # which the system refuses to remove as a file
    in_the_way = stuck / "of somebody"
    in_the_way.touch()

    for _ in range(2):
        with pytest.raises(StorageFailedError, match=rf"^{stuck}: cannot be removed: .*; such problems: 1"):
            service.step()
        moments["monotonic"] += HOUR_S
        house.now += HOUR_S

    with house.database.read() as connection:
        assert fetch_doomed(connection, 0, 1000) == {min(doomed): doomed[min(doomed)]}
        assert fetch_mark(connection, "scan_instances") is not None
    assert house.state_of(made["refused"]) == "refused"
    in_the_way.unlink()
    stuck.rmdir()
    service.step()
    service.step()
    assert house.state_of(made["refused"]) == "deleted"


def doom_what_cannot_be_removed(house: House) -> None:
    """Let every stored file be due for removal, and none be a file any more."""
    house.settle(house.receive("MR", 50), "unpaired")
    house.now += 3 * DAY_S
    delete_due(house.database, house.store, Settings(retention=ALL), house.now, lambda: PLENTY)
    for path in sorted(house.files("store")):
        (house.root / path).unlink()
        (house.root / path).mkdir()


def test_files_that_cannot_be_removed_are_told_of_by_a_step_that_is_cut_short(house: House) -> None:
    doom_what_cannot_be_removed(house)

    with pytest.raises(StorageFailedError, match="cannot be removed"):
        remove_doomed(house.database, house.store, house.now, lambda: True)


def test_where_no_file_can_be_removed_nothing_is_written(house: House) -> None:
    doom_what_cannot_be_removed(house)

    with house.database.write(), pytest.raises(StorageFailedError, match="cannot be removed"):
        remove_doomed(house.database, house.store, house.now)


def test_files_on_a_disk_that_is_gone_are_not_taken_for_removed(house: House) -> None:
    house.settle(house.receive("MR", 50), "unpaired")
    house.now += 3 * DAY_S
    delete_due(house.database, house.store, Settings(retention=ALL), house.now, lambda: PLENTY)
    away = house.root.rename(house.root.with_name("away"))

    with pytest.raises(StorageFailedError, match="is its disk mounted"):
        remove_doomed(house.database, house.store, house.now)

    away.rename(house.root)
    assert len(house.files()) == SLICES
    assert remove_doomed(house.database, house.store, house.now)
    assert house.files() == set()


def test_a_stop_ends_a_deletion_before_its_next_file_and_the_next_start_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_all(house)
    house.now += 3 * DAY_S
    delete_due(house.database, house.store, Settings(retention=ALL), house.now, lambda: PLENTY)
    doomed = len(house.files())
    stopping, starting = (make_service(house, {"monotonic": 0.0}, ALL) for _ in range(2))
    with monkeypatch.context() as patch:
        hook_unlink(patch, stopping.stop)
        stopping.step()
    assert len(house.files()) == doomed - 1
    starting.step()
    assert house.files() == house.named_files() == set()
    assert {house.state_of(uid) for uid in made.values()} == {"deleted"}


def test_a_deletion_that_takes_too_long_ends_before_the_next_thing(house: House) -> None:
    make_all(house)
    house.now += 3 * DAY_S
    settings = Settings(retention=ALL)
    for left in range(5, -1, -1):
        assert delete_due(house.database, house.store, settings, house.now, lambda: PLENTY, lambda: True) == 1
        with house.database.read() as connection:
            assert len(choose(fetch_subjects(connection), ALL, house.now)) == left


def test_by_default_a_node_deletes_nothing_however_long_it_lives(house: House) -> None:
    make_all(house)
    kept = house.files()
    moments = {"monotonic": 0.0}
    service = make_service(house, moments, RetentionSettings())
    for _ in range(30):
        house.now += 100 * DAY_S
        moments["monotonic"] += 100 * DAY_S
        service.step()
    assert house.files() == kept == house.named_files()


def test_two_nodes_that_look_at_once_delete_everything_once(house: House) -> None:
    make_all(house)
    house.now += 3 * DAY_S
    with ThreadPoolExecutor(4) as threads:
        looks = [
            threads.submit(delete_due, house.database, house.store, Settings(retention=ALL), house.now, lambda: PLENTY)
            for _ in range(4)
        ]
        assert sum(look.result() for look in looks) == 6
    remove_doomed(house.database, house.store, house.now)
    with house.database.read() as connection:
        assert len(fetch_deletions(connection)) == 6
    assert house.files() == set()
