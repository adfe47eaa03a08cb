"""The node as a process with a port for TLS: its certificates at start, at a reload, and when they run out.

Flow: dicomnode serve > [test_tls] > DCMTK's programs, TLS clients
Never: a certificate that was not made here.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian

from tests.builders import NodeProcess, Peer, make_config
from tests.certificates import Authority, Identity
from tests.conftest import find_peer_program
from tests.peers.test_receive_tls import trust
from tests.peers_programs import LOOPBACK, StoreScp, free_port, is_listening
from tests.raw_scu import RawScu
from tests.receiving import MR, encode, make_data_set
from tests.waiting import wait_until

UID = str(make_data_set(1).SOPInstanceUID)


def make_node(folder: Path, authority: Authority, identity: Identity, tls_port: int) -> NodeProcess:
    sections = {"tls": authority.settings(identity, tls_port).model_dump(mode="json")}
    port = free_port()
    return NodeProcess(make_config(folder, [Peer("scanner", "SCANNER")], port, sections), port, ["receive"])


def put(new: Identity, in_place_of: Identity) -> None:
    shutil.copyfile(new.certificate, in_place_of.certificate)
    shutil.copyfile(new.key, in_place_of.key)


def shown_name(context: ssl.SSLContext, port: int) -> str:
    """Return the common name of the certificate that a new connection meets."""
    with (
        socket.create_connection((LOOPBACK, port), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=LOOPBACK) as secured,
    ):
        return str((secured.getpeercert() or {})["subject"][-1][0][1])


def reload(node: NodeProcess) -> None:
    done = "node.reload"  # node.reloaded, node.reload_refused
    before = node.output().count(done)
    os.kill(node.pid, signal.SIGHUP)
    wait_until(lambda: node.output().count(done) > before, 30, "the reload")


def test_sighup_takes_a_new_certificate_and_refuses_a_wrong_one_while_an_association_runs(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    used, second = authority.sign("/CN=first", days=29), authority.sign("/CN=second")
    context, data, tls_port = trust(authority, authority.sign("/CN=scanner")), encode(make_data_set(1)), free_port()
    with make_node(tmp_path, authority, used, tls_port) as node:
        wait_until(lambda: is_listening(tls_port), 30, "the TLS port")
        with RawScu(tls_port, tls=context, contexts=((MR, (ExplicitVRLittleEndian,)),)) as scu:
            assert scu.store(MR, UID, data) == 0
            assert node.output().count("tls.certificate_expires") == 1
            reload(node)
            assert node.output().count("tls.certificate_expires") == 2
            assert shown_name(context, tls_port) == "first"

            put(second, used)
            reload(node)
            assert shown_name(context, tls_port) == "second"
            assert node.output().count("tls.certificate_expires") == 2
            assert scu.store(MR, UID, data) == 0

            shutil.copyfile(authority.sign("/CN=third").key, used.key)
            reload(node)
            assert f"tls.key: {used.key}: does not fit {used.certificate}; name the key" in node.output()
            assert "node.reload_refused" in node.output()
            assert shown_name(context, tls_port) == "second"
            assert scu.store(MR, UID, data) == 0
        assert node.stop(30) == 0
    assert "Traceback" not in node.output()


def test_an_expired_certificate_is_an_error_in_the_log_and_the_node_serves_those_without_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    tls_port = free_port()
    with (
        make_node(tmp_path, authority, authority.sign("/CN=node", days=-1), tls_port) as node,
        RawScu(node.port) as scu,
    ):
        assert scu.store(MR, UID, encode(make_data_set(1))) == 0
        wait_until(lambda: "tls.certificate_invalid" in node.output(), 30, "the error")
        assert "the certificate expired at " in node.output()


def test_a_wrong_certificate_keeps_the_node_from_starting_and_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    identity = authority.sign("/CN=node")
    identity.key.unlink()
    command = make_node(tmp_path, authority, identity, free_port()).command
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"dicomnode: tls.key: {identity.key}: No such file or directory; name a PEM file")
    assert "Traceback" not in done.stderr


def test_peers_echo_asks_by_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    tls = authority.settings(authority.sign("/CN=node")).model_dump(mode="json")
    config = make_config(tmp_path, [], free_port(), {"tls": tls})
    dicomnode = NodeProcess(config, 0).command[0]
    with StoreScp(tmp_path, options=authority.dcmtk_options(authority.sign("/CN=pacs"))) as pacs:
        for name, flags in (("with", ["--tls"]), ("without", [])):
            added = [dicomnode, "peers", "add", name, "--ae-title", "ANY", "--host", LOOPBACK, "--port", str(pacs.port)]
            subprocess.run([*added, *flags, "--config", config], check=True, capture_output=True)
        command = [dicomnode, "peers", "echo", "--config", str(config)]
        assert subprocess.run([*command, "with"], check=False, capture_output=True).returncode == 0
        assert subprocess.run([*command, "without"], check=False, capture_output=True).returncode == 2


def test_dcmtk_asks_by_tls_what_it_is_refused_without(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    scanner = authority.sign("/O=Hospital/CN=scanner")
    tls_port, port = free_port(), free_port()
    config = make_config(
        tmp_path, [], port, {"tls": authority.settings(authority.sign("/CN=node"), tls_port).model_dump(mode="json")}
    )
    node = NodeProcess(config, port, ["receive"])
    added = [node.command[0], "peers", "add", "scanner", "--ae-title", "SCANNER", "--host", "127.0.0.0/8"]
    added += ["--port", "104", "--may", "store", "--certificate-subject", "O = Hospital, CN = scanner"]
    subprocess.run([*added, "--config", config], check=True, capture_output=True)
    echo: list[str | Path] = [find_peer_program("echoscu"), "-v", "-aet", "SCANNER", "-aec", "DICOMNODE"]
    with node:
        by_tls = subprocess.run(
            [*echo, *authority.dcmtk_options(scanner), LOOPBACK, str(tls_port)], capture_output=True, check=False
        )
        plain = subprocess.run([*echo, LOOPBACK, str(port)], capture_output=True, text=True, check=False)
    assert by_tls.returncode == 0, by_tls.stderr
    assert "Calling AE Title Not Recognized" in plain.stderr
    assert "'SCANNER' called us from 127.0.0.1 without a certificate" in node.output()
