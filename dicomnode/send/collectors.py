"""Takes the audit trail to where it is kept: a file, or a syslog collector by TLS or UDP.

Flow: send/audit > [collectors] > a file, a collector
Never: a message counted as arrived before the file is flushed, or the collector has closed the connection in order.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from dicomnode.audit import is_success
from dicomnode.database.audit import AuditMessage
from dicomnode.durable import sync_folder
from dicomnode.errors import PeerUnreachableError, StorageFailedError
from dicomnode.settings import Settings
from dicomnode.tls import make_client_context

# PS3.15 A.6 and A.7: facility 10 (security/authorization), severity 5 (notice) or 4 (warning); this MSGID.
PRIORITY_NOTICE, PRIORITY_WARNING = 10 * 8 + 5, 10 * 8 + 4
MESSAGE_ID = "DICOM+RFC3881"
APPLICATION_NAME = "dicomnode"
ONLY_WRITER = 0o600

# Takes messages with their texts as they are to be sent, and returns when all have arrived.
Collector = Callable[[Sequence[AuditMessage]], None]


def make_collectors(settings: Settings) -> dict[str, Collector]:
    """Return what the settings name, by channel.

    Raises
    ------
    ConfigurationError
        If the collector is called by TLS, and a file of [tls] cannot be used.
    """
    audit, collectors = settings.audit, dict[str, Collector]()
    if audit.file:
        collectors["file"] = partial(append, audit.file)
    if audit.host and audit.transport == "udp":
        collectors["syslog"] = partial(send_datagrams, (audit.host, audit.port))
    elif audit.host:
        context = make_client_context(settings.tls)
        collectors["syslog"] = partial(send_stream, (audit.host, audit.port), context, settings.send.timeout_s)
    return collectors


def append(path: str, messages: Sequence[AuditMessage]) -> None:
    """Append each message as a line to a file that others may rotate, and flush it.

    Raises
    ------
    StorageFailedError
        If it cannot be written; what was written of them may be written again.
    """
    lines = "".join(f"{message.text}\n" for message in messages).encode("ascii")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, ONLY_WRITER)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                lines = b"\n" + lines  # the disk was full within a line
            while lines:
                lines = lines[file.write(lines) :]
            os.fsync(descriptor)
        if size == 0:
            sync_folder(Path(path).parent)
    except OSError as error:
        raise StorageFailedError(
            f"audit.file {path}: {error.strerror}; the node's user must be able to write it"
        ) from error


def send_stream(
    place: tuple[str, int], context: ssl.SSLContext, timeout_s: float, messages: Sequence[AuditMessage]
) -> None:
    """Send messages over one TLS connection (RFC 5425), and wait until the collector has closed it in order.

    Syslog knows no answer. A collector that has read all of it closes in order (RFC 5425 4.4); one that dies before
    leaves the connection broken.

    Raises
    ------
    PeerUnreachableError
        If they may not have arrived; they may be sent again.
    """
    frames = b"".join(b"%d %b" % (len(line), line) for line in map(encode_syslog, messages))
    where = f"audit collector {place[0]}:{place[1]}"
    try:
        with (
            socket.create_connection(place, timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=place[0]) as secured,
        ):
            secured.sendall(frames)
            secured.unwrap().close()
    except ssl.SSLCertVerificationError as error:
        raise PeerUnreachableError(
            f"{where}: its certificate is not accepted: {error.verify_message}; tls.ca must hold its CA"
        ) from error
    except OSError as error:
        raise PeerUnreachableError(f"{where}: {error or type(error).__name__}") from error


def send_datagrams(place: tuple[str, int], messages: Sequence[AuditMessage]) -> None:
    """Send each message as a datagram (RFC 5426); nobody can tell whether it arrives.

    Raises
    ------
    PeerUnreachableError
        If one cannot be sent.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as sender:
            for message in messages:
                sender.sendto(encode_syslog(message), address)
    except OSError as error:
        raise PeerUnreachableError(f"audit collector {place[0]}:{place[1]}: {error}") from error


def encode_syslog(message: AuditMessage) -> bytes:
    """Return a SYSLOG-MSG of RFC 5424; its MSG is ASCII, so that no byte order mark is due (6.4)."""
    priority = PRIORITY_NOTICE if is_success(message.text) else PRIORITY_WARNING
    at = datetime.fromtimestamp(message.recorded_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    host = socket.gethostname() or "-"
    head = f"<{priority}>1 {at} {host} {APPLICATION_NAME} {os.getpid()} {MESSAGE_ID} - "
    return head.encode("ascii", "replace") + message.text.encode("ascii")
