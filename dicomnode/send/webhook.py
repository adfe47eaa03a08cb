"""Posts a notice as signed JSON.

Flow: send/notices > [webhook] > somebody's HTTP server
Never: a redirection followed, a proxy of the environment; the secret in a message or an error.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from dicomnode.errors import PeerBusyError, PeerRejectedError, PeerUnreachableError
from dicomnode.send.notice_words import Message, encode_json

TIMESTAMP, SIGNATURE = "Dicomnode-Timestamp", "Dicomnode-Signature"
TRANSIENT = frozenset({408, 425, 429})  # RFC 9110 15.5.9, RFC 8470 5.2, RFC 6585 4; and whatever is 5xx


@dataclass(frozen=True)
class Webhook:
    """Where notices are posted, and the secret they are signed with; `tls` is None for a loopback address by http."""

    url: str
    secret: bytes
    timeout_s: float
    tls: ssl.SSLContext | None

    def send(self, message: Message, now: float) -> str:
        """Post a message; return what is to be said of it, which is nothing.

        Raises
        ------
        PeerUnreachableError, PeerBusyError
            If nobody answers, not in time, or with an answer that may be another one later.
        PeerRejectedError
            If it is answered otherwise than with 2xx.
        """
        parts = urlsplit(self.url)
        where = f"webhook at {parts.hostname}"
        try:
            status = self._post(parts, encode_json(message), now)
        except ssl.SSLCertVerificationError as error:
            raise PeerUnreachableError(
                f"{where}: its certificate is not accepted: {error.verify_message}; notices.ca must hold its CA"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise PeerUnreachableError(f"{where}: {error or type(error).__name__}") from error
        if status in TRANSIENT or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise PeerBusyError(f"{where}: answered with status {status}")
        if status // 100 != http.HTTPStatus.OK // 100:
            raise PeerRejectedError(f"{where}: answered with status {status}, 2xx is needed; is notices.webhook right?")
        return ""

    def _post(self, parts: SplitResult, body: bytes, now: float) -> int:
        host = parts.hostname or ""
        connection: http.client.HTTPConnection
        if self.tls is None:
            connection = http.client.HTTPConnection(host, parts.port, timeout=self.timeout_s)
        else:
            connection = http.client.HTTPSConnection(host, parts.port, timeout=self.timeout_s, context=self.tls)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Content-Type": "application/json", "User-Agent": "dicomnode", **sign(self.secret, body, now)}
        try:
            connection.request("POST", path, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()


def sign(secret: bytes, body: bytes, now: float) -> Mapping[str, str]:
    """Return the headers that prove a body: HMAC-SHA256 over the Unix time, a full stop and the body (RFC 2104)."""
    timestamp = str(int(now))
    digest = hmac.new(secret, timestamp.encode("ascii") + b"." + body, hashlib.sha256).hexdigest()
    return {TIMESTAMP: timestamp, SIGNATURE: f"sha256={digest}"}
