"""Opens an association with a peer as requestor, and keeps pynetdicom's faults away from those who use it.

Flow: send/scu > [association] > a peer
Never: C-STORE (`storing` does that, without threads); a message (`scu` sends those); a retry (the caller decides by
the class of the error).
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from pynetdicom import AE, _config, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicomnode.certificates import read_peer_certificate
from dicomnode.errors import PeerBusyError, PeerRejectedError, PeerUnreachableError
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.send.pdus import CONTEXTS_AT_MOST, ContextKey
from dicomnode.settings import PeerSettings, Settings
from dicomnode.tls import is_proven, make_client_context, show_needed_certificate

REJECTED_TRANSIENT = 2  # PS3.8 9.3.4, table 9-21, Result


@dataclass(frozen=True)
class Caller:
    """How we present ourselves, and how long we wait for each answer, s."""

    ae_title: str
    timeout_s: float
    tls: ssl.SSLContext | None = None  # for the peers that are called by TLS


@dataclass(frozen=True)
class Service:
    """What we do for a peer over an association that we opened: the SOP classes whose SCP we are, and who answers."""

    scp_of: tuple[str, ...] = ()
    event: evt.EventType | None = None
    handle: Callable[[Any], Any] | None = None


def make_caller(settings: Settings) -> Caller:
    """Return how this node calls its peers.

    Raises
    ------
    ConfigurationError
        If a peer is called by TLS, and a file of [tls] cannot be used.
    """
    is_needed = any(peer.tls for peer in settings.peers)
    context = make_client_context(settings.tls) if is_needed else None
    return Caller(settings.node.ae_title, settings.send.timeout_s, context)


@contextmanager
def open_association(
    peer: PeerSettings, caller: Caller, contexts: Iterable[ContextKey], service: Service | None = None
) -> Iterator[Association]:
    """Open an association that offers exactly these presentation contexts, and release it at the end.

    With a `service` the peer may ask us, too, over this association, as C-GET needs it. N-EVENT-REPORT is served at any
    time, by a thread of pynetdicom's.

    Raises
    ------
    PeerUnreachableError
        If no connection can be made, or the peer aborts or does not answer in time; or if it is called by TLS and
        one side does not accept the other's certificate: that ends when a person puts a new one in place.
    PeerBusyError
        If the peer rejects the association for now.
    PeerRejectedError
        If the peer rejects the association for good, or every context.
    """
    offered = make_offer(peer, caller, contexts)
    # What is asked and answered names patients.
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    entity, gate = _make_entity(peer, caller), _Gate()
    rejections: list[A_ASSOCIATE_RJ] = []
    try:
        association = _associate(entity, peer, offered, (gate, rejections), service or Service())
        _check_established(association, peer, rejections, entity.tls_failure)
        yield from _held(association)
    finally:
        gate.open()
        entity.close_socket()


def make_offer(peer: PeerSettings, caller: Caller, contexts: Iterable[ContextKey]) -> list[ContextKey]:
    """Return the presentation contexts in the order they are offered in; raises ValueError for what cannot be asked."""
    offered = sorted(set(contexts))
    if len(offered) > CONTEXTS_AT_MOST:
        raise ValueError(f"{len(offered)} presentation contexts, an association holds {CONTEXTS_AT_MOST}")
    if peer.tls and caller.tls is None:
        raise ValueError(f"{peer.name} is called by TLS, and the caller has no context for it")
    return offered


class _Entity(AE):
    """An AE that closes its socket: pynetdicom leaves one open that could not be connected.

    `tls`, for a peer that is called by TLS, is a context and the peer, whose host its certificate must name.
    """

    opened: socket.socket | None = None
    tls: tuple[ssl.SSLContext, PeerSettings] | None = None

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        wrapped = super()._create_socket(assoc, address, tls_args)
        if self.tls is not None:
            wrapped.socket = _TlsSocket.wrap(cast(socket.socket, wrapped.socket), *self.tls)
        self.opened = wrapped.socket
        return wrapped

    @property
    def tls_failure(self) -> ssl.SSLError | None:
        """Why TLS did not come about or ended, where it did not."""
        return self.opened.failure if isinstance(self.opened, _TlsSocket) else None

    def close_socket(self) -> None:
        """Close it, whatever became of the association."""
        if self.opened is not None:
            self.opened.close()


class _TlsSocket(ssl.SSLSocket):
    """A connection by TLS that remembers why it failed: pynetdicom does not pass that on."""

    failure: ssl.SSLError | None = None
    peer: PeerSettings

    @classmethod
    def wrap(cls, connection: socket.socket, context: ssl.SSLContext, peer: PeerSettings) -> ssl.SSLSocket:
        """Put TLS over a socket that is not connected yet; `connect` shakes hands."""
        context.sslsocket_class = cls
        wrapped = cast(_TlsSocket, context.wrap_socket(connection, server_hostname=peer.host))
        wrapped.peer = peer
        return wrapped

    def connect(self, address: Any) -> None:
        """Connect and shake hands; a peer with another certificate than it is configured with is told nothing."""
        with self._remembering():
            super().connect(address)
            check_certificate(self, self.peer)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Receive; with TLS 1.3 this is where a peer that refuses our certificate is heard first."""
        with self._remembering():
            return super().recv(buflen, flags)

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except ssl.SSLError as error:
            self.failure = error
            raise


