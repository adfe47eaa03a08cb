"""Holds the connections that have asked for no association yet, TLS handshakes under way included.

Flow: receive.scp, receive.handshake > [waiting] > receive.associations
Never: a new caller turned away for the silent ones: they make room for it, the oldest first.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class WaitingConnections:
    """The sockets that wait, the oldest first; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, None] = {}

    def add(self, client: socket.socket, limit: int) -> int:
        """Let a connection wait, and return how many were cut for it."""
        with self._lock:
            self._clients[client] = None
            crowded = list(self._clients)[:-limit]
            for silent in crowded:
                self._cut(silent)
        return len(crowded)

    def replace(self, client: socket.socket, secured: socket.socket) -> bool:
        """Let TLS over a connection wait in the connection's stead; False where that was cut already."""
        with self._lock:
            if client not in self._clients:
                return False
            # In the same place: a handshake makes nobody younger.
            self._clients = {secured if one is client else one: None for one in self._clients}
            return True

    def remove(self, client: socket.socket) -> bool:
        """Let a connection wait no more, as it asks for an association or ends; say whether it waited still."""
        with self._lock:
            return self._clients.pop(client, self) is None

    def cut_oldest(self) -> bool:
        """End the connection that has waited longest; False where none waits."""
        with self._lock:
            oldest = next(iter(self._clients), None)
            if oldest is not None:
                self._cut(oldest)
        return oldest is not None

    def cut_all(self) -> None:
        """End every connection that waits."""
        with self._lock:
            for client in list(self._clients):
                self._cut(client)

    def count(self) -> int:
        """Return how many wait."""
        with self._lock:
            return len(self._clients)

    def _cut(self, client: socket.socket) -> None:
        """Shut a connection: its thread finds the peer gone, and closes it."""
        del self._clients[client]
        with suppress(OSError):  # the peer was faster
            # Not SSLSocket's own, which takes its state from under the thread that shakes hands.
            socket.socket.shutdown(client, socket.SHUT_RDWR)
