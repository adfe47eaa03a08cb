"""Tells on the terminal what the node's rows say, stage by stage, as it happens.

Flow: run > [story] > database
Never: a write; a claim that no row backs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from dicomnode.database.engine import Database
from dicomnode.database.jobs import Job, fetch_jobs
from dicomnode.database.outbox import OutboxRow, fetch_outbox
from dicomnode.database.pairs import Pair, fetch_pairs
from dicomnode.database.series import SeriesRow, fetch_series_rows

LOOK_EVERY_S = 0.1
BAD = frozenset({"missed", "refused", "failed", "review", "held", "dead"})


class Story:
    """Lines on standard output, each with the seconds since the start."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._began = time.monotonic()
        self._told: set[tuple[str, str]] = set()

    def tell(self, stage: str, text: str) -> None:
        """Print what happened, once."""
        if (stage, text) in self._told:
            return
        self._told.add((stage, text))
        colour = "red" if stage in BAD else "green"
        since = time.monotonic() - self._began
        self.console.print(f"{since:6.1f} s  [{colour}]{stage:<14}[/{colour}] {escape(text)}")


@dataclass(frozen=True)
class _Rows:
    """What the database says now."""

    series: Sequence[SeriesRow]
    pairs: Sequence[Pair]
    jobs: Sequence[Job]
    outbox: Sequence[OutboxRow]


def follow(story: Story, database: Database, deadline: float) -> bool:
    """Tell each stage of the one patient's way until its results are delivered or cannot be.

    Parameters
    ----------
    story : Story
    database : Database
        The running node's.
    deadline : float
        Monotonic seconds.

    Returns
    -------
    is_delivered : bool
        Whether every output was answered with Success by the destination.
    """
    columns = (TextColumn("          {task.description:<30}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=story.console, transient=True, disable=not story.console.is_terminal) as progress:
        bar = progress.add_task("waiting for the series to be complete")
        while time.monotonic() < deadline:
            rows = _fetch(database)
            for stage, text in _stages(rows):
                story.tell(stage, text)
            if rows.jobs:
                progress.update(bar, description=rows.jobs[-1].stage, completed=rows.jobs[-1].percent)
            if (is_delivered := _outcome(rows)) is not None:
                return is_delivered
            time.sleep(LOOK_EVERY_S)
    story.tell("missed", "the node did not finish in time")
    return False


def _fetch(database: Database) -> _Rows:
    with database.read() as connection:
        return _Rows(
            fetch_series_rows(connection), fetch_pairs(connection), fetch_jobs(connection), fetch_outbox(connection)
        )


def _stages(rows: _Rows) -> list[tuple[str, str]]:
    """Return what the rows say happened so far, in order."""
    said = [
        ("complete", f"the {row.modality} series with {row.instance_count} instances")
        for row in rows.series
        if row.state in {"complete", "paired"}
    ]
    said += [("refused", f"the {row.modality} series: {row.reason}") for row in rows.series if row.state == "refused"]
    said += [
        ("paired" if pair.state == "ready" else pair.state, pair.reason or "the PET and the MR of one patient")
        for pair in rows.pairs
    ]
    for job in rows.jobs:
        if job.state == "running" and job.stage:
            said.append(("running", job.stage))
        elif job.finished_at is not None or job.state in {"retry", "failed"}:
            said.append((job.verdict or job.state, job.reason))
    sent = [row for row in rows.outbox if row.state in {"sent", "committed"}]
    if sent and len(sent) == len(rows.outbox):
        said.append(("delivered", f"{len(sent)} instances to {sent[0].destination}, each answered with Success"))
    said += [("dead", row.reason) for row in rows.outbox if row.state == "dead"]
    return said


def _outcome(rows: _Rows) -> bool | None:
    """Return True when all is delivered, False when it cannot be without a person, None while it goes on."""
    if (
        any(row.state == "refused" for row in rows.series)
        or any(pair.state == "held" for pair in rows.pairs)
        or any(job.state in {"failed", "review"} for job in rows.jobs)
        or any(row.state == "dead" for row in rows.outbox)
    ):
        return False
    is_done = bool(rows.jobs) and all(job.state == "done" for job in rows.jobs)
    if is_done and rows.outbox and all(row.state in {"sent", "committed"} for row in rows.outbox):
        return True
    return None
