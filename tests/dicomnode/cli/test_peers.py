"""`dicomnode peers`: the file edited, the running node told, a peer asked.

Flow: cli/peers > [test_peers]
Never: a peer beyond loopback.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE

from dicomnode.running import announce_node
from tests.dicomnode.cli.conftest import Run

VERIFICATION = "1.2.840.10008.1.1"
ADD = ("--ae-title", "PACS", "--host", "127.0.0.1", "--port", "104")


REG, PET, SECONDARY_CAPTURE = (f"1.2.840.10008.5.1.4.1.1.{last}" for last in ("66.1", "128", "7"))


@contextmanager
def echo_scp(ae_title: str = "PACS", storage: Sequence[str] = ()) -> Iterator[int]:
    ae = AE(ae_title=ae_title)
    ae.require_called_aet = True
    for sop_class_uid in (VERIFICATION, *storage):
        ae.add_supported_context(sop_class_uid)
    server: Any = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


def test_a_peer_is_added_listed_and_removed(run: Run, config: Path) -> None:
    before = config.read_text(encoding="utf-8")
    assert run("peers", "list", "--config", config).out.startswith(f"no peers in {config}")
    added = run("peers", "add", "pacs", *ADD, "--may", "store", "receive", "--destination", "--config", config)
    assert added.code == 0
    assert added.out == f"peer pacs: added to {config}; no node runs, the next one reads it\n"
    listed = run("peers", "list", "--config", config, "--json")
    assert listed.json == [
        {
            "name": "pacs",
            "ae_title": "PACS",
            "host": "127.0.0.1",
            "port": 104,
            "may": ["store", "receive"],
            "sop_classes": [],
            "transfer_syntaxes": [],
            "answers": [],
            "tls": False,
            "certificate_sha256": "",
            "certificate_subject": "",
            "priority": 0,
            "is_destination": True,
        }
    ]
    table = run("peers", "list", "--config", config).out
    assert "127.0.0.1" in table
    assert "store, receive" in table
    assert run("peers", "add", "scanner", *ADD, "--config", config).code == 0
    assert run("peers", "remove", "scanner", "--config", config).code == 0
    assert config.read_text(encoding="utf-8").startswith(before)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--ae-title", "A2345678901234567"), "--ae-title: found 'A2345678901234567'; an AE title is 1 to 16"),
        (("--host", "a b"), "--host: found 'a b'; a host is a name or an IP address"),
        (("--port", "0"), "--port: found 0; Input should be greater than or equal to 1"),
        (("--destination",), "peer 'pacs' may not receive; add \"receive\" to its may = [...]"),
    ],
)
def test_what_the_node_would_refuse_is_not_written(
    run: Run, config: Path, flags: tuple[str, ...], message: str
) -> None:
    before = config.read_text(encoding="utf-8")
    ran = run("peers", "add", "pacs", *ADD, *flags, "--config", config)
    assert ran.code == 2
    assert message in ran.err
    assert config.read_text(encoding="utf-8") == before


def test_a_bad_name_is_refused(run: Run, config: Path) -> None:
    assert "name: found 'a/b'" in run("peers", "add", "a/b", *ADD, "--config", config).err


def test_a_running_node_is_told(run: Run, config: Path, tmp_path: Path) -> None:
    told = threading.Event()
    before = signal.signal(signal.SIGHUP, lambda *_: told.set())
    try:
        with announce_node(tmp_path / "storage") as path:
            ran = run("peers", "add", "pacs", *ADD, "--config", config)
            assert told.is_set()
            process_id = path.stem.partition("@")[0]
            assert ran.out.endswith(f"the running node (process {process_id}) follows\n")
            told.clear()
            again = run("peers", "remove", "pacs", "--config", config, "--json").json
            assert again == {"file": str(config), "reloading_processes": [int(process_id)]}
            assert told.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_echo_is_answered(run: Run, config: Path) -> None:
    with echo_scp() as port:
        run("peers", "add", "pacs", *ADD[:-1], port, "--config", config)
        ran = run("peers", "echo", "pacs", "--config", config)
        assert (ran.code, ran.out) == (0, f"peer pacs: PACS at 127.0.0.1:{port} answers\n")
        answer = run("peers", "echo", "pacs", "--config", config, "--json").json
        assert answer["name"] == "pacs"
        assert 0 <= answer["answered_in_s"] < 30


def test_a_wrong_ae_title_does_not_look_like_a_network_fault(run: Run, config: Path) -> None:
    with echo_scp("OTHER") as port:
        run("peers", "add", "pacs", *ADD[:-1], port, "--config", config)
        ran = run("peers", "echo", "pacs", "--config", config)
    assert ran.code == 2
    assert "called AE title" in ran.err.replace("Called", "called")


def test_a_probe_tells_what_is_taken_and_what_is_missing_of_what_is_needed(run: Run, config: Path) -> None:
    with echo_scp(storage=(PET, SECONDARY_CAPTURE)) as port:
        destination = ("--may", "store", "receive", "--answers", "find", "move", "--destination")
        run("peers", "add", "pacs", *ADD[:-1], port, *destination, "--config", config)
        ran = run("peers", "probe", "pacs", "--config", config)
        told = run("peers", "probe", "pacs", "--config", config, "--json")
    assert (ran.code, told.code, ran.err) == (3, 3, "")
    assert f"peer pacs: PACS at 127.0.0.1:{port} is PYNETDICOM_" in ran.out
    assert ran.out.endswith(f"not taken, and {config} needs it: find, move, reg\n")
    assert told.json["missing"] == ["find", "move", "reg"]
    rows = {(row["for"], row["transfer_syntax"]): row for row in told.json["contexts"]}
    taken = {what for (what, _), row in rows.items() if row["is_taken"]}
    assert taken == {"echo", "pt", "rgb"}
    assert {what for (what, _), row in rows.items() if row["is_needed"]} == {"echo", "find", "move", "reg", "pt", "rgb"}
    assert rows["pt in jpeg-ls", "JPEGLSLossless"]["sop_class"] == "PositronEmissionTomographyImageStorage"


def test_a_probe_misses_nothing_of_a_peer_that_takes_what_is_needed(run: Run, config: Path) -> None:
    with echo_scp(storage=(REG, PET, SECONDARY_CAPTURE)) as port:
        run("peers", "add", "pacs", *ADD[:-1], port, "--may", "receive", "--destination", "--config", config)
        ran = run("peers", "probe", "pacs", "--config", config)
    assert (ran.code, ran.err) == (0, "")
    assert "not taken" not in ran.out


# pynetdicom 3.0.4 leaves the socket of a refused connection to the garbage collector (transport.py, connect).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_peer_that_is_down_is_named(run: Run, config: Path) -> None:
    with echo_scp() as port:
        pass
    run("peers", "add", "pacs", *ADD[:-1], port, "--config", config)
    ran = run("peers", "echo", "pacs", "--config", config)
    assert ran.code == 2
    assert "pacs" in ran.err
    assert ran.err.count("\n") == 1


def test_an_unknown_peer_is_named(run: Run, config: Path) -> None:
    ran = run("peers", "echo", "x", "--config", config)
    assert (ran.code, ran.err) == (2, f"dicomnode: {config}: no peer is named 'x'; peers: none\n")


def test_a_peer_is_added_as_a_network_and_with_its_certificate(run: Run, config: Path) -> None:
    before = config.read_text(encoding="utf-8")
    certificates = '[tls]\ncertificate = "a.pem"\nkey = "a.key"\nca = "ca.pem"\n'
    config.write_text(before + certificates, encoding="utf-8")
    flags = ("--ae-title", "WARD", "--host", "10.1.2.0/24", "--port", "104", "--certificate-subject", "CN = ward")
    assert run("peers", "add", "ward", *flags, "--config", config).code == 0
    assert run("peers", "add", "pacs", *ADD, "--tls", "--config", config).code == 0
    rows = run("peers", "list", "--config", config, "--json").json
    assert [(row["name"], row["host"], row["tls"], row["certificate_subject"]) for row in rows] == [
        ("ward", "10.1.2.0/24", False, "CN=ward"),
        ("pacs", "127.0.0.1", True, ""),
    ]


def test_a_network_cannot_be_asked(run: Run, config: Path) -> None:
    assert (
        run("peers", "add", "ward", "--ae-title", "W", "--host", "10.0.0.0/8", "--port", "1", "--config", config).code
        == 0
    )
    for action in ("echo", "probe"):
        ran = run("peers", action, "ward", "--config", config)
        assert (ran.code, ran.out) == (2, "")
        assert "peer ward is at 10.0.0.0/8, a network: it may call us, and cannot be called" in ran.err
