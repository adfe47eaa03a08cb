"""Logs: one event a line on standard error, as JSON or for people, and libraries kept quiet.

Flow: logs > [test_logs]
Never: the logging set-up of the test run itself; each test runs a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging
import pydicom.uid
import pynetdicom.association
from dicomnode import logs
log = logs.get_logger()
logs.configure({form!r}, {level!r})
log.debug("node.quiet")
log.info("receive.stored", association_id=3, series_uid="1.2.3")
for name in ("pynetdicom.assoc", "pydicom", "apscheduler.scheduler", "alembic.runtime"):
    logging.getLogger(name).info("a library talks")
logging.getLogger("pynetdicom").error("a library fails")
pynetdicom.association.LOGGER.error("what we say ourselves, with whom it was")
pynetdicom.dimse.LOGGER.error("what a peer sent, with a traceback")
logging.getLogger("pydicom").warning("Invalid value for VR DA: '19620304x'")
pydicom.uid.UID("1.2.19620304x", pydicom.config.WARN)
logging.getLogger("pynetdicom").error("it quotes '\x1b]0;owned\x07\\nreceive.forged \u202e'")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("job.crashed", job_id=7)
"""


def run(form: str, level: str = "INFO") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(form=form, level=level)], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_event_a_line_with_its_fields() -> None:
    events = [json.loads(line) for line in run("json")]
    quoted = r"it quotes '\x1b]0;owned\x07\nreceive.forged \u202e'"
    assert [event["event"] for event in events] == ["receive.stored", "a library fails", quoted, "job.crashed"]
    stored = events[0]
    assert (stored["association_id"], stored["series_uid"], stored["level"]) == (3, "1.2.3", "info")
    assert stored["timestamp"].endswith("Z")


def test_a_traceback_is_kept_in_its_event() -> None:
    assert "ZeroDivisionError" in json.loads(run("json")[-1])["exception"]


def test_people_get_lines_without_escape_codes_off_a_terminal() -> None:
    lines = run("console")
    assert "receive.stored" in lines[0]
    assert "association_id=3" in lines[0]
    assert all(line.isprintable() for line in lines)
    assert [
        line for line in lines if "receive.stored" in line and "20" not in line[:2]
    ] == []  # each begins with its time
    traceback = lines[next(number for number, line in enumerate(lines) if "Traceback" in line) :]
    assert all(line.startswith("    ") for line in traceback)


def test_a_level_hides_what_is_below_it() -> None:
    assert not any("receive.stored" in line for line in run("console", "WARNING"))
