"""`dicomnode series|pairs|jobs|outbox`: rows as the node writes them, listed, shown and decided.

Flow: cli/listings, cli/decisions > [test_listings]
Never: a row the node could not have written (tests/rows).
"""

from __future__ import annotations

import os
import pty
import re
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy import update

from dicomnode.audit import name_user
from dicomnode.cli.decisions import find_user
from dicomnode.database.audit import fetch_messages
from dicomnode.database.engine import Database
from dicomnode.database.jobs import JobClaim, claim_job, move_claimed_job
from dicomnode.database.outbox import Failure, add_outbox_rows, claim_outbox, fail_due_rows, record_dead
from dicomnode.database.schema import series
from tests.audit_collectors import details_of, event_of
from tests.dicomnode.cli.conftest import Run
from tests.rows import MR, PATIENT, PET, add_finished_job, add_ready_pair, add_waiting_job, due, receive

PROGRAM = "import sys; from dicomnode.cli import main; sys.exit(main(sys.argv[1:]))"
IDENTITY = ("4711", "Doe", "19700102")


def add_destination(config: Path) -> None:
    text = config.read_text(encoding="utf-8")
    peer = '[[peers]]\nname = "pacs"\nae_title = "P"\nhost = "h"\nport = 104\nmay = ["receive"]\n'
    config.write_text(f'{text}{peer}[[destinations]]\npeer = "pacs"\n', encoding="utf-8")


@pytest.mark.parametrize("name", ["series", "pairs", "jobs", "outbox", "notices"])
def test_nothing_yet(run: Run, config: Path, database: Database, name: str) -> None:
    assert run(name, "list", "--config", config).out == f"{name}: nothing\n"
    assert run(name, "list", "--config", config, "--json").json == []


@pytest.mark.parametrize("name", ["series", "pairs", "jobs", "outbox", "notices"])
def test_a_root_without_a_database_is_left_alone(run: Run, config: Path, tmp_path: Path, name: str) -> None:
    ran = run(name, "list", "--config", config)
    assert ran.code == 2
    assert "no such database; the node makes it when it first runs (dicomnode serve)" in ran.err
    assert not (tmp_path / "storage").exists()


def test_a_database_elsewhere_is_not_made_by_a_listing(run: Run, config: Path, tmp_path: Path) -> None:
    text = config.read_text(encoding="utf-8")
    config.write_text(f'{text}[database]\nurl = "sqlite:///{tmp_path / "other.sqlite"}"\n', encoding="utf-8")
    ran = run("series", "list", "--config", config)
    assert (ran.code, "other.sqlite: no such database" in ran.err) == (2, True)
    assert not (tmp_path / "other.sqlite").exists()


def test_a_root_that_may_not_be_looked_at_is_one_line(run: Run, config: Path, tmp_path: Path) -> None:
    root = tmp_path / ("a" * 300)  # even root may not look there
    config.write_text(f'[node]\nstorage_root = "{root}"\n', encoding="utf-8")
    for command in (("series", "list"), ("verify",), ("housekeeping", "plan")):
        ran = run(*command, "--config", config)
        assert (ran.code, ran.err) == (
            2,
            f"dicomnode: {root}/dicomnode.sqlite: File name too long; run this as the node's user\n",
        )
    assert "File name too long" in run("doctor", "--config", config).out
    added = run("peers", "add", "p", "--ae-title", "P", "--host", "h", "--port", 1, "--config", config)
    assert "peer p: added" in added.err
    assert "whether a node runs cannot be seen" in added.err


def test_series_are_listed_without_an_identity(run: Run, config: Path, database: Database) -> None:
    receive(database, replace(MR, description="T1 \x1b[31mred"), now=1700000000.25)
    receive(database, PET, now=1700000001.0)
    table = run("series", "list", "--config", config).out
    assert "T1 \\x1b[31mred" in table
    rows = run("series", "list", "--config", config, "--json").json
    assert [(row["series_uid"], row["state"], row["instance_count"]) for row in rows] == [
        (MR.series_uid, "receiving", 10),
        (PET.series_uid, "receiving", 10),
    ]
    assert rows[0]["last_received_at"] == "2023-11-14T22:13:20.250+00:00"
    for word in IDENTITY:
        assert word not in table
        assert word not in str(rows)


