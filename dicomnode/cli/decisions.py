"""`dicomnode pairs accept|reject`, `jobs retry|reprocess`, `outbox|notices retry`: a person's word, recorded.

Flow: cli > [decisions] > pairing, jobs, database
Never: a rule of its own about what may be decided.
"""

from __future__ import annotations

import argparse
import sys
import time

from dicomnode.cli.listings import fetch_record, open_node_database
from dicomnode.cli.output import write_json
from dicomnode.database.notices import retry_notice
from dicomnode.database.outbox import retry_outbox_row
from dicomnode.jobs.reprocess import reprocess_job
from dicomnode.pairing import decisions
from dicomnode.settings_file import load_settings


def accept_pairs(arguments: argparse.Namespace) -> int:
    """Run a held pair, or send what was in review."""
    settings = load_settings(arguments.config)
    with open_node_database(settings) as database:
        decisions.accept_pair(database, arguments.key, time.time(), settings)
    return _say(arguments, f"pair {arguments.key}: accepted")


def reject_pairs(arguments: argparse.Namespace) -> int:
    """Never run a held pair, or never send what was in review."""
    with open_node_database(load_settings(arguments.config)) as database:
        decisions.reject_pair(database, arguments.key, time.time())
    return _say(arguments, f"pair {arguments.key}: rejected")


def retry_jobs(arguments: argparse.Namespace) -> int:
    """Run a failed job again."""
    with open_node_database(load_settings(arguments.config)) as database:
        decisions.retry_job(database, arguments.key, time.time())
    return _say(arguments, f"job {arguments.key}: waiting")


def reprocess_jobs(arguments: argparse.Namespace) -> int:
    """Register a job's pair again, and show the new job."""
    with open_node_database(load_settings(arguments.config)) as database:
        new_id = reprocess_job(database, arguments.key, time.time(), arguments.profile or "")
    line = f"job {new_id}: waiting, in place of job {arguments.key}"
    arguments.key = new_id
    return _say(arguments, line)


def retry_outbox(arguments: argparse.Namespace) -> int:
    """Owe again what a destination refused for good, or what used up its attempts."""
    with open_node_database(load_settings(arguments.config)) as database, database.write() as connection:
        retry_outbox_row(connection, arguments.key, time.time())
    return _say(arguments, f"outbox row {arguments.key}: owed")


def retry_notices(arguments: argparse.Namespace) -> int:
    """Owe again what a channel refused for good, or what used up its attempts."""
    with open_node_database(load_settings(arguments.config)) as database, database.write() as connection:
        retry_notice(connection, arguments.key, time.time())
    return _say(arguments, f"notice {arguments.key}: owed")


def _say(arguments: argparse.Namespace, line: str) -> int:
    if arguments.json:
        write_json(fetch_record(arguments))
    else:
        sys.stdout.write(f"{line}\n")
    return 0
