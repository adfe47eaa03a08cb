"""Finds which IP addresses the configured peers stand for; a network stands for itself.

Flow: receive.scp > [addresses] > receive.policy
Never: a look-up while a caller or a reload waits, or one name for another; a peer shut out because a name server that
knew it does not answer now.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from dicomnode.logs import get_logger
from dicomnode.receive.policy import Addresses, normalise_address
from dicomnode.settings import PeerSettings

log = get_logger()

AT_ONCE = 32  # names that are looked up side by side


class Names:
    """What the names among the peers' hosts stand for: of each what was found last, whoever answers now.

    They are looked up side by side, in threads of their own: a name server may take minutes to say nothing. Any thread
    may call.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._peers: tuple[PeerSettings, ...] = ()
        self._found: dict[str, frozenset[str]] = {}
        self._missed: set[str] = set()  # nothing was ever found of them, and that was said
        self._asked: set[str] = set()  # looked up now, or in the queue
        self._queue: deque[str] = deque()
        self._threads = 0

    def find(self, peers: Iterable[PeerSettings]) -> Addresses:
        """Return the addresses of each peer's host by the peer's name; none of a name of which nothing is known yet."""
        with self._changed:
            return {peer.name: _read(peer) or self._found.get(peer.host, frozenset()) for peer in peers}

    def follow(self, peers: Iterable[PeerSettings]) -> None:
        """Begin to look up the names of these peers, from now on of these alone; return at once."""
        with self._changed:
            self._peers = tuple(peers)
            names = self._list_names()
            self._found = {name: addresses for name, addresses in self._found.items() if name in names}
            self._missed &= names
        self.ask_again()

    def ask_again(self) -> None:
        """Begin to look up every name that is not being looked up; return at once."""
        with self._changed, suppress(RuntimeError):  # no thread for it: the next call begins what this one could not
            self._queue.extend(sorted(self._list_names() - self._asked))
            self._asked.update(self._queue)
            for _ in range(min(AT_ONCE - self._threads, len(self._queue))):
                threading.Thread(target=self._look_up, name="names", daemon=True).start()
                self._threads += 1

    def wait(self, deadline_s: float) -> None:
        """Return when every name that was asked for has its answer; after so many seconds say which have none."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asked, deadline_s)
            for name in sorted(self._asked):
                self._miss(name, f"no name server has answered within {deadline_s:g} s")

    def _look_up(self) -> None:
        """Look up one name after the other until none is left."""
        while (name := self._take()) is not None:
            try:
                answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                self._note(name, frozenset(), str(error))
            else:
                self._note(name, frozenset(normalise_address(str(address[0])) for *_, address in answers))

    def _take(self) -> str | None:
        """Return the next name; without one, count this thread out."""
        with self._changed:
            if self._queue:
                return self._queue.popleft()
            self._threads -= 1
        return None

    def _note(self, name: str, addresses: frozenset[str], error: str = "") -> None:
        """Keep what a name stands for; where nothing was found, what was known holds."""
        with self._changed:
            self._asked.discard(name)
            self._changed.notify_all()
            before = self._found.get(name)
            if not addresses:
                self._miss(name, error)
            elif addresses != before:
                self._found[name] = addresses
                if before is not None or name in self._missed:
                    for peer in self._list_peers(name):
                        log.info("receive.peer_resolved", peer=peer, addresses=sorted(addresses))
                self._missed.discard(name)

    def _miss(self, name: str, error: str) -> None:
        """Say once of a name of which nothing is known why that is so."""
        if name not in self._found and name not in self._missed:
            self._missed.add(name)
            for peer in self._list_peers(name):
                log.warning("receive.peer_unresolved", peer=peer, host=name, error=error)

    def _list_names(self) -> set[str]:
        return {peer.host for peer in self._peers if not _read(peer)}

    def _list_peers(self, name: str) -> list[str]:
        return [peer.name for peer in self._peers if peer.host == name]


def _read(peer: PeerSettings) -> frozenset[str]:
    """Return what needs no name server: a network, or an IP address."""
    if peer.is_network:
        return frozenset({peer.host})
    try:
        ipaddress.ip_address(peer.host)
    except ValueError:
        return frozenset()
    return frozenset({normalise_address(peer.host)})
