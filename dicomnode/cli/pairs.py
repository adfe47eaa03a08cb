"""`dicomnode pairs explain` and `pairs request`: why these two, and which two a person wants.

Flow: cli > [pairs] > pairing/decisions, database/pairs
Never: a patient's identity: an explanation says whether two values are equal, never what they are.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from dicomnode.cli.decisions import open_to_decide
from dicomnode.cli.listings import open_node_database
from dicomnode.cli.output import write_json, write_record, write_rows
from dicomnode.database.pairs import Pair, fetch_pair
from dicomnode.pairing import decisions
from dicomnode.settings_file import load_settings

# A pair's explanation, in the order in which a person asks.
SHOWN = ("days_apart", "same_frame_of_reference", "identity", "warnings")
ROLES = {"fixed": "MR", "moving": "PET"}
COLUMNS = ("role", "outcome", "rule", "description", "series_uid")


def explain(arguments: argparse.Namespace) -> int:
    """Show every candidate of a pair and the rule it won or lost by."""
    with open_node_database(load_settings(arguments.config)) as database, database.read() as connection:
        record = _explain(fetch_pair(connection, arguments.key))
    if arguments.json:
        write_json(record)
        return 0
    candidates = record.pop("candidates")
    record["identity"] = [f"{attribute} {agreement}" for attribute, agreement in record["identity"].items()]
    write_record(record)
    sys.stdout.write("\n")
    write_rows(candidates, COLUMNS, "no candidates were recorded")
    return 0


def request(arguments: argparse.Namespace) -> int:
    """Pair two series that a person names."""
    named = f"pairs request {arguments.fixed} {arguments.moving}"
    with open_to_decide(arguments, named) as (settings, database):
        pair = decisions.request_pair(database, (arguments.fixed, arguments.moving), settings.pairing, time.time())
    if arguments.json:
        write_json(_explain(pair))
    else:
        sys.stdout.write(f"pair {pair.id}: {pair.state}{f' ({pair.reason})' if pair.state == 'held' else ''}\n")
    return 0


def _explain(pair: Pair) -> dict[str, Any]:
    """Return what a decision was made from."""
    known = pair.explanation
    return {
        "id": pair.id,
        "state": pair.state,
        "reason": pair.reason,
        "is_requested": pair.is_requested,
        **{name: known.get(name, {} if name == "identity" else None) for name in SHOWN},
        "candidates": [{"role": role, **one} for name, role in ROLES.items() for one in known.get(name, [])],
    }
