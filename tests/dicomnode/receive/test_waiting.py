"""Who is cut when too many connections wait: the oldest of the address that has most; and who is not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from dicomnode.receive.waiting import WaitingConnections

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Give connections: our end, and the peer's."""
    with ExitStack() as held:
        made = [socket.socketpair() for _ in range(6)]
        for pair in made:
            for end in pair:
                held.enter_context(end)
                end.settimeout(0)
        yield made


def is_cut(pair: Pair) -> bool:
    try:
        return pair[1].recv(1) == b""
    except BlockingIOError:
        return False


def test_one_address_does_not_cut_another(pairs: list[Pair]) -> None:
    waiting = WaitingConnections()
    addresses = ["10.1.2.8", *["10.9.9.9"] * 5]
    cut = [waiting.add(ours, address, 3) for (ours, _), address in zip(pairs, addresses, strict=True)]
    assert cut == [False, False, False, True, True, True]
    assert [is_cut(pair) for pair in pairs] == [False, True, True, True, False, False]
    assert waiting.count() == 3


def test_who_asks_or_leaves_waits_no_more(pairs: list[Pair]) -> None:
    waiting = WaitingConnections()
    for ours, _ in pairs[:3]:
        assert not waiting.add(ours, "10.1.2.8", 3)
    assert waiting.remove(pairs[0][0])
    assert not waiting.remove(pairs[0][0])
    assert not waiting.add(pairs[3][0], "10.1.2.8", 3)
    assert not any(is_cut(pair) for pair in pairs)


def test_tls_waits_in_the_place_of_its_connection(pairs: list[Pair]) -> None:
    waiting = WaitingConnections()
    (first, _), (second, _), (secured, _), *_ = pairs
    waiting.add(first, "10.1.2.8", 9)
    waiting.add(second, "10.1.2.8", 9)
    assert waiting.replace(first, secured)
    assert not waiting.replace(first, secured)
    waiting.cut_oldest()
    assert is_cut(pairs[2])
    assert not is_cut(pairs[1])
    assert not waiting.replace(secured, first)
    waiting.cut_all()
    waiting.cut_oldest()
    assert (is_cut(pairs[1]), waiting.count()) == (True, 0)


def test_a_peer_that_is_faster_does_no_harm(pairs: list[Pair]) -> None:
    waiting = WaitingConnections()
    waiting.add(pairs[0][0], "10.1.2.8", 1)
    pairs[0][0].close()
    assert waiting.add(pairs[1][0], "10.1.2.8", 1)
    assert waiting.count() == 1
