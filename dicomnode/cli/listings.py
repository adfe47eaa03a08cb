"""`dicomnode series|pairs|jobs|outbox|notices list|show`: what the database says, and why each row is as it is.

Flow: cli > [listings] > database
Never: a write; a patient's identity, save for the one series that a person asks to see.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from dicomnode.cli.output import show_instants, write_json, write_record, write_rows
from dicomnode.database.engine import Database, open_database
from dicomnode.database.jobs import fetch_job, fetch_jobs, fetch_outputs, fetch_successors
from dicomnode.database.notices import fetch_notice, fetch_notices
from dicomnode.database.origins import count_conflicts, fetch_made, fetch_origin
from dicomnode.database.outbox import fetch_outbox, fetch_outbox_row
from dicomnode.database.pairs import fetch_pair, fetch_pairs
from dicomnode.database.priors import Prior, fetch_priors
from dicomnode.database.queries import fetch_queries
from dicomnode.database.revision import check_revision
from dicomnode.database.series import fetch_open_series, fetch_series, fetch_series_rows
from dicomnode.errors import UsageError
from dicomnode.pairing.completeness import judge_completeness
from dicomnode.settings import Settings
from dicomnode.settings_file import load_settings

SQLITE = "sqlite:///"
FETCH_ROWS: Mapping[str, Callable[..., list[Any]]] = {
    "series": fetch_series_rows,
    "pairs": fetch_pairs,
    "jobs": fetch_jobs,
    "outbox": fetch_outbox,
    "notices": fetch_notices,
}
# What fits a terminal; --json has every field.
COLUMNS = {
    "series": ("state", "modality", "instance_count", "description", "series_uid", "calling_ae", "reason"),
    "pairs": ("id", "state", "fixed_series_uid", "moving_series_uid", "created_at", "reason"),
    "jobs": ("id", "pair_id", "state", "stage", "percent", "attempts", "verdict", "created_at", "reason"),
    "outbox": ("id", "job_id", "kind", "destination", "state", "attempts", "not_before", "sent_at", "reason"),
    "notices": ("id", "channel", "kind", "state", "count", "subjects", "attempts", "created_at", "sent_at", "reason"),
}


# Of one record, what is a table of its own.
TABLES = {
    "made": (
        *("pair_id", "pair_state", "other_series_uid", "job_id", "job_state"),
        *("verdict", "kind", "series_uid", "instance_count", "sent_to"),
    ),
    "outputs": ("kind", "sop_instance_uid", "returned", "path"),
    "queries": ("kind", "peer", "state", "attempts", "created_at", "reason"),
    "priors": ("peer", "state", "reason", "modality", "instances", "description", "series_uid"),
}


def list_rows(arguments: argparse.Namespace) -> int:
    """List the rows of one kind, oldest first."""
    states = [arguments.state] if arguments.state else []
    with open_node_database(load_settings(arguments.config)) as database, database.read() as connection:
        rows = [show_instants(asdict(row)) for row in FETCH_ROWS[arguments.listing](connection, states)]
    if arguments.json:
        write_json(rows)
    else:
        which = f" in state {arguments.state}" if arguments.state else ""
        write_rows(rows, COLUMNS[arguments.listing], f"{arguments.listing}: nothing{which}")
    return 0


def show_row(arguments: argparse.Namespace) -> int:
    """Show everything that is known of one row."""
    record = fetch_record(arguments)
    if arguments.json:
        write_json(record)
    else:
        tables = {name: record.pop(name) for name in TABLES if record.get(name)}
        write_record(record)
        for name, rows in tables.items():
            sys.stdout.write(f"\n{name}\n")
            write_rows(rows, TABLES[name], "")
    return 0


def fetch_record(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return everything that is known of the row which the arguments name."""
    settings = load_settings(arguments.config)
    with open_node_database(settings) as database, database.read() as connection:
        record = SHOW[arguments.listing](connection, arguments.key)
        if record.get("state") == "receiving":
            record["reason"] = _explain_waiting(connection, record["id"], settings)
        return record


@contextmanager
def open_node_database(settings: Settings) -> Iterator[Database]:
    """Open the node's database for a command.

    Raises
    ------
    UsageError
        If it is SQLite and no node has made it yet: a listing must not make an empty one. If this user may not see it,
        or it is of another version of the software.
    """
    if settings.database_url.startswith(SQLITE):
        path = Path(settings.database_url.removeprefix(SQLITE))
        try:
            is_there = path.is_file()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; run this as the node's user") from error
        if not is_there:
            todo = "the node makes it when it first runs (dicomnode serve); has it run, is its disk mounted?"
            raise UsageError(f"{path}: no such database; {todo}")
    database = open_database(settings.database_url)
    try:
        with database.read() as connection:
            check_revision(connection)
        yield database
    finally:
        database.close()


def _show_series(connection: Connection, series_uid: str) -> dict[str, Any]:
    if (origin := fetch_origin(connection, series_uid)) is not None:
        return asdict(origin)
    found = fetch_series(connection, series_uid)
    series_id = found.row.id
    return {
        **show_instants(asdict(found.row)),
        "patient": asdict(found.patient),
        "conflicts": count_conflicts(connection, series_id),
        "made": [asdict(made) for made in fetch_made(connection, series_id)],
        "queries": [show_instants(asdict(query)) for query in fetch_queries(connection, [series_id])],
        "priors": [_show_prior(prior) for prior in fetch_priors(connection, series_id)],
    }


def _explain_waiting(connection: Connection, series_id: int, settings: Settings) -> str:
    """Say why a series is not complete yet, as the next round of pairing would see it."""
    (series,) = (one for one in fetch_open_series(connection) if one.row.id == series_id)
    return judge_completeness(series, time.time(), settings.pairing).reason


def _show_prior(prior: Prior) -> dict[str, Any]:
    """Return what a peer has, without whose it is."""
    row = prior.series.row
    seen = {"series_uid": row.series_uid, "modality": row.modality, "description": row.description}
    return {"peer": prior.peer, "state": prior.state, "reason": prior.reason, **seen, "instances": row.instance_count}


def _show_pair(connection: Connection, pair_id: int) -> dict[str, Any]:
    return show_instants(asdict(fetch_pair(connection, pair_id)))


def _show_job(connection: Connection, job_id: int) -> dict[str, Any]:
    record = show_instants(asdict(fetch_job(connection, job_id)))
    outputs = [asdict(output) for output in fetch_outputs(connection, job_id)]
    return {**record, "reprocessed_by": fetch_successors(connection, job_id), "outputs": outputs}


def _show_outbox_row(connection: Connection, row_id: int) -> dict[str, Any]:
    return show_instants(asdict(fetch_outbox_row(connection, row_id)))


def _show_notice(connection: Connection, notice_id: int) -> dict[str, Any]:
    return show_instants(asdict(fetch_notice(connection, notice_id)))


SHOW: Mapping[str, Callable[[Connection, Any], dict[str, Any]]] = {
    "series": _show_series,
    "pairs": _show_pair,
    "jobs": _show_job,
    "outbox": _show_outbox_row,
    "notices": _show_notice,
}
