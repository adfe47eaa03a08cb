"""A connection waits for bytes, a wake or its deadline; plain and over TLS, whose bytes `poll` cannot see, alike."""

from __future__ import annotations

import math
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.association import Association

from dicomnode.receive.connection import Connection
from tests.conftest import find_peer_program
from tests.peers_programs import LOOPBACK

SEND_S = 1.0
SHORT_S = 0.2
LONG_S = 20.0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file with a key and a certificate of its own for loopback."""
    path = tmp_path_factory.mktemp("tls") / "node.pem"
    command: list[str | Path] = [
        find_peer_program("openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]
    command += ["-nodes", "-subj", "/CN=node", "-days", "2", "-keyout", path, "-out", path.with_suffix(".crt")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.fixture
def unread() -> list[bool]:
    """Give what the connection tells of a peer that does not read."""
    return []


@pytest.fixture(params=["plain", "tls"])
def ends(request: pytest.FixtureRequest, unread: list[bool]) -> Iterator[tuple[Connection, socket.socket]]:
    """Give a connection of ours and the peer's end of it."""
    with ExitStack() as held, socket.create_server((LOOPBACK, 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), timeout=LONG_S)
        ours, _ = listener.accept()
        if request.param == "tls":
            ours, peer = shake_hands(ours, peer, request.getfixturevalue("certificate"))
        held.callback(peer.close)
        connection = Connection(Association(AE(), "acceptor"), ours, SEND_S, lambda: unread.append(True))
        held.callback(connection.release)
        held.callback(connection.close)
        yield connection, peer


def shake_hands(ours: socket.socket, peer: socket.socket, certificate: Path) -> tuple[socket.socket, socket.socket]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(certificate)
    client.check_hostname = False
    client.load_verify_locations(certificate.with_suffix(".crt"))
    wrapped: list[socket.socket] = []
    thread = threading.Thread(target=lambda: wrapped.append(server.wrap_socket(ours, server_side=True)))
    thread.start()
    peer = client.wrap_socket(peer)
    thread.join(LONG_S)
    return wrapped[0], peer


def read_all(connection: Connection, size: int) -> bytes:
    found = b""
    while len(found) < size:
        chunk = connection.receive(time.monotonic() + LONG_S)
        assert chunk, "bytes are needed"
        found += chunk
    return found


def test_every_byte_comes_however_it_was_cut(ends: tuple[Connection, socket.socket]) -> None:
    connection, peer = ends
    data = bytes(range(256)) * 4000
    sender = threading.Thread(target=peer.sendall, args=(data,))
    sender.start()
    assert read_all(connection, len(data)) == data
    sender.join(LONG_S)
    with pytest.raises(TimeoutError):
        connection.receive(time.monotonic() + SHORT_S)


def test_many_small_records_are_all_read_though_they_came_at_once(ends: tuple[Connection, socket.socket]) -> None:
    connection, peer = ends
    for number in range(200):
        peer.sendall(bytes([number]))
    assert read_all(connection, 200) == bytes(range(200))


def test_silence_ends_at_the_deadline(ends: tuple[Connection, socket.socket]) -> None:
    connection, _ = ends
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        connection.receive(started + SHORT_S)
    assert SHORT_S <= time.monotonic() - started < LONG_S


def test_another_thread_wakes_it_and_one_that_is_gone_is_not_woken(ends: tuple[Connection, socket.socket]) -> None:
    connection, peer = ends
    threading.Timer(SHORT_S, connection.wake).start()
    assert connection.receive(math.inf) is None
    peer.sendall(b"x")
    assert connection.receive(math.inf) == b"x"
    connection.release()
    connection.wake()


@pytest.mark.parametrize("who", ["peer", "we"])
def test_an_end_is_no_bytes(ends: tuple[Connection, socket.socket], who: str) -> None:
    connection, peer = ends
    threading.Timer(SHORT_S, peer.close if who == "peer" else connection.hang_up).start()
    assert connection.receive(math.inf) == b""


def test_a_peer_that_does_not_read_is_given_up(ends: tuple[Connection, socket.socket], unread: list[bool]) -> None:
    connection, peer = ends
    connection.send(b"answer")
    assert peer.recv(6) == b"answer"
    assert list(connection.event_queue.queue) == ["Evt5"]
    connection.send(bytes(64 << 20))
    assert list(connection.event_queue.queue) == ["Evt5", "Evt17"]
    connection.send(bytes(64 << 20))  # which finds the connection shut, and is no second time
    assert unread == [True]
