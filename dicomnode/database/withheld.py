"""Which results are not to be sent, whoever asks: a person rejected them, a series of theirs is refused, or they went.

Flow: outbox, commitments > [withheld] > schema
Never: a row moved.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, or_, select

from dicomnode.database.schema import jobs, outbox, outputs, pairs, series

_OF_JOBS = select(outputs.c.id).join(jobs, jobs.c.id == outputs.c.job_id)
_IS_PART = series.c.id.in_([pairs.c.fixed_series_id, pairs.c.moving_series_id])
WITHHELD = {
    "its result was rejected by a person": _OF_JOBS.where(jobs.c.decision == "rejected"),
    "a series that it was made of is refused": _OF_JOBS.join(pairs)
    .join(series, _IS_PART)
    .where(series.c.state == "refused"),
    "its file was deleted": select(outputs.c.id).where(outputs.c.deleted_at.is_not(None)),
}  # ids of outputs, by the reason


def find_withheld(connection: Connection, row_id: int) -> str:
    """Return why a row must not be sent again; empty where it may."""
    for reason, withheld in WITHHELD.items():
        row = select(outbox.c.id).where(outbox.c.id == row_id, outbox.c.output_id.in_(withheld))
        if connection.execute(row).first() is not None:
            return reason
    return ""


def is_withheld() -> ColumnElement[bool]:
    """Select the rows of the outbox that must not be sent again."""
    return or_(*(outbox.c.output_id.in_(withheld) for withheld in WITHHELD.values()))
