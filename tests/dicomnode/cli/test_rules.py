"""`dicomnode rules explain`: the trace of the rules for a series' pairs."""

from __future__ import annotations

from pathlib import Path

from dicomnode.database.engine import Database
from tests.dicomnode.cli.conftest import Run
from tests.rows import MR, PATIENT, PET, add_ready_pair, receive

RULES = """
[[peers]]
name = "pacs"
ae_title = "P"
host = "h"
port = 104
may = ["receive"]
[[destinations]]
peer = "pacs"
[[rules]]
name = "stroke"
pet_from = ["STROKE"]
destinations = ["pacs"]
[[rules]]
name = "colours"
objects = ["rgb", "reg"]
destinations = ["pacs"]
"""


def _add_rules(config: Path) -> None:
    config.write_text(config.read_text(encoding="utf-8") + RULES, encoding="utf-8")


def test_every_rule_of_a_pair_is_explained(run: Run, config: Path, database: Database) -> None:
    pair_id = add_ready_pair(database)
    _add_rules(config)

    [explained] = run("rules", "explain", PET.series_uid, "--config", config, "--json").json

    assert explained == {
        "pair_id": pair_id,
        "verdict": "accept",
        "rules": [
            {"rule": "stroke", "applies": False, "why": "the PET came from 'SCANNER', STROKE is needed"},
            {"rule": "colours", "applies": True, "why": "it asks for nothing"},
        ],
        "routes": [{"destination": "pacs", "objects": ["reg", "rgb"]}],
    }
    told = run("rules", "explain", MR.series_uid, "--config", config).out
    assert told.startswith(f"pair {pair_id}, verdict accept\n")
    assert "the PET came from 'SCANNER', STROKE is needed" in told
    assert told.endswith("  to pacs: reg, rgb\n")
    assert PATIENT.patient_id not in told


def test_a_series_without_a_pair_is_explained_as_far_as_it_is_known(run: Run, config: Path, database: Database) -> None:
    receive(database, MR, now=1.0)
    _add_rules(config)

    told = run("rules", "explain", MR.series_uid, "--config", config).out

    assert told.startswith("no pair yet, verdict accept\n")
    assert "the PET is not known yet" in told
    assert run("rules", "explain", "1.2", "--config", config).code == 2


def test_what_is_not_made_is_not_said_to_be_sent(run: Run, config: Path, database: Database) -> None:
    receive(database, MR, now=1.0)
    config.write_text(config.read_text(encoding="utf-8") + RULES.partition("[[rules]]")[0], encoding="utf-8")

    assert run("rules", "explain", MR.series_uid, "--config", config).out.endswith("  to pacs: pt, reg, rgb\n")


def test_without_a_destination_nothing_is_sent(run: Run, config: Path, database: Database) -> None:
    receive(database, MR, now=1.0)

    assert run("rules", "explain", MR.series_uid, "--config", config).out.endswith("  nothing is sent\n")
