"""The service: its units are right, and `dicomnode serve` says to systemd what it is doing.

Flow: systemd/, cli/serve > [test_systemd]
Never: the machine's own systemd; the notification socket is the test's.
"""

from __future__ import annotations

import configparser
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicomnode.cli import EXIT_ERROR
from dicomnode.cli.serve import EXIT_NOT_NOW
from tests.builders import NodeProcess, make_config
from tests.peers_programs import free_port
from tests.waiting import wait_until

UNITS = Path(__file__).resolve().parents[2] / "systemd"
WATCHDOG_S = 1.0


@contextmanager
def notify_socket(folder: Path) -> Iterator[Callable[[], list[str]]]:
    """Give a function that returns every state the process has sent so far."""
    received: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder / "notify"))
        listener.setblocking(False)

        def states() -> list[str]:
            while True:
                try:
                    received.append(listener.recv(4096).decode())
                except BlockingIOError:
                    return received

        yield states


@contextmanager
def service(folder: Path, *roles: str) -> Iterator[tuple[NodeProcess, Callable[[], list[str]]]]:
    """Run the node as systemd would."""
    port = free_port()
    with notify_socket(folder) as states:
        node = NodeProcess(make_config(folder, [], port), port, roles)
        node.environment["NOTIFY_SOCKET"] = str(folder / "notify")
        node.environment["WATCHDOG_USEC"] = str(int(WATCHDOG_S * 1_000_000))
        with node:
            yield node, states


def test_ready_alive_reloading_stopping(tmp_path: Path) -> None:
    with service(tmp_path) as (node, states):
        wait_until(lambda: "READY=1" in states(), 30, "READY")
        wait_until(lambda: "WATCHDOG=1" in states(), 30, "WATCHDOG")
        os.kill(node.pid, signal.SIGHUP)
        wait_until(lambda: states().count("READY=1") == 2, 30, "READY after a reload")
        reloading = next(number for number, state in enumerate(states()) if state.startswith("RELOADING=1\n"))
        assert states()[reloading].partition("\n")[2].startswith("MONOTONIC_USEC=")
        assert states().index("READY=1") < reloading
        assert node.stop(30) == 0
        assert states()[-1] == "STOPPING=1"
    assert list((tmp_path / "storage" / "run").iterdir()) == []


@pytest.mark.parametrize("role", ["receive"])
def test_a_node_of_one_role_is_alive(tmp_path: Path, role: str) -> None:
    with service(tmp_path, role) as (_, states):
        wait_until(lambda: "WATCHDOG=1" in states(), 30, "WATCHDOG")


def test_a_wrong_file_is_named_and_the_node_goes_on_as_it_was(tmp_path: Path) -> None:
    with service(tmp_path) as (node, states):
        wait_until(lambda: "READY=1" in states(), 30, "READY")
        node.config.write_text("[node]\nport = 0\n", encoding="utf-8")
        os.kill(node.pid, signal.SIGHUP)
        wait_until(lambda: states().count("READY=1") == 2, 30, "READY after a refused reload")
        assert "node.reload_refused" in node.output()
        assert f"{node.config}:2: node.port: found 0" in node.output()
        seen = states().count("WATCHDOG=1")
        wait_until(lambda: states().count("WATCHDOG=1") > seen, 30, "WATCHDOG after a refused reload")