def test_one_series_is_shown_with_whose_it_is(run: Run, config: Path, database: Database) -> None:
    receive(database, MR, now=1.0)
    shown = run("series", "show", MR.series_uid, "--config", config, "--json").json
    assert shown["patient"] == vars(PATIENT)
    told = [line.split() for line in run("series", "show", MR.series_uid, "--config", config).out.splitlines()]
    assert ["patient:", "patient_id", PATIENT.patient_id] in told
    assert ["patient:", "birth_date", PATIENT.birth_date] in told


@pytest.mark.parametrize("columns", [60, 80, 128, 300])
def test_a_uid_is_whole_on_a_terminal_of_any_width(config: Path, database: Database, columns: int) -> None:
    receive(database, MR, now=1700000000.0)
    uid = "1.2.840." + "7" * 56  # as long as one may be
    with database.write() as connection:
        connection.execute(update(series).values(series_uid=uid))
    database.close()
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123 - a descriptor has no path
        subprocess.run(
            [sys.executable, "-c", PROGRAM, "series", "list", "--config", str(config)],
            stdout=theirs,
            env={**os.environ, "COLUMNS": str(columns)},
            check=True,
        )
        os.close(theirs)
        shown = "".join(iter(partial(_read, terminal), ""))
    lines = re.sub(r"\x1b\[\d*m|\r", "", shown).split("\n")  # the headings are bold
    assert any(uid in line for line in lines)
    assert max(map(len, lines)) <= max(columns, len("instance count  ") + 64)
    assert (len(lines) > 6) == (columns < 100)  # a record has a line for each field


def _read(terminal: IO[bytes]) -> str:
    try:
        return terminal.read(4096).decode()
    except OSError:  # Linux ends a terminal that nobody writes to any more like this
        return ""


def test_rows_of_one_state_are_listed(run: Run, config: Path, database: Database) -> None:
    add_ready_pair(database, state="held")
    assert len(run("pairs", "list", "--state", "held", "--config", config, "--json").json) == 1
    assert run("pairs", "list", "--state", "ready", "--config", config).out == "pairs: nothing in state ready\n"


def test_a_pair_is_shown_with_its_series(run: Run, config: Path, database: Database) -> None:
    pair_id = add_ready_pair(database)
    shown = run("pairs", "show", pair_id, "--config", config, "--json").json
    assert (shown["fixed_series_uid"], shown["moving_series_uid"]) == (MR.series_uid, PET.series_uid)
    assert MR.series_uid in run("pairs", "show", pair_id, "--config", config).out


def test_a_job_is_shown_with_its_outputs_and_the_outbox_with_its_destination(
    run: Run, config: Path, database: Database
) -> None:
    job_id, output_ids = add_finished_job(database, ("pt", "reg"))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    shown = run("jobs", "show", job_id, "--config", config, "--json").json
    assert [output["kind"] for output in shown["outputs"]] == ["pt", "reg"]
    told = run("jobs", "show", job_id, "--config", config).out.partition("\noutputs\n")
    assert [line.split()[:2] for line in told[2].splitlines()[2:4]] == [
        [output["kind"], output["sop_instance_uid"]] for output in shown["outputs"]
    ]
    owed = run("outbox", "list", "--config", config, "--json").json
    assert [(row["kind"], row["destination"], row["state"]) for row in owed] == [
        ("pt", "pacs", "owed"),
        ("reg", "pacs", "owed"),
    ]
    assert run("outbox", "show", owed[0]["id"], "--config", config, "--json").json == owed[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("series", "show", "1.2"), "none received with this SeriesInstanceUID"),
        (("pairs", "show", 9), "pair 9: "),
        (("jobs", "show", 9), "job 9: there is no job with this number"),
        (("outbox", "show", 9), "outbox row 9: there is no row with this number"),
        (("pairs", "accept", 9), "pair 9: "),
        (("pairs", "reject", 9), "pair 9: "),
        (("jobs", "retry", 9), "job 9: there is no job with this number"),
        (("jobs", "cancel", 9), "job 9: there is no job with this number"),
        (("outbox", "retry", 9), "outbox row 9: there is no row with this number"),
        (("outbox", "retry"), "either the ID of one row or --destination NAME is needed"),
        (("outbox", "retry", 9, "--destination", "pacs"), "either the ID of one row or --destination NAME is needed"),
        (("outbox", "retry", "--destination", "pcas"), "pcas: no destination has this name; there are: none"),
    ],
)
def test_a_row_that_is_not_there_is_one_line(
    run: Run, config: Path, database: Database, arguments: tuple[object, ...], message: str
) -> None:
    ran = run(*arguments, "--config", config)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_a_held_pair_that_is_accepted_gets_a_job(run: Run, config: Path, database: Database) -> None:
    pair_id = add_ready_pair(database, state="held")
    assert run("pairs", "accept", pair_id, "--config", config).out == f"pair {pair_id}: accepted\n"
    jobs = run("jobs", "list", "--config", config, "--json").json
    assert [(job["pair_id"], job["state"]) for job in jobs] == [(pair_id, "waiting")]
    assert run("pairs", "accept", pair_id, "--config", config).code == 2


