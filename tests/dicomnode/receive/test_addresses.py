"""Peers' hosts become addresses, and a name that nobody knows is a warning, not a failure."""

from __future__ import annotations

from structlog.testing import capture_logs

from dicomnode.receive.addresses import resolve_peers
from dicomnode.settings import PeerSettings


def peer(name: str, host: str) -> PeerSettings:
    return PeerSettings(name=name, ae_title="ANY", host=host, port=104)


def test_hosts_become_addresses() -> None:
    found = resolve_peers([peer("a", "192.0.2.8"), peer("b", "localhost"), peer("c", "2001:DB8::1")])
    assert found["a"] == {"192.0.2.8"}
    assert "127.0.0.1" in found["b"]
    assert found["c"] == {"2001:db8::1"}


def test_an_unknown_name_is_a_warning() -> None:
    with capture_logs() as logs:
        assert resolve_peers([peer("a", "no-such-host.invalid"), peer("b", "no-other-host.invalid")]) == {
            "a": set(),
            "b": set(),
        }
    assert [(entry["event"], entry["peer"]) for entry in logs] == [
        ("receive.peer_unresolved", "a"),
        ("receive.peer_unresolved", "b"),
    ]


def test_a_network_stands_for_itself() -> None:
    assert resolve_peers([peer("a", "10.1.2.0/24")]) == {"a": {"10.1.2.0/24"}}


def test_what_was_known_of_a_name_holds_while_nobody_knows_it() -> None:
    before = {"a": frozenset({"192.0.2.8"}), "b": frozenset({"192.0.2.9"})}
    with capture_logs() as logs:
        found = resolve_peers([peer("a", "no-such-host.invalid"), peer("b", "192.0.2.10")], before)
    assert found == {"a": {"192.0.2.8"}, "b": {"192.0.2.10"}}
    assert [(row["event"], row["peer"], row["addresses"]) for row in logs] == [
        ("receive.peer_resolved", "b", ["192.0.2.10"])
    ]