def test_a_peer_that_is_added_is_let_in_without_a_restart(tmp_path: Path, peer_program: Callable[[str], Path]) -> None:
    store = [str(peer_program("storescu")), "-aet", "NEWPEER", "-aec", "DICOMNODE", "-ta", "10"]
    with service(tmp_path) as (node, states):
        wait_until(lambda: "READY=1" in states(), 30, "READY")
        address = ["127.0.0.1", str(node.port)]
        echo = [str(peer_program("echoscu")), *store[1:], *address]
        assert subprocess.run(echo, capture_output=True, check=False).returncode != 0
        added = subprocess.run(
            [*node.command[:1], "peers", "add", "new", "--ae-title", "NEWPEER", "--host", "127.0.0.1", "--port", "104",
             "--may", "store", "--config", str(node.config)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f"the running node (process {node.pid}) follows" in added.stdout
        wait_until(lambda: states().count("READY=1") == 2, 30, "READY after a reload")
        assert subprocess.run(echo, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0(tmp_path: Path, number: signal.Signals) -> None:
    with service(tmp_path, "receive") as (node, states):
        os.kill(node.pid, number)
        assert node.popen is not None
        assert node.popen.wait(30) == 0
        assert states()[-1] == "STOPPING=1"


def test_a_wrong_configuration_is_one_line_and_2(tmp_path: Path) -> None:
    config = make_config(tmp_path, [], 11112, {"node": {"ae_title": ""}})
    command = NodeProcess(config, 0).command
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "node.ae_title: an AE title is 1 to 16 characters, this one is empty" in done.stderr


def test_what_may_be_mended_without_us_is_tried_again(tmp_path: Path) -> None:
    """A database that comes up after the node, as at boot: systemd starts the node again after any code but 2."""
    url = f"postgresql+psycopg://user@127.0.0.1:{free_port()}/none"
    command = NodeProcess(make_config(tmp_path, [], free_port(), {"database": {"url": url}}), 0).command
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == EXIT_NOT_NOW != EXIT_ERROR
    assert done.stderr.count("\n") == 1
    assert "node.not_now" in done.stderr
    assert "Connection refused" in done.stderr
    unit = read_unit()
    assert (unit["Restart"], unit["RestartPreventExitStatus"]) == ("on-failure", str(EXIT_ERROR))


def test_an_unknown_role_is_named(tmp_path: Path) -> None:
    command = NodeProcess(make_config(tmp_path, [], 11112), 0, ["receive", "cook"]).command
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (
        2, "dicomnode: --roles: found 'cook', needed one or more of receive,pair,work,send\n",
    )  # fmt: skip


def test_the_unit_verifies(tmp_path: Path, peer_program: Callable[[str], Path]) -> None:
    text = (UNITS / "dicomnode.service").read_text(encoding="utf-8")
    unit = tmp_path / "dicomnode.service"  # systemd wants to find the program
    unit.write_text(text.replace("/opt/dicomnode/bin/dicomnode", "/bin/true"), encoding="utf-8")
    done = subprocess.run(
        [str(peer_program("systemd-analyze")), "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_hardened(tmp_path: Path, peer_program: Callable[[str], Path]) -> None:
    unit = tmp_path / "dicomnode.service"
    unit.write_text((UNITS / "dicomnode.service").read_text(encoding="utf-8"), encoding="utf-8")
    command = [str(peer_program("systemd-analyze")), "security", "--offline=true", "--threshold=20", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_unit_gives_the_node_time_to_stop() -> None:
    unit = read_unit()
    assert unit["Type"] == "notify"
    assert unit["KillMode"] == "mixed"
    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert unit["User"] == "dicomnode"
    assert int(unit["TimeoutStopSec"]) > 2 * 20  # limits.shutdown_s, and what comes after it
    assert int(unit["WatchdogSec"]) > 2 * 20


def test_the_user_and_the_folder_are_made(tmp_path: Path, peer_program: Callable[[str], Path]) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0::/root:/bin/sh\n", encoding="utf-8")
    (etc / "group").write_text("root:x:0:\n", encoding="utf-8")
    for program, flags in (("sysusers", []), ("tmpfiles", ["--create"])):
        file = UNITS / f"{program}.d" / "dicomnode.conf"
        command = [str(peer_program(f"systemd-{program}")), f"--root={tmp_path}", *flags, str(file)]
        subprocess.run(command, check=True)
    assert "\ndicomnode:" in (etc / "passwd").read_text(encoding="utf-8")
    assert (etc / "dicomnode").stat().st_mode & 0o777 == 0o750


def read_unit() -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    parser.read(UNITS / "dicomnode.service", encoding="utf-8")
    return dict(parser["Service"])
