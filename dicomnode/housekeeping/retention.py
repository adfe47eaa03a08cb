"""Deletes what the settings say may go, so that a crash at any moment leaves no file without a row, nor the reverse.

Flow: housekeeping/rules > [retention] > database/deletions > the file system
Never: a file removed whose row is not gone, committed; anything deleted that changed since it was judged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sqlalchemy import Connection

from dicomnode.audit import find_node, make_study_deleted
from dicomnode.database.audit import fetch_kept, record_message
from dicomnode.database.deletions import (
    NewDeletion,
    delete_conflict,
    delete_outputs,
    delete_series,
    fetch_doomed,
    fetch_series_files,
    lock_outputs,
    lock_series,
    record_gone,
)
from dicomnode.database.engine import Database
from dicomnode.database.jobs import fetch_outputs
from dicomnode.database.marks import are_files_held, fetch_mark, set_mark
from dicomnode.database.retained import fetch_conflict_facts, fetch_output_facts, fetch_series_facts
from dicomnode.database.store import Store
from dicomnode.durable import sync_folder
from dicomnode.errors import StorageFailedError
from dicomnode.housekeeping.clock import Moment, find_move_s
from dicomnode.housekeeping.rules import (
    HOUR_S,
    Subject,
    Verdict,
    choose,
    judge_conflict,
    judge_outputs,
    judge_series,
)
from dicomnode.logs import get_logger
from dicomnode.outputs.compression import SYNTAXES, find_copy_path
from dicomnode.settings import Settings
from dicomnode.settings_keeping import RetentionSettings
from dicomnode.steps import Step, reach

log = get_logger()

CLOCK = "clock"  # the mark: `at` the last look, `until` nothing goes by age
AT_ONCE = 200  # deletions, and files, of one look: a look is short, and the next follows


def fetch_subjects(connection: Connection) -> list[Subject]:
    """Return everything that is kept, judged."""
    return [
        *(judge_series(facts) for facts in fetch_series_facts(connection)),
        *(judge_outputs(facts) for facts in fetch_output_facts(connection)),
        *(judge_conflict(facts) for facts in fetch_conflict_facts(connection)),
    ]


def measure_free_bytes(root: Path) -> int:
    """Return how many bytes are free on the disk of the storage root.

    Raises
    ------
    StorageFailedError
        If the storage root is gone.
    """
    try:
        found = os.statvfs(root)
    except OSError as error:
        raise StorageFailedError(f"storage root {root}: {error.strerror}; is its disk mounted?") from error
    return found.f_bavail * found.f_frsize


def find_missing_bytes(free_bytes: int, settings: RetentionSettings) -> int:
    """Return how many bytes must become free: none while there are more than `free_start_bytes`."""
    return settings.free_stop_bytes - free_bytes if free_bytes < settings.free_start_bytes else 0


def is_clock_steady(database: Database, settings: RetentionSettings, now: Moment, before: Moment | None) -> bool:
    """Say whether things are as old as the clock says; after it was moved, not before `hold_hours` have passed."""
    with database.write() as connection:
        mark = fetch_mark(connection, CLOCK)
        hold_s = settings.hold_hours * HOUR_S
        moved_s = find_move_s(now, before, None if mark is None else mark.at)
        held_until = 0.0 if mark is None else mark.until
        if moved_s is not None:
            held_until = now.wall + hold_s
        set_mark(connection, CLOCK, at=now.wall, until=held_until)
    if moved_s:
        log.warning("housekeeping.clock_moved", by_s=round(moved_s), held_hours=settings.hold_hours)
    return not now.wall < held_until <= now.wall + hold_s


def delete_due(
    database: Database,
    store: Store,
    settings: Settings,
    now: float,
    free_bytes: Callable[[], int],
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Take the rows of what may go away, and note its files; return how many things went.

    It ends before the next thing once `is_over` says so. `remove_doomed` must follow, to its end, before the next call:
    until the files are gone, the disk has no more room than before.
    """
    retention = settings.retention
    missing_bytes = find_missing_bytes(free_bytes(), retention) if retention.free_start_bytes else 0
    with database.read() as connection:
        verdicts = choose(fetch_subjects(connection), retention, now, missing_bytes)
    deleted = 0
    for verdict in verdicts[:AT_ONCE]:
        with database.write() as connection:
            if are_files_held(connection, now):
                break
            is_told = verdict.subject.of == "series" and settings.audit.channels
            kept = fetch_kept(connection, verdict.subject.id) if is_told else None
            gone = _DELETE[verdict.subject.of](connection, store, verdict, now)
            if gone and kept is not None:
                node, study = find_node(settings.node.ae_title), (kept.study_uid, kept.patient_row, kept.sop_classes)
                text = make_study_deleted(node, *study, verdict.reason, now)
                record_message(connection, settings.audit.channels, text, now)
            deleted += gone
        if is_over():
            break
    if deleted:
        reach(Step.DOOMED, deleted=deleted)
    return deleted


