"""Which results are not to be sent, whoever asks: a person rejected them, a series of theirs is refused, or they went.

Flow: outbox, commitments > [withheld] > schema
Never: a row moved.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, select

from dicomnode.database.schema import jobs, outbox, outputs, pairs, series


def find_withheld(connection: Connection, row_id: int) -> str:
    """Return why the node itself must not send a row again; empty where it may."""
    reasons = {
        "its result was rejected by a person": of_rejected(),
        "a series that it was made of is refused": of_refused(),
        "its file was deleted": of_deleted(),
    }
    for reason, withheld in reasons.items():
        row = select(outbox.c.id).where(outbox.c.id == row_id, outbox.c.output_id.in_(withheld))
        if connection.execute(row).first() is not None:
            return reason
    return ""


def of_rejected() -> Select[Any]:
    """Select the ids of the outputs that a person rejected."""
    return select(outputs.c.id).join(jobs, jobs.c.id == outputs.c.job_id).where(jobs.c.decision == "rejected")


def of_refused() -> Select[Any]:
    """Select the ids of the outputs that were made of a series which is refused by now."""
    is_part = series.c.id.in_([pairs.c.fixed_series_id, pairs.c.moving_series_id])
    of_job = select(outputs.c.id).join(jobs, jobs.c.id == outputs.c.job_id).join(pairs)
    return of_job.join(series, is_part).where(series.c.state == "refused")


def of_deleted() -> Select[Any]:
    """Select the ids of the outputs whose files were deleted."""
    return select(outputs.c.id).where(outputs.c.deleted_at.is_not(None))
