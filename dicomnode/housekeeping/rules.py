"""Says of everything that is kept whether it may go, since when it might, and what goes now.

Flow: database/retained > [rules] > housekeeping/retention
Never: a clock, a file, a database; anything let go that is owed, waits for a person, is in use, or
was promised to a peer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dicomnode.database.retained import ConflictFacts, JobFacts, OutputFacts, SeriesFacts
from dicomnode.housekeeping.clock import STEADY_WITHIN_S
from dicomnode.settings_keeping import RetentionSettings

DAY_S = 86400.0
HOUR_S = 3600.0
# Of these the destinations have what came of it: they alone go when the disk is nearly full.
DELIVERED = ("outputs", "paired")
# Why a job keeps what it reads and makes, by its state.
BUSY = {
    "waiting": "is waiting",
    "running": "is running",
    "retry": "is tried again",
    "review": "waits for a person",
}
UNDELIVERED = {
    "owed": "are owed",
    "retry": "are owed",
    "uncommitted": "are not committed yet",
    "dead": "were refused and wait for a person",
}


@dataclass(frozen=True)
class Subject:
    """Something that is kept: of which kind, since when nothing happened to it, or why it has to be kept."""

    of: str  # series, job or conflict
    id: int
    name: str
    kind: str  # of [retention]; empty where it has to be kept
    why_kept: str
    since: float  # UTC epoch seconds
    file_count: int
    size_bytes: int
    committed_at: float | None = None  # a peer was told then that it is kept safe, UTC epoch seconds


@dataclass(frozen=True)
class Verdict:
    """What goes, and by which rule."""

    subject: Subject
    reason: str


def judge_series(facts: SeriesFacts) -> Subject:
    """Say whether a series may go, and as what."""
    jobs = [job for pair in facts.pairs for job in pair.jobs]
    since = max([facts.last_received_at, *(instant for job in jobs for instant in _instants(job))])
    kind, why = "", _why_series_kept(facts)
    if not why:
        kind = _kind_of_series(facts)
    size = (facts.file_count, facts.size_bytes)
    return Subject("series", facts.id, facts.series_uid, kind, why, since, *size, facts.committed_at)


def judge_outputs(facts: OutputFacts) -> Subject:
    """Say whether the outputs of a job may go, and as what."""
    job = facts.job
    why = _why_job_keeps(job)
    kind = ""
    if job.state == "failed":
        why = "it waits for a person"
    elif not why and job.decision in ("rejected", "reprocessed"):
        kind = "failed"
    elif not why and not job.outbox:
        why = "no destination was owed it: it is nowhere else"
    elif not why:
        kind = "outputs"
    since = max(_instants(job), default=0.0)
    return Subject("job", job.id, str(job.id), kind, why, since, facts.file_count, facts.size_bytes, facts.committed_at)


def judge_conflict(facts: ConflictFacts) -> Subject:
    """Say that an instance that came with other content may go, once it is old enough."""
    return Subject("conflict", facts.id, facts.file_name, "conflicts", "", facts.received_at, 1, facts.size_bytes)


def choose(
    subjects: Iterable[Subject], settings: RetentionSettings, now: float, missing_bytes: int = 0
) -> tuple[Verdict, ...]:
    """Choose what goes now, the oldest of each kind first.

    Parameters
    ----------
    subjects : iterable of Subject
        All that is kept.
    settings : RetentionSettings
        In force.
    now : float
        UTC epoch seconds, by a clock that was not moved for `hold_hours`. What is younger than these stays, and what a
        peer was told is kept safe.
    missing_bytes : int
        So many must become free: of what is delivered, the oldest goes until they are.
    """
    of_kind: dict[str, list[Subject]] = defaultdict(list)
    for subject in sorted(subjects, key=lambda one: (one.since, one.of, one.id)):
        of_kind[subject.kind].append(subject)
    chosen = {
        verdict.subject: verdict
        for kind, group in of_kind.items()
        if kind
        for verdict in _choose_of_kind(group, settings, now)
    }
    missing_bytes -= sum(subject.size_bytes for subject in chosen)
    delivered = [subject for kind in DELIVERED for subject in of_kind[kind] if subject not in chosen]
    for subject in sorted(delivered, key=lambda one: (one.since, one.of, one.id)):
        if missing_bytes <= 0:
            break
        if not _may_go(subject, settings, now):
            continue
        chosen[subject] = Verdict(subject, "the disk is nearly full, and the destinations have it")
        missing_bytes -= subject.size_bytes
    return tuple(sorted(chosen.values(), key=lambda verdict: (verdict.subject.since, verdict.subject.id)))


def explain_stay(subject: Subject, settings: RetentionSettings, now: float) -> str:
    """Say why something stays that `choose` does not let go."""
    if subject.why_kept:
        return subject.why_kept
    if _is_promised(subject, settings, now):
        until = f"retention.committed_days = {settings.committed_days:g}" if settings.committed_days else "for ever"
        return f"a peer was told that it is kept safe (storage commitment): {until}"
    return "it is within its bounds"


def _choose_of_kind(group: Sequence[Subject], settings: RetentionSettings, now: float) -> Iterable[Verdict]:
    """Choose of one kind, oldest first in `group`, what is beyond its bounds."""
    keep = settings.keep(group[0].kind)
    count, size = len(group), sum(subject.size_bytes for subject in group)
    for subject in group:
        if not _may_go(subject, settings, now):
            continue
        if keep.days and subject.since < now - keep.days * DAY_S:
            reason = f"retention.{subject.kind}.days = {keep.days:g}"
        elif keep.count and count > keep.count:
            reason = f"retention.{subject.kind}.count = {keep.count}"
        elif keep.bytes and size > keep.bytes:
            reason = f"retention.{subject.kind}.bytes = {keep.bytes}"
        else:
            continue
        yield Verdict(subject, reason)
        count, size = count - 1, size - subject.size_bytes


def _may_go(subject: Subject, settings: RetentionSettings, now: float) -> bool:
    return _is_past_hold(subject, settings, now) and not _is_promised(subject, settings, now)


def _is_promised(subject: Subject, settings: RetentionSettings, now: float) -> bool:
    """Say whether a peer relies on it: who was told that it is kept may have deleted its own."""
    if subject.committed_at is None:
        return False
    return not settings.committed_days or subject.committed_at >= now - settings.committed_days * DAY_S


def _is_past_hold(subject: Subject, settings: RetentionSettings, now: float) -> bool:
    """Say whether it is old enough to go: what is of the future came before the clock was put back, a hold ago."""
    return subject.since < now - settings.hold_hours * HOUR_S or subject.since > now + STEADY_WITHIN_S


def _why_series_kept(facts: SeriesFacts) -> str:
    if facts.state in ("receiving", "complete"):
        return f"it is {facts.state}"
    if facts.open_questions:
        return "a peer is being asked about it"
    for pair in facts.pairs:
        if pair.state == "held":
            return f"pair {pair.id} waits for a person"
        for job in pair.jobs:
            if why := _why_job_keeps(job):
                return f"job {job.id}: {why}"
    return ""


def _why_job_keeps(job: JobFacts) -> str:
    """Say why what a job reads and makes has to stay; empty where it has not."""
    if job.state in BUSY:
        return f"it {BUSY[job.state]}"
    if job.decision == "rejected":  # what is dead of it was given up by a person
        return ""
    return next((f"{job.outbox[state]} of it {why}" for state, why in UNDELIVERED.items() if job.outbox.get(state)), "")


def _kind_of_series(facts: SeriesFacts) -> str:
    if facts.state != "paired":
        return facts.state
    latest = [pair.jobs[-1] for pair in facts.pairs if pair.jobs and pair.state == "ready"]
    is_delivered = any(job.outbox for job in latest) and all(job.state == "done" for job in latest)
    return "paired" if is_delivered else "failed"


def _instants(job: JobFacts) -> list[float]:
    return [instant for instant in (job.finished_at, job.last_sent_at) if instant]
