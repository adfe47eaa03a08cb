"""The command as a whole: usage, exit codes, and that what goes wrong is one line.

Flow: cli > [test_cli]
Never: what single commands do; their tests stand beside this one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dicomnode import cli
from dicomnode.cli.arguments import DECISIONS, LISTINGS
from tests.dicomnode.cli.conftest import Run
from tests.waiting import wait_until

PROGRAM = """
import signal, sys
from dicomnode.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
sys.exit(main(sys.argv[1:]))
"""
COMMAND = [sys.executable, "-c", PROGRAM]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dicomnode: the following arguments are required: COMMAND (see dicomnode --help)\n"),
        (["fetch"], "dicomnode: argument COMMAND: invalid choice: 'fetch'"),
        (["jobs", "show", "one"], "dicomnode jobs show: argument ID: found 'one', needed a number that `list` shows"),
        (["pairs", "accept", "99999999999999999999"], "argument ID: found '99999999999999999999', needed a number"),
        (["pairs", "show", "-1"], "argument ID: found '-1', needed a number"),
        (["demo", "\x1b[31m"], r"unrecognized arguments: \x1b[31m"),
        (["register", "--fixed", "x"], "the following arguments are required: --moving, --output"),
        (["peers", "add", "x", "--may", "fetch"], "argument --may: invalid choice: 'fetch'"),
        (["jobs", "list", "--state", "lost"], "argument --state: invalid choice: 'lost'"),
    ],
)
def test_wrong_usage_is_one_line_and_2(run: Run, arguments: list[str], message: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_version(run: Run) -> None:
    ran = run("--version")
    assert (ran.code, ran.out.split()[0]) == (0, "dicomnode")


def test_every_listing_has_its_actions(run: Run) -> None:
    for name in LISTINGS:
        actions = run(name, "--help").out
        for action in ("list", "show", *DECISIONS.get(name, {})):
            assert f"    {action} " in actions.replace("\n", " ")


def test_an_error_is_one_line_and_2(run: Run, tmp_path: Path) -> None:
    ran = run("series", "list", "--config", tmp_path / "none.toml")
    assert ran.code == 2
    assert ran.err.startswith(f"dicomnode: {tmp_path}/none.toml: no such file")
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_an_interrupt_is_one_line(tmp_path: Path) -> None:
    fifo = tmp_path / "n.toml"  # reading it blocks until we write
    os.mkfifo(fifo)
    with subprocess.Popen([*COMMAND, "config", "show", "--config", str(fifo)], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        writers: list[int] = []
        wait_until(lambda: _open_for_writing(fifo, writers), 20, "the command reading its configuration")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"dicomnode: interrupted\n"
        assert process.wait() == cli.EXIT_INTERRUPTED
        os.close(writers[0])


def _open_for_writing(fifo: Path, writers: list[int]) -> bool:
    """Say whether somebody reads the FIFO, by opening its other end."""
    try:
        writers.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_a_reader_that_stops_reading_is_no_error(config: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "config", "show", "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == cli.EXIT_BROKEN_PIPE


def test_a_listing_does_not_load_what_a_registration_needs(config: Path) -> None:
    program = "import sys; from dicomnode.cli import main; main(sys.argv[1:]); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program, "config", "show", "--config", str(config)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'dicomnode.settings_file'" in done.stdout
    for module in ("onnxruntime", "cv2", "sqlalchemy"):
        assert f"'{module}'" not in done.stdout