def test_a_held_pair_that_is_rejected_gets_none(run: Run, config: Path, database: Database) -> None:
    pair_id = add_ready_pair(database, state="held")
    rejected = run("pairs", "reject", pair_id, "--config", config, "--json").json
    assert (rejected["id"], rejected["state"]) == (pair_id, "rejected")
    assert run("jobs", "list", "--config", config, "--json").json == []


def test_who_decides_is_told_in_the_audit_trail_and_what(run: Run, config: Path, database: Database) -> None:
    run("jobs", "retry", 7, "--config", config)
    config.write_text(f'{config.read_text(encoding="utf-8")}\n[audit]\nfile = "/unused/a"\n', encoding="utf-8")

    for command in (("pairs", "accept", 9), ("outbox", "retry", "--destination", "away"), ("jobs", "list")):
        run(*command, "--config", config)

    with database.read() as connection:
        told = [message.text for message in fetch_messages(connection, "file", 10)]
    assert [event_of(text) for text in told] == ["User Authentication: Login"] * 2
    described = [ET.fromstring(text).findtext("*/EventOutcomeDescription") for text in told]  # noqa: S314 - written by the node
    assert described == ["pairs accept 9", "outbox retry --destination away"]
    user, program = details_of(told[0], "ActiveParticipant", "UserID")
    assert user == find_user()
    assert program == str(os.getpid())
    assert details_of(told[0], "ActiveParticipant", "NetworkAccessPointID") == [socket.gethostname()] * 2


def test_a_user_of_this_machine_has_a_name_and_another_a_number() -> None:
    assert name_user(0) == "root"
    assert name_user(4_000_000_123) == "4000000123"


def test_a_reviewed_result_that_is_accepted_is_owed_to_every_destination(
    run: Run, config: Path, database: Database
) -> None:
    job_id, output_ids = add_finished_job(database, ("pt", "reg"), state="review")
    add_destination(config)
    pair_id = run("jobs", "show", job_id, "--config", config, "--json").json["pair_id"]
    assert run("pairs", "accept", pair_id, "--config", config).code == 0
    owed = run("outbox", "list", "--config", config, "--json").json
    assert sorted((row["output_id"], row["destination"]) for row in owed) == [(i, "pacs") for i in output_ids]


def test_a_failed_job_is_run_again(run: Run, config: Path, database: Database) -> None:
    job_id = add_waiting_job(database)
    assert run("jobs", "retry", job_id, "--config", config).code == 2
    job = claim_job(database, now=20.0, lease_s=60.0)
    assert job is not None
    with database.write() as connection:
        move_claimed_job(connection, JobClaim(job.id, job.token), "failed", reason="it broke")
    assert run("jobs", "retry", job_id, "--config", config).out == f"job {job_id}: waiting\n"
    assert run("jobs", "show", job_id, "--config", config, "--json").json["state"] == "waiting"


def test_a_dead_row_is_owed_again(run: Run, config: Path, database: Database) -> None:
    _, output_ids = add_finished_job(database, ("reg",))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    (row,) = claim_outbox(database, due(now=31.0), limit=1)
    assert run("outbox", "retry", row.id, "--config", config).err.endswith(
        "it is owed, dead is needed, or sent with a reason why it was not committed\n"
    )
    with database.write() as connection:
        record_dead(connection, row, "refused")
    assert run("outbox", "retry", row.id, "--config", config).out == f"outbox row {row.id}: owed\n"
    again = run("outbox", "show", row.id, "--config", config, "--json").json
    assert (again["state"], again["attempts"]) == ("owed", 0)


