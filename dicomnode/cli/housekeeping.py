"""`dicomnode housekeeping plan|log`: what would go now, why the rest stays, and what went.

Flow: cli > [housekeeping] > housekeeping/retention, database/history, database/deletions
Never: a deletion (the node does that); a patient's identity.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from typing import Any

from dicomnode.cli.listings import open_node_database
from dicomnode.cli.output import show, show_instants, write_json, write_rows
from dicomnode.database.deletions import fetch_deletions
from dicomnode.database.history import count_rows
from dicomnode.database.marks import fetch_mark
from dicomnode.housekeeping.history import find_age
from dicomnode.housekeeping.retention import CLOCK, fetch_subjects, find_missing_bytes, measure_free_bytes
from dicomnode.housekeeping.rules import Subject, choose, explain_stay
from dicomnode.settings_file import load_settings

PLAN = ("goes", "kind", "of", "name", "last_used_at", "file_count", "size_bytes", "why")
HISTORY = ("table", "going", "staying", "stays")
LOG = ("id", "kind", "subject", "files", "size_bytes", "decided_at", "done_at", "reason")


def plan(arguments: argparse.Namespace) -> int:
    """Show what the node would delete if it looked now, and of everything else why it stays."""
    settings = load_settings(arguments.config)
    now, root = time.time(), settings.node.storage_root
    with open_node_database(settings) as database, database.read() as connection:
        subjects = fetch_subjects(connection)
        mark = fetch_mark(connection, CLOCK)
        history = [asdict(aged) for aged in count_rows(connection, find_age(settings.retention, now))]
    missing_bytes = find_missing_bytes(measure_free_bytes(root), settings.retention)
    going = {one.subject: one.reason for one in choose(subjects, settings.retention, now, missing_bytes)}
    rows = [_show_subject(one, going.get(one), explain_stay(one, settings.retention, now)) for one in subjects]
    rows.sort(key=lambda row: not row["goes"])
    held_until = mark.until if mark is not None and mark.until > now else None
    held = show_instants({"held_until": held_until})["held_until"]
    if arguments.json:
        is_asked_for = settings.retention.is_asked_for
        write_json({"is_asked_for": is_asked_for, "held_until": held, "subjects": rows, "history": history})
        return 0
    write_rows(history, HISTORY, "")
    sys.stdout.write(f"{sum(aged['going'] for aged in history)} rows of what is long over would go\n\n")
    write_rows(rows, PLAN, "nothing is kept")
    size_bytes = sum(one.size_bytes for one in going)
    sys.stdout.write(f"{len(going)} of {len(rows)} would go, {size_bytes} bytes\n")
    if held is not None:
        sys.stdout.write(f"nothing goes before {held}: the clock was moved, or the node was away\n")
    return 0


def show_log(arguments: argparse.Namespace) -> int:
    """Show what was deleted, when and why."""
    with open_node_database(load_settings(arguments.config)) as database, database.read() as connection:
        rows = [show_instants(asdict(row)) for row in fetch_deletions(connection)]
    if arguments.json:
        write_json(rows)
    else:
        write_rows(rows, LOG, "nothing was deleted")
    return 0


def _show_subject(subject: Subject, reason: str | None, why_it_stays: str) -> dict[str, Any]:
    why = show(reason or why_it_stays)
    shown = {name: getattr(subject, name) for name in ("kind", "of", "name", "file_count", "size_bytes")}
    return {"goes": reason is not None, **shown, **show_instants({"last_used_at": subject.since}), "why": why}
