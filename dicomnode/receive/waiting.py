"""Holds the connections that have asked for no association yet, TLS handshakes under way included.

Flow: receive.scp, receive.handshake > [waiting] > receive.associations
Never: a new caller turned away for the silent ones: they make room for it; one address that silences the others.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import suppress


class WaitingConnections:
    """The sockets that wait, the oldest first; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, str] = {}  # each with its address

    def add(self, client: socket.socket, address: str, limit: int) -> bool:
        """Let a connection wait, and tell whether one was cut for it: of the address with most of them, the oldest."""
        with self._lock:
            self._clients[client] = address
            is_crowded = len(self._clients) > limit
            if is_crowded:
                self._cut_oldest()
        return is_crowded

    def replace(self, client: socket.socket, secured: socket.socket) -> bool:
        """Let TLS over a connection wait in the connection's stead; False where that was cut already."""
        with self._lock:
            if client not in self._clients:
                return False
            # In the same place: a handshake makes nobody younger.
            self._clients = {secured if one is client else one: address for one, address in self._clients.items()}
            return True

    def remove(self, client: socket.socket) -> bool:
        """Let a connection wait no more, as it asks for an association or ends; say whether it waited still."""
        with self._lock:
            return self._clients.pop(client, None) is not None

    def cut_oldest(self) -> None:
        """End the connection that has waited longest, of the address that has most."""
        with self._lock:
            if self._clients:
                self._cut_oldest()

    def cut_all(self) -> None:
        """End every connection that waits."""
        with self._lock:
            for client in list(self._clients):
                self._cut(client)

    def count(self) -> int:
        """Return how many wait."""
        with self._lock:
            return len(self._clients)

    def _cut_oldest(self) -> None:
        ((crowding, _),) = Counter(self._clients.values()).most_common(1)
        self._cut(next(client for client, address in self._clients.items() if address == crowding))

    def _cut(self, client: socket.socket) -> None:
        """Shut a connection: its thread finds the peer gone, and closes it."""
        del self._clients[client]
        with suppress(OSError):  # the peer was faster
            # Not SSLSocket's own, which takes its state from under the thread that shakes hands.
            socket.socket.shutdown(client, socket.SHUT_RDWR)