def test_what_a_destination_did_not_take_is_owed_again_save_for_what_a_person_rejected(
    run: Run, config: Path, database: Database
) -> None:
    add_destination(config)
    job_id, kept = add_finished_job(database, ("pt", "reg"))
    reviewed_id, rejected = add_finished_job(database, ("pt",), state="review")
    with database.write() as connection:
        add_outbox_rows(connection, [*kept, *rejected], ["pacs"], now=30.0)
        add_outbox_rows(connection, kept, ["archive"], now=30.0)
    for destination in ("pacs", "archive"):
        fail_due_rows(database, due(destination, 31.0), Failure("it refuses us", None), attempts_at_most=9)
    pair_id = run("jobs", "show", reviewed_id, "--config", config, "--json").json["pair_id"]
    assert run("pairs", "reject", pair_id, "--config", config).code == 0

    assert run("outbox", "retry", "--destination", "pacs", "--config", config).out == "pacs: 2 rows owed again\n"

    rows = run("outbox", "list", "--config", config, "--json").json
    assert [(row["destination"], row["job_id"], row["state"]) for row in rows] == [
        *[("archive", job_id, "dead")] * 2,
        *[("pacs", job_id, "owed")] * 2,
        ("pacs", reviewed_id, "dead"),
    ]
    again = run("outbox", "retry", "--destination", "pacs", "--config", config, "--json").json
    assert again == {"destination": "pacs", "owed": 0}
    refused = run("outbox", "retry", rows[-1]["id"], "--config", config)
    assert refused.err.endswith(f"of job {reviewed_id}, is not sent again: its result was rejected by a person\n")


def test_a_job_that_waits_or_runs_is_cancelled(run: Run, config: Path, database: Database) -> None:
    job_id = add_waiting_job(database)
    said = f"job {job_id}: failed (cancelled by a person)\n"
    assert run("jobs", "cancel", job_id, "--config", config).out == said
    assert run("jobs", "cancel", job_id, "--config", config).err.endswith(
        "it is failed, retry or running or waiting is needed\n"
    )
    assert run("jobs", "retry", job_id, "--config", config).code == 0
    assert claim_job(database, now=1e12, lease_s=60.0) is not None
    assert run("jobs", "cancel", job_id, "--config", config).out == said
    shown = run("jobs", "show", job_id, "--config", config, "--json").json
    assert (shown["state"], shown["reason"], shown["lease_until"]) == ("failed", "cancelled by a person", None)


def test_an_ended_job_is_registered_again_beside_the_old_result(run: Run, config: Path, database: Database) -> None:
    job_id, _ = add_finished_job(database, ("pt",), state="review")
    again = run("jobs", "reprocess", job_id, "--profile", "paper", "--config", config)
    assert again.out == f"job {job_id + 1}: waiting, in place of job {job_id}\n"
    new = run("jobs", "show", job_id + 1, "--config", config, "--json").json
    assert (new["reprocess_of"], new["profile"], new["state"]) == (job_id, "paper", "waiting")
    old = run("jobs", "show", job_id, "--config", config, "--json").json
    assert (old["reprocessed_by"], old["state"], len(old["outputs"])) == ([job_id + 1], "done", 1)
    refused = run("jobs", "reprocess", job_id + 1, "--config", config)
    assert refused.err.endswith(": it is waiting, done or failed or review is needed to reprocess it\n")


def test_no_job_of_a_pair_is_registered_again_beside_another_and_a_rejection_holds_for_all(
    run: Run, config: Path, database: Database
) -> None:
    add_destination(config)
    first, output_ids = add_finished_job(database, ("pt", "reg"), state="review")
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    assert run("jobs", "reprocess", first, "--config", config).code == 0
    refused = run("jobs", "reprocess", first, "--config", config)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.endswith(
        f"job {first}: job {first + 1} of its pair is waiting; wait for its end; "
        f"or give it up, and reprocess that one: dicomnode jobs cancel {first + 1}\n"
    )
    job = claim_job(database, now=1e12, lease_s=60.0)
    assert job is not None
    with database.write() as connection:
        move_claimed_job(connection, JobClaim(job.id, job.token), "review")
    told = f"decide on it first: dicomnode pairs accept {job.pair_id}, or pairs reject {job.pair_id}; "
    assert told in run("jobs", "reprocess", first, "--config", config).err

    assert run("pairs", "reject", job.pair_id, "--config", config).code == 0

    jobs = run("jobs", "list", "--config", config, "--json").json
    assert [(one["state"], one["decision"]) for one in jobs] == [("done", "rejected")] * 2
    rows = run("outbox", "list", "--config", config, "--json").json
    assert [(row["job_id"], row["state"]) for row in rows] == [(first, "dead")] * 2
    assert run("outbox", "retry", "--destination", "pacs", "--config", config).out == "pacs: 0 rows owed again\n"
    refused = run("outbox", "retry", rows[0]["id"], "--config", config)
    assert refused.err.endswith(f"of job {first}, is not sent again: its result was rejected by a person\n")
