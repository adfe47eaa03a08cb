"""`dicomnode rules explain SERIES`: which rules apply to a series' pairs, why, and what goes where.

Flow: cli > [rules] > routes, database
Never: a rule of its own; a patient's identity.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sqlalchemy import Connection

from dicomnode.cli.listings import open_node_database
from dicomnode.cli.output import show, write_json, write_rows
from dicomnode.database.jobs import fetch_latest_job
from dicomnode.database.pairs import fetch_pairs
from dicomnode.database.series import fetch_series, fetch_series_by_id
from dicomnode.routes import Facts, find_routes, trace_rules
from dicomnode.settings import Settings
from dicomnode.settings_file import load_settings

ASSUMED = "accept"  # where no job has a verdict yet
COLUMNS = ("rule", "applies", "why")


def explain_rules(arguments: argparse.Namespace) -> int:
    """Show the trace of the rules for every pair of a series, or for the series alone while it has none."""
    settings = load_settings(arguments.config)
    with open_node_database(settings) as database, database.read() as connection:
        explained = [
            _explain(pair_id, facts, settings) for pair_id, facts in _find_facts(connection, arguments.series_uid)
        ]
    if arguments.json:
        write_json(explained)
        return 0
    for one in explained:
        of = f"pair {one['pair_id']}" if one["pair_id"] else "no pair yet"
        sys.stdout.write(f"{of}, verdict {one['verdict']}\n")
        write_rows(one["rules"], COLUMNS, "no rules")
        for route in one["routes"]:
            objects = ", ".join(route["objects"]) or "nothing, it takes none of these"
            sys.stdout.write(f"  to {show(route['destination'])}: {objects}\n")
        if not one["routes"]:
            sys.stdout.write("  nothing is sent\n")
    return 0


def _find_facts(connection: Connection, series_uid: str) -> list[tuple[int | None, Facts]]:
    row = fetch_series(connection, series_uid).row
    found: list[tuple[int | None, Facts]] = []
    for pair in fetch_pairs(connection):
        if row.id in (pair.fixed_series_id, pair.moving_series_id):
            mr, pet = (fetch_series_by_id(connection, key).row for key in (pair.fixed_series_id, pair.moving_series_id))
            job = fetch_latest_job(connection, pair.id)
            found.append((pair.id, Facts(mr, pet, job.verdict if job and job.verdict else ASSUMED)))
    if found:
        return found
    is_mr = row.modality == "MR"
    return [(None, Facts(row if is_mr else None, None if is_mr else row, ASSUMED))]


def _explain(pair_id: int | None, facts: Facts, settings: Settings) -> dict[str, Any]:
    return {
        "pair_id": pair_id,
        "verdict": facts.verdict,
        "rules": [
            {"rule": trace.rule, "applies": trace.applies, "why": trace.why} for trace in trace_rules(facts, settings)
        ],
        "routes": [
            {"destination": route.destination, "objects": sorted(route.objects & set(settings.outputs.objects))}
            for route in find_routes(facts, settings)
        ],
    }
