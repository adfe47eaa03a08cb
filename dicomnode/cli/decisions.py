"""`dicomnode pairs accept|reject`, `jobs retry|cancel|reprocess`, `outbox|notices retry`: a person's word, recorded.

Flow: cli > [decisions] > pairing, jobs, database
Never: a rule of its own about what may be decided.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dicomnode.audit import find_node, make_login, name_user
from dicomnode.cli.listings import fetch_record, open_node_database
from dicomnode.cli.output import write_json
from dicomnode.database.audit import record_message
from dicomnode.database.engine import Database
from dicomnode.database.notices import retry_notice
from dicomnode.database.outbox import retry_dead_rows, retry_outbox_row
from dicomnode.errors import UsageError
from dicomnode.jobs.reprocess import reprocess_job
from dicomnode.pairing import decisions
from dicomnode.settings import Settings
from dicomnode.settings_file import load_settings

LOGIN_UID, NOBODY_LOGGED_IN = Path("/proc/self/loginuid"), 2**32 - 1  # proc(5)


@contextmanager
def open_to_decide(arguments: argparse.Namespace, purpose: str) -> Iterator[tuple[Settings, Database]]:
    """Open the node's database for a person's word, and let the audit trail say whose it is and what it is for."""
    settings = load_settings(arguments.config)
    with open_node_database(settings) as database:
        if channels := settings.audit.channels:
            node, now = find_node(settings.node.ae_title), time.time()
            with database.write() as connection:
                record_message(connection, channels, make_login(node, os.getpid(), find_user(), purpose, now), now)
        yield settings, database


def find_user() -> str:
    """Return who logged in to this machine, whoever `sudo` has made of them since; else whose process this is."""
    with suppress(OSError, ValueError):
        if (login_uid := int(LOGIN_UID.read_text(encoding="ascii"))) != NOBODY_LOGGED_IN:
            return name_user(login_uid)
    return name_user(os.getuid())


def accept_pairs(arguments: argparse.Namespace) -> int:
    """Run a held pair, or send what was in review."""
    with open_to_decide(arguments, f"pairs accept {arguments.key}") as (settings, database):
        decisions.accept_pair(database, arguments.key, time.time(), settings)
    return _say(arguments, f"pair {arguments.key}: accepted")


def reject_pairs(arguments: argparse.Namespace) -> int:
    """Never run a held pair, or never send what was in review."""
    with open_to_decide(arguments, f"pairs reject {arguments.key}") as (_, database):
        decisions.reject_pair(database, arguments.key, time.time())
    return _say(arguments, f"pair {arguments.key}: rejected")


def retry_jobs(arguments: argparse.Namespace) -> int:
    """Run a failed job again."""
    with open_to_decide(arguments, f"jobs retry {arguments.key}") as (_, database):
        decisions.retry_job(database, arguments.key, time.time())
    return _say(arguments, f"job {arguments.key}: waiting")


def cancel_jobs(arguments: argparse.Namespace) -> int:
    """Give up a job that waits or runs."""
    with open_to_decide(arguments, f"jobs cancel {arguments.key}") as (_, database):
        decisions.give_up_job(database, arguments.key, time.time())
    return _say(arguments, f"job {arguments.key}: failed ({decisions.CANCELLED})")


def reprocess_jobs(arguments: argparse.Namespace) -> int:
    """Register a job's pair again, and show the new job."""
    with open_to_decide(arguments, f"jobs reprocess {arguments.key}") as (_, database):
        new_id = reprocess_job(database, arguments.key, time.time(), arguments.profile or "")
    line = f"job {new_id}: waiting, in place of job {arguments.key}"
    arguments.key = new_id
    return _say(arguments, line)


def retry_outbox(arguments: argparse.Namespace) -> int:
    """Owe again what a destination refused for good, or what used up its attempts: one row, or all of them."""
    if (arguments.key is None) == (arguments.destination is None):
        raise UsageError("either the ID of one row or --destination NAME is needed")
    if arguments.destination is not None:
        return _retry_destination(arguments)
    with (
        open_to_decide(arguments, f"outbox retry {arguments.key}") as (_, database),
        database.write() as connection,
    ):
        retry_outbox_row(connection, arguments.key, time.time())
    return _say(arguments, f"outbox row {arguments.key}: owed")


def retry_notices(arguments: argparse.Namespace) -> int:
    """Owe again what a channel refused for good, or what used up its attempts."""
    with (
        open_to_decide(arguments, f"notices retry {arguments.key}") as (_, database),
        database.write() as connection,
    ):
        retry_notice(connection, arguments.key, time.time())
    return _say(arguments, f"notice {arguments.key}: owed")


def _retry_destination(arguments: argparse.Namespace) -> int:
    name = arguments.destination
    with open_to_decide(arguments, f"outbox retry --destination {name}") as (settings, database):
        known = [destination.peer for destination in settings.destinations]
        if name not in known:
            raise UsageError(f"{name}: no destination has this name; there are: {', '.join(known) or 'none'}")
        with database.write() as connection:
            count = retry_dead_rows(connection, name, time.time())
    if arguments.json:
        write_json({"destination": name, "owed": count})
    else:
        sys.stdout.write(f"{name}: {count} rows owed again\n")
    return 0


def _say(arguments: argparse.Namespace, line: str) -> int:
    if arguments.json:
        write_json(fetch_record(arguments))
    else:
        sys.stdout.write(f"{line}\n")
    return 0
