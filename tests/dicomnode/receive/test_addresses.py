"""Peers' hosts become addresses, side by side; what was found of a name holds, and one nobody knows is a warning."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from dicomnode.receive import addresses
from dicomnode.receive.addresses import Names
from dicomnode.settings import PeerSettings
from tests.waiting import wait_until

WAIT_S = 10.0


def peer(name: str, host: str) -> PeerSettings:
    return PeerSettings(name=name, ae_title="ANY", host=host, port=104)


class NameServer:
    """What the process's resolver says of a name: addresses, nothing, or no word at all until it is told to."""

    def __init__(self) -> None:
        self.zone: dict[str, str] = {}
        self.silent: set[str] = set()
        self.speak = threading.Event()
        self.asked: list[str] = []

    def answer(self, host: str, *_rest: Any, **_named: Any) -> list[Any]:
        self.asked.append(host)
        if host in self.silent:
            self.speak.wait(WAIT_S)
        if host not in self.zone:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.zone[host], 0))]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.answer)
    yield server
    server.speak.set()


def test_hosts_become_addresses() -> None:
    peers = [peer("a", "192.0.2.8"), peer("b", "localhost"), peer("c", "2001:DB8::1"), peer("d", "10.1.2.0/24")]
    names = Names()
    names.follow(peers)
    names.wait(WAIT_S)
    found = names.find(peers)
    assert found["a"] == {"192.0.2.8"}
    assert "127.0.0.1" in found["b"]
    assert found["c"] == {"2001:db8::1"}
    assert found["d"] == {"10.1.2.0/24"}


def test_what_is_no_name_is_known_without_a_name_server(server: NameServer) -> None:
    peers = [peer("a", "192.0.2.8"), peer("d", "10.1.2.0/24")]
    names = Names()
    names.follow(peers)
    assert names.find(peers) == {"a": {"192.0.2.8"}, "d": {"10.1.2.0/24"}}
    assert server.asked == []


def test_an_unknown_name_is_said_once_and_so_is_that_it_is_known(server: NameServer) -> None:
    peers, names = [peer("a", "a.invalid"), peer("b", "b.invalid")], Names()
    with capture_logs() as logs:
        for _ in range(2):
            names.follow(peers)
            names.wait(WAIT_S)
        assert names.find(peers) == {"a": frozenset(), "b": frozenset()}
        server.zone["b.invalid"] = "192.0.2.9"
        names.ask_again()
        names.wait(WAIT_S)
    assert names.find(peers) == {"a": frozenset(), "b": {"192.0.2.9"}}
    told = [(row["log_level"], row["event"], row["peer"]) for row in logs]
    assert sorted(told[:2]) == [
        ("warning", "receive.peer_unresolved", "a"),
        ("warning", "receive.peer_unresolved", "b"),
    ]
    assert told[2:] == [("info", "receive.peer_resolved", "b")]


def test_what_was_known_of_a_name_holds_while_nobody_knows_it(server: NameServer) -> None:
    server.zone = {"a.invalid": "192.0.2.8", "b.invalid": "192.0.2.9"}
    before, names = [peer("a", "a.invalid"), peer("b", "b.invalid")], Names()
    names.follow(before)
    names.wait(WAIT_S)
    del server.zone["a.invalid"]
    server.zone["b.invalid"] = "192.0.2.10"
    after = [*before, peer("a2", "a.invalid"), peer("c", "c.invalid")]
    with capture_logs() as logs:
        names.follow(after)
        names.wait(WAIT_S)
    assert names.find(after) == {"a": {"192.0.2.8"}, "a2": {"192.0.2.8"}, "b": {"192.0.2.10"}, "c": frozenset()}
    assert [(row["event"], row["peer"]) for row in sorted(logs, key=lambda row: row["peer"])] == [
        ("receive.peer_resolved", "b"),
        ("receive.peer_unresolved", "c"),
    ]


def test_a_name_that_no_peer_has_any_more_is_forgotten(server: NameServer) -> None:
    server.zone = {"a.invalid": "192.0.2.8"}
    peers, names = [peer("a", "a.invalid")], Names()
    names.follow(peers)
    names.wait(WAIT_S)
    names.follow([])
    assert names.find(peers) == {"a": frozenset()}


def test_no_name_waits_for_another_and_none_is_waited_for_without_end(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.silent = {"b.invalid"}
    server.zone = {"a.invalid": "192.0.2.8", "b.invalid": "192.0.2.9", "c.invalid": "192.0.2.10"}
    monkeypatch.setattr(addresses, "AT_ONCE", 2)
    peers, names = [peer(name, f"{name}.invalid") for name in "abc"], Names()
    with capture_logs() as logs:
        names.follow(peers)
        names.follow(peers)  # what is being looked up is not asked for again
        wait_until(lambda: names.find(peers)["c"], WAIT_S, "the names after the silent one")
        names.wait(0.05)
        assert names.find(peers) == {"a": {"192.0.2.8"}, "b": frozenset(), "c": {"192.0.2.10"}}
        assert server.asked.count("b.invalid") == 1
        server.speak.set()
        names.wait(WAIT_S)
    assert names.find(peers)["b"] == {"192.0.2.9"}
    assert [(row["event"], row["peer"]) for row in logs] == [
        ("receive.peer_unresolved", "b"),
        ("receive.peer_resolved", "b"),
    ]


def test_without_a_thread_the_next_call_looks_up_what_this_one_could_not(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server.zone = {"a.invalid": "192.0.2.8"}
    peers, names = [peer("a", "a.invalid")], Names()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        names.follow(peers)
    names.ask_again()
    names.wait(WAIT_S)
    assert names.find(peers) == {"a": {"192.0.2.8"}}
