"""A connected socket, plain or TLS, that is waited for with a deadline and can be woken by another thread.

Flow: a peer > [connection] > receive.upper_layer
Never: a poll in a loop; a wait without an end; a meaning of a byte.
"""

from __future__ import annotations

import math
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

RECEIVE_BYTES = 262144  # at one time: a PDU of the usual 128 KiB comes in one or two
_WANT_READ = (BlockingIOError, ssl.SSLWantReadError)


class Connection(AssociationSocket):
    """What an association reads from and writes to; all but `wake` and `hang_up` belong to the association's thread."""

    def __init__(
        self, association: Association, client: socket.socket, send_s: float, note_unread: Callable[[], None]
    ) -> None:
        super().__init__(association, client_socket=client)
        self.received = bytearray()  # and not yet taken
        self._send_s = send_s
        self._note_unread = note_unread
        self._lock = threading.Lock()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wake: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(client, select.POLLIN)

    def receive(self, deadline: float) -> bytes | None:
        """Return what comes until the deadline (monotonic seconds); empty when the peer is gone, None when woken.

        Raises
        ------
        TimeoutError
            At the deadline.
        """
        while self.socket is not None:
            try:
                return self.socket.recv(RECEIVE_BYTES)
            except _WANT_READ:  # asked first, as TLS may hold bytes that `poll` does not know of
                if self._wait(deadline):
                    return None
            except OSError:
                break
        return b""

    def recv(self, nr_bytes: int) -> bytearray:
        """Return bytes that were received already."""
        taken = self.received[:nr_bytes]
        del self.received[:nr_bytes]
        return taken

    def send(self, bytestream: bytes) -> None:
        """Send all bytes, or note that the connection is closed (`Evt17`): to who does not read them it is shut."""
        unsent = memoryview(bytestream)
        deadline = time.monotonic() + self._send_s
        try:
            while unsent:
                if self.socket is None:
                    raise ConnectionError
                try:
                    unsent = unsent[self.socket.send(unsent) :]
                except (BlockingIOError, ssl.SSLWantWriteError):
                    self._await_reader(self.socket, select.POLLOUT, deadline)
                except ssl.SSLWantReadError:
                    self._await_reader(self.socket, select.POLLIN, deadline)
        except OSError:
            self.event_queue.put("Evt17")

    def wake(self) -> None:
        """Let `receive` return: there is something to send."""
        with self._lock:
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)

    def hang_up(self) -> None:
        """Shut the connection, whatever its thread does: it finds the peer gone."""
        client = self.socket
        if client is not None:
            with suppress(OSError):  # the peer was faster
                socket.socket.shutdown(client, socket.SHUT_RDWR)  # that of SSLSocket drops TLS under a running send

    def release(self) -> None:
        """Give back what is held besides the socket; the association has ended."""
        self.received.clear()
        with self._lock:
            if self._wake is not None:
                os.close(self._wake)
            self._wake = None

    def _shutdown_socket(self) -> None:
        """Shut and close; pynetdicom's leaves the socket open when the peer has gone first."""
        self.hang_up()
        if self.socket is not None:
            self.socket.close()

    def _await_reader(self, client: socket.socket, event: int, deadline: float) -> None:
        """Wait until the socket takes more, or shut it at the deadline."""
        poll = select.poll()
        poll.register(client, event)
        if not poll.poll(_milliseconds_until(deadline)):
            self.hang_up()  # so that nobody waits for this peer again
            self._note_unread()
            raise TimeoutError

    def _wait(self, deadline: float) -> bool:
        """Wait for bytes, or for `wake`, which it tells."""
        ready = self._poll.poll(_milliseconds_until(deadline))
        if not ready:
            raise TimeoutError
        is_woken = any(descriptor == self._wake for descriptor, _ in ready)
        if is_woken and self._wake is not None:
            os.eventfd_read(self._wake)
        return is_woken


def _milliseconds_until(deadline: float) -> int | None:
    """Return how long to wait, rounded up so that nobody asks again just before the deadline."""
    if deadline == math.inf:
        return None
    return max(0, math.ceil((deadline - time.monotonic()) * 1000))