class _AnotherCertificateError(ssl.SSLError):
    """A CA that we trust has signed it, but the peer is configured with another."""


class _Gate(threading.Event):
    """Keeps pynetdicom's reactor thread from an association's messages until it is opened.

    pynetdicom halts that thread for each message that is sent and sets it free after; before the next message it may
    still be under way, and then takes the answer that the sender waits for (seen about once in 500 messages).
    """

    def set(self) -> None:
        """Stay closed: this is pynetdicom's call between two messages."""

    def open(self) -> None:
        """Set the thread free, to end with its association."""
        super().set()


def _held(association: Association) -> Iterator[Association]:
    """Hand an association out, and end it the way its use ended."""
    try:
        yield association
    except BaseException:
        association.abort()
        raise
    else:
        association.release()


def _make_entity(peer: PeerSettings, caller: Caller) -> _Entity:
    entity = _Entity(ae_title=caller.ae_title)
    if peer.tls and caller.tls is not None:
        entity.tls = (caller.tls, peer)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = caller.timeout_s
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = caller.timeout_s
    return entity


def _associate(
    entity: _Entity,
    peer: PeerSettings,
    offered: Iterable[ContextKey],
    told: tuple[_Gate, list[A_ASSOCIATE_RJ]],
    service: Service,
) -> Association:
    gate, rejections = told
    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_CONN_OPEN, _prepare_connection),
        (evt.EVT_DATA_SENT, _acknowledge_answers),
        (evt.EVT_ESTABLISHED, _close_gate, [gate]),
        (evt.EVT_PDU_RECV, _note_rejection, [rejections]),
    ]
    if service.event is not None and service.handle is not None:
        handlers.append((service.event, service.handle))
    try:
        return entity.associate(
            peer.host,
            peer.port,
            contexts=[build_context(sop_class, syntax) for sop_class, syntax in offered],
            ae_title=peer.ae_title,
            ext_neg=[build_role(sop_class, scp_role=True) for sop_class in service.scp_of],
            evt_handlers=handlers,
        )
    except OSError as error:  # the host's name has no address
        raise PeerUnreachableError(f"{peer.name}: {peer.host}: {error.strerror}") from error


def _check_established(
    association: Association,
    peer: PeerSettings,
    rejections: Iterable[A_ASSOCIATE_RJ],
    tls_failure: ssl.SSLError | None,
) -> None:
    """Turn every way in which an association does not come about into one of our errors.

    `association.is_rejected` is not asked: it stays False where the peer rejects and hangs up so fast that pynetdicom
    sees the closed connection first.
    """
    if association.is_established:
        return
    for rejection in rejections:
        raise explain_rejection(peer, rejection)
    if association.rejected_contexts and not association.accepted_contexts:
        raise explain_contexts(peer, len(association.rejected_contexts))
    if tls_failure is not None:
        raise PeerUnreachableError(f"{name_with_address(peer)}: {explain_tls(tls_failure)}") from tls_failure
    raise explain_nothing(peer)


def name_with_address(peer: PeerSettings) -> str:
    """Return how a message names a peer and where it was looked for."""
    return f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port})"


