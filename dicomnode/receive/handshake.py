"""Makes the TLS handshake with a caller in the caller's own thread, so that nobody else waits for it.

Flow: receive.scp > [handshake] > certificates, receive.waiting
Never: a handshake in the loop that accepts connections; a word of DICOM before it is done, or without it.
"""

from __future__ import annotations

import socket
import ssl
from errno import ECONNABORTED
from socketserver import BaseServer
from typing import Any

from dicomnode.audit import NODE_AUTHENTICATION, Party
from dicomnode.certificates import read_peer_certificate
from dicomnode.logs import get_logger
from dicomnode.metrics import REFUSED_ASSOCIATIONS, Counts
from dicomnode.receive.alerts import Alerts
from dicomnode.receive.waiting import WaitingConnections

log = get_logger()

HANDSHAKE_S = 10.0
# OpenSSL's reasons, and what an administrator should make of them.
REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate, and tls.require_client_certificate needs one",
    "NO_SHARED_CIPHER": "it offered no cipher suite of ECDHE with AES-GCM or ChaCha20",
    "UNSUPPORTED_PROTOCOL": "it offered neither TLS 1.2 nor TLS 1.3",
    "WRONG_VERSION_NUMBER": "it did not speak TLS; node.port is for callers without",
    "HTTP_REQUEST": "it spoke HTTP, not TLS",
}
ALERT = "_ALERT_"  # in the reasons that are alerts: those the caller sent


class Handshake(BaseServer):
    """Mixin of a `ThreadingMixIn` server: each of its connections is TLS, or is closed.

    Attributes
    ----------
    context : ssl.SSLContext
        What callers meet; replaced as a whole when certificates change, connections that are open keep theirs.
    waiting : WaitingConnections
        Where a connection waits while it shakes hands, and until it asks for an association.
    counts : Counts
        What is counted of those who are refused.
    alerts : Alerts
        What the audit trail is told of them.
    """

    context: ssl.SSLContext
    waiting: WaitingConnections
    counts: Counts
    alerts: Alerts

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands, in the thread that `ThreadingMixIn` made for this connection; then go on as without TLS."""
        secured = self._shake_hands(request, str(client_address[0]))
        if secured is None:
            return
        try:
            super().finish_request(secured, client_address)
        except BaseException:  # the server knows the connection without TLS alone, which is no more
            self.shutdown_request(secured)
            raise

    def _shake_hands(self, request: socket.socket, address: str) -> ssl.SSLSocket | None:
        request.settimeout(HANDSHAKE_S)  # of the whole handshake, not of each of its messages
        try:
            secured = self.context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        except OSError as error:  # it has hung up already
            log.info("receive.no_handshake", address=address, why=str(error))
            self.waiting.remove(request)
            request.close()
            return None
        try:
            if not self.waiting.replace(request, secured):
                raise ConnectionAbortedError(ECONNABORTED, "cut to make room for another")
            secured.do_handshake()
        except OSError as error:
            if _has_hung_up(error):
                log.info("receive.no_handshake", address=address, why=str(error))
            else:
                self.counts.add(REFUSED_ASSOCIATIONS, rule="TLS")
                log.warning("receive.refused", rule="TLS", why=f"{address}: {_explain(error)}")
                self.alerts.note(NODE_AUTHENTICATION, "TLS", _explain(error), Party("", address))
        else:
            log.info("receive.secured", address=address, version=secured.version(), certificate=_name(secured))
            return secured
        self.waiting.remove(secured)
        secured.close()
        return None


def _has_hung_up(error: OSError) -> bool:
    """Tell whether the caller just left, as health checks and port scans do."""
    return isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError | TimeoutError)


def _explain(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"it did not finish the TLS handshake within {HANDSHAKE_S:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}; tls.ca must hold the CA that signed it"
    reason = (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or str(error)
    if ALERT in reason:
        return f"it did not accept ours: {reason.partition(ALERT)[2].replace('_', ' ').lower()} (TLS alert)"
    return REASONS.get(reason, f"no TLS handshake: {reason.replace('_', ' ').lower()}")


def _name(secured: ssl.SSLSocket) -> str:
    shown = read_peer_certificate(secured)
    return "none" if shown is None else str(shown)