def remove_doomed(database: Database, store: Store, now: float, is_over: Callable[[], bool] = lambda: False) -> bool:
    """Remove the files that no row names any more, and forget them; say whether it came to the end of them.

    It ends before the next file once `is_over` says so.

    Raises
    ------
    StorageFailedError
        If the storage root is gone, or some cannot be removed: the others are, until it is over, and those are tried
        again at the next call.
    """
    position, problems = 0, list[str]()
    while True:
        with database.read() as connection:
            doomed = fetch_doomed(connection, position, AT_ONCE)
        if not doomed:
            break
        if not store.is_made:
            raise StorageFailedError(f"storage root {store.root}: {store.spool_root} is gone; is its disk mounted?")
        removed, found = _remove_files({one: store.root / path for one, path in doomed.items()}, is_over)
        reach(Step.REMOVED, files=len(removed))
        if removed:  # else there is nothing to write, each second, for as long as a file cannot be removed
            with database.write() as connection:
                record_gone(connection, removed, now)
        problems += found
        if is_over():
            break
        position = max(doomed)
    if problems:
        waiting = f"such problems: {len(problems)}; until none is left nothing else is deleted"
        raise StorageFailedError(f"{problems[0]}; {waiting}")
    return not doomed


def _remove_files(files: Mapping[int, Path], is_over: Callable[[], bool]) -> tuple[list[int], list[str]]:
    """Remove the first files, until it is over; return those that are gone for good, and why others are not."""
    removed: dict[Path, list[int]] = {}
    problems = []
    for one, path in files.items():
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            problems.append(f"{path}: cannot be removed: {error.strerror}")
        else:
            removed.setdefault(path.parent, []).append(one)
        if is_over():
            break
    gone = []
    for folder, ones in removed.items():
        try:
            if folder.exists():
                sync_folder(folder)
                if folder.parent.name == "outputs" and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            problems.append(f"{folder}: cannot be written: {error.strerror}")
        else:
            gone += ones
    return gone, problems


def _delete_series(connection: Connection, store: Store, verdict: Verdict, now: float) -> int:
    lock_series(connection, verdict.subject.id)
    facts = fetch_series_facts(connection, verdict.subject.id)
    if [judge_series(one) for one in facts] != [verdict.subject]:
        return 0  # something happened to it meanwhile
    paths = [store.find_instance(name) for name in fetch_series_files(connection, verdict.subject.id)]
    delete_series(connection, verdict.subject.id, _note(verdict), _below(store, paths), now)
    return _tell(verdict, len(paths))


def _delete_outputs(connection: Connection, store: Store, verdict: Verdict, now: float) -> int:
    job_id = verdict.subject.id
    lock_outputs(connection, job_id)
    if [judge_outputs(one) for one in fetch_output_facts(connection, job_id)] != [verdict.subject]:
        return 0
    made = [store.root / one.path for one in fetch_outputs(connection, job_id) if one.deleted_at is None]
    copies = [find_copy_path(path, compression) for path in made for compression in SYNTAXES]
    paths = [*made, *(copy for copy in copies if copy.exists())]
    delete_outputs(connection, job_id, _note(verdict), _below(store, paths), now)
    return _tell(verdict, len(paths))


def _delete_conflict(connection: Connection, store: Store, verdict: Verdict, now: float) -> int:
    if verdict.subject.id not in {facts.id for facts in fetch_conflict_facts(connection)}:
        return 0
    (path,) = _below(store, [store.conflict_path(verdict.subject.name)])
    delete_conflict(connection, verdict.subject.id, _note(verdict), path, now)
    return _tell(verdict, 1)


_DELETE: dict[str, Callable[[Connection, Store, Verdict, float], int]] = {
    "series": _delete_series,
    "job": _delete_outputs,
    "conflict": _delete_conflict,
}


def _note(verdict: Verdict) -> NewDeletion:
    subject = verdict.subject
    return NewDeletion(subject.kind, subject.name, verdict.reason, subject.size_bytes)


def _below(store: Store, paths: Iterable[Path]) -> list[str]:
    return [str(path.relative_to(store.root)) for path in paths]


def _tell(verdict: Verdict, files: int) -> int:
    subject = verdict.subject
    log.info(
        "housekeeping.deleted",
        kind=subject.kind,
        subject=subject.name,
        files=files,
        size_bytes=subject.size_bytes,
        reason=verdict.reason,
    )
    return 1