def explain_rejection(peer: PeerSettings, rejection: A_ASSOCIATE_RJ) -> PeerBusyError | PeerRejectedError:
    """Return what a peer's A-ASSOCIATE-RJ means."""
    words = f"{name_with_address(peer)} rejected the association: {rejection.reason_str}"
    return PeerBusyError(words) if rejection.result == REJECTED_TRANSIENT else PeerRejectedError(words)


def explain_unsent(peer: PeerSettings, service: str, error: Exception) -> PeerUnreachableError | PeerRejectedError:
    """Return what it means that pynetdicom did not send a request.

    RuntimeError: the association is gone; ValueError: the context was not accepted.
    """
    kind = PeerUnreachableError if isinstance(error, RuntimeError) else PeerRejectedError
    return kind(f"{peer.name}: {service} could not be sent: {error}")


def explain_contexts(peer: PeerSettings, offered: int) -> PeerRejectedError:
    """Return what it means that a peer accepted none of so many presentation contexts."""
    return PeerRejectedError(f"{name_with_address(peer)} takes none of {offered} presentation contexts")


def explain_nothing(peer: PeerSettings) -> PeerUnreachableError:
    """Return what it means that no association came about, and the peer did not say why."""
    return PeerUnreachableError(
        f"{name_with_address(peer)}: no association; nobody listens there, or the peer broke it off"
    )


def check_certificate(connection: ssl.SSLSocket, peer: PeerSettings) -> None:
    """Raise `ssl.SSLError`, which `explain_tls` explains, where a peer shows another certificate than configured."""
    shown = read_peer_certificate(connection)
    if not is_proven(peer, shown):
        raise _AnotherCertificateError(f"it showed {shown}, but {show_needed_certificate(peer)} is needed")


def explain_tls(failure: ssl.SSLError) -> str:
    """Say why TLS did not come about, and what to do."""
    if isinstance(failure, ssl.SSLCertVerificationError):
        found = failure.verify_message.rstrip(".")
        return f"its certificate is not accepted: {found}; it must be signed by a CA of tls.ca and name the peer's host"
    if isinstance(failure, _AnotherCertificateError):
        return f"its certificate is not the configured one: {failure.args[0]}"
    reason = (failure.reason or str(failure)).replace("_", " ").lower()
    return f"no TLS: {reason}; does it speak TLS at this port, and does it trust the CA of tls.certificate?"


def _note_rejection(event: Any, rejections: list[A_ASSOCIATE_RJ]) -> None:
    """Keep the peer's refusal and its reason."""
    if isinstance(event.pdu, A_ASSOCIATE_RJ):
        rejections.append(event.pdu)


def _prepare_connection(event: Any) -> None:
    """Turn Nagle's algorithm off on our side: a command would wait for the acknowledgement of the one before.

    And bound each read: one by TLS begins with a record that carries no data (a ticket), and would wait for the next.
    """
    connection = event.assoc.dul.socket.socket
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(event.assoc.acse_timeout)


class _Gated(Association):
    """An association whose reactor thread is known to wait at the gate.

    pynetdicom serves an N-EVENT-REPORT in a thread of its own, which says at its end that the reactor thread is under
    way; whoever sends after that would wait for ever.
    """

    @property
    def _is_paused(self) -> bool:
        return True

    @_is_paused.setter
    def _is_paused(self, _: bool) -> None:
        pass


def _close_gate(event: Any, gate: _Gate) -> None:
    """Put our gate in the place of pynetdicom's, before its reactor thread starts."""
    event.assoc._reactor_checkpoint = gate  # noqa: SLF001  pynetdicom has no public way; tests/peers holds it
    event.assoc.__class__ = _Gated


def _acknowledge_answers(event: Any) -> None:
    wrapped = event.assoc.dul.socket
    if wrapped is not None and wrapped.socket is not None:
        acknowledge_at_once(wrapped.socket)


def acknowledge_at_once(connection: socket.socket) -> None:
    """Acknowledge the start of an answer at once: DCMTK and Orthanc leave Nagle on, and hold the rest back 40 ms else.

    Linux forgets this whenever data is sent, so it is asked for after that, before each wait.
    """
    if hasattr(socket, "TCP_QUICKACK"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
