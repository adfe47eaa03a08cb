"""Opens the port of the Storage SCP, on pynetdicom's machinery, and closes it.

Flow: app > [scp] > receive.associations, receive.recovery
Never: an open port before what a crash left is recovered; a changed setting that drops an association.
"""

from __future__ import annotations

import errno
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import BaseServer
from typing import Any, TypeVar

from pynetdicom import AE, _config, evt
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from dicomnode.database.engine import Database
from dicomnode.database.store import Store
from dicomnode.errors import ConfigurationError, StateError, TransientError
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.logs import get_logger
from dicomnode.metrics import STARVATIONS, Counts
from dicomnode.receive.addresses import Names
from dicomnode.receive.associations import Associations, Rules
from dicomnode.receive.contexts import make_contexts
from dicomnode.receive.fetched import receive_fetched
from dicomnode.receive.handshake import Handshake
from dicomnode.receive.intake import Intake
from dicomnode.receive.recovery import close_spool, open_spool, settle_dead_spools
from dicomnode.receive.waiting import WaitingConnections
from dicomnode.settings import Settings
from dicomnode.settings_limits import LimitSettings
from dicomnode.tls import make_server_context

log = get_logger()

ASSOCIATE_TIMEOUT_S = 30.0  # ARTIM, PS3.8 9.1.5
NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
DESCRIPTORS_AT_ONCE = 8  # of an association and of the first instance it stores
STARVED_S = 0.05
TOLD_AGAIN_S = 60.0
SETTLE_EVERY_S = 60.0
RESOLVE_EVERY_S = 60.0
# For names to be known when the port opens. From a server that is up it takes milliseconds; from the second of two 5 s,
# by resolv.conf(5), where the first is away.
RESOLVE_S = 12.0
CONNECTIONS_MAX = 10_000  # pynetdicom counts silent sockets too: `limits.associations` counts those admitted


class _Server(ThreadedAssociationServer):
    request_queue_size = 128  # a burst of scanners must not meet a full backlog
    daemon_threads = True  # they only make associations, and shake hands before that
    associations: Associations
    waiting: WaitingConnections
    told_again_at = 0.0  # monotonic seconds: that descriptors are short is not said for each caller

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection; without a descriptor for it, take some from those who wait."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in NO_DESCRIPTOR:
                self.free_descriptors(error)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Let a connection wait from here on, whether or not there is a thread for it yet."""
        self.associations.let_wait(request, str(client_address[0]))
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self.waiting.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  socketserver fixes the signature
        """Say in one line why a connection came to nothing."""
        log.error("receive.no_association", address=str(client_address[0]), why=str(sys.exc_info()[1]))

    def free_descriptors(self, error: OSError) -> None:
        """Cut who has waited longest, so that the next caller has what it needs, and give them a moment to end."""
        self.associations.counts.add(STARVATIONS)
        if time.monotonic() >= self.told_again_at:
            self.told_again_at = time.monotonic() + TOLD_AGAIN_S
            log.error("receive.no_descriptor", why=f"{error.strerror}; raise LimitNOFILE, or lower limits.associations")
        for _ in range(DESCRIPTORS_AT_ONCE):
            self.waiting.cut_oldest()
        time.sleep(STARVED_S)


class _RequestHandler(RequestHandler):
    server: _Server

    def handle(self) -> None:
        """Make an association of a connection, and start it; who only connects, as health checks do, costs none."""
        if not self._has_spoken():
            self.server.shutdown_request(self.request)
            return
        try:
            self.server.associations.start(self._create_association(), self.request)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                raise
            self.server.waiting.remove(self.request)  # lest it is cut for itself
            self.server.free_descriptors(error)
            self.server.associations.start(self._create_association(), self.request)

    def _has_spoken(self) -> bool:
        """Wait for the first byte; by TLS there was a handshake already."""
        if isinstance(self.request, ssl.SSLSocket):
            return True
        timeout_s = self.ae.acse_timeout or ASSOCIATE_TIMEOUT_S
        try:
            self.request.settimeout(timeout_s)
            return bool(self.request.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            self.server.associations.note_silence(self.remote.address, timeout_s)
        except OSError:
            pass  # it has gone
        return False


class _TlsServer(Handshake, _Server):
    pass


_Kind = TypeVar("_Kind", bound=_Server)


class StorageScp:
    """The node's Storage SCP: `start` opens the port, `stop` closes it; each is called once."""

    def __init__(self, settings: Settings, database: Database, store: Store, clock: Callable[[], float]) -> None:
        self.counts = Counts()
        self._settings = settings
        self._database = database
        self._store = store
        self._clock = clock
        self._running: tuple[_Server, Associations, Intake] | None = None
        self._tls_server: _TlsServer | None = None
        self._threads: list[threading.Thread] = []
        self._fetching = threading.Lock()
        self._settle_at = time.monotonic() + SETTLE_EVERY_S
        self._names = Names()
        self._resolve_at = time.monotonic() + RESOLVE_EVERY_S

    @property
    def port(self) -> int:
        """The open port."""
        server, _, _ = self._parts()
        return int(server.server_address[1])

    def is_served(self) -> bool:
        """Say whether every port that was opened is served."""
        return self._running is not None and all(thread.is_alive() for thread in self._threads)

    def start(self, port: int | None = None) -> None:
        """Recover what a crash left, then open the port: the settings' own unless one is given (0: any free one).

        Raises
        ------
        ConfigurationError
            If the address or a port cannot be opened, or a file of [tls] cannot be used.
        StorageFailedError, DatabaseUnavailableError
            If the storage root cannot be written or the database does not answer; the port stays closed.
        """
        settings = self._settings
        self._names.follow(settings.peers)
        intake = Intake(open_spool(self._store, self._database, self._clock()), self._database)
        self._names.wait(RESOLVE_S)
        rules = Rules(settings, self._names.find(settings.peers))
        associations = Associations(rules, intake, self._clock, self.counts)
        try:
            node_port = settings.node.port if port is None else port
            server = _open_port(_Server, settings, ("node.port", node_port), associations)
            self._tls_server = _open_tls_port(settings, associations, server)
        except BaseException:
            with _left_to_the_next_start():  # the first error is the one to tell
                self._close(intake)
            raise
        self._running = (server, associations, intake)
        for one in [server] if self._tls_server is None else [server, self._tls_server]:
            self._threads.append(threading.Thread(target=one.serve_forever, name="storage-scp", daemon=True))
            self._threads[-1].start()
        where = {"bind": settings.node.bind, "port": self.port, "tls_port": self._tls_place()}
        log.info("receive.listening", ae_title=settings.node.ae_title, **where)

    def reload(self, settings: Settings) -> None:
        """Judge requests from now on by other settings; associations that run go on, and the port stays the same."""
        server, associations, _ = self._parts()
        if self._tls_server is not None and settings.tls.certificate:
            self._tls_server.context = make_server_context(settings.tls)
        for one in [server] if self._tls_server is None else [server, self._tls_server]:
            _set_limits(one.ae, settings.limits)
        if self._tls_place() != (settings.tls.port if settings.tls.certificate else None):
            log.warning("node.restart_needed", sections=["tls"])  # which port is open does not change
        self._names.follow(settings.peers)
        associations.replace_rules(Rules(settings, self._names.find(settings.peers)))
        log.info("receive.reloaded", peers=len(settings.peers))

    def step(self) -> None:
        """Take in what this node fetched from peers and what processes left that died beside it, pass alerts on, and
        follow the names of peers.

        The clock calls this, and nothing happens before the start.
        """
        with self._fetching:
            if self._running is not None:
                _, associations, intake = self._running
                self._follow_names(associations)
                associations.alerts.write(self._database, associations.rules.settings)
                receive_fetched(intake, associations.rules.settings, self._clock())
                if time.monotonic() >= self._settle_at:
                    self._settle_at = time.monotonic() + SETTLE_EVERY_S
                    settle_dead_spools(self._store, self._database, self._clock())

    def stop(self, deadline_s: float) -> None:
        """Take no new association, let those that run finish for `deadline_s` seconds, then abort them."""
        server, associations, intake = self._parts()
        associations.refuse_all()
        _close_port(server)
        if self._tls_server is not None:
            _close_port(self._tls_server)
        self._tls_server, self._threads = None, []
        with self._fetching:
            self._running = None
        if associations.finish(deadline_s):
            with _left_to_the_next_start():
                self._close(intake)
        with _left_to_the_next_start():
            associations.alerts.write(self._database, associations.rules.settings)
        log.info("receive.stopped")

    def _follow_names(self, associations: Associations) -> None:
        """Judge requests by what the peers' names stand for by now; now and then look them up again."""
        rules = associations.rules
        if time.monotonic() >= self._resolve_at:
            self._resolve_at = time.monotonic() + RESOLVE_EVERY_S
            self._names.ask_again()
        found = self._names.find(rules.settings.peers)
        if found != rules.addresses:
            associations.replace_rules(Rules(rules.settings, found), instead_of=rules)

    def _close(self, intake: Intake) -> None:
        intake.stop()
        close_spool(intake.spool, self._database, self._clock())

    def _tls_place(self) -> int | None:
        return None if self._tls_server is None else int(self._tls_server.server_address[1])

    def _parts(self) -> tuple[_Server, Associations, Intake]:
        if self._running is None:
            raise StateError("the storage SCP does not run; it must be started first")
        return self._running


@contextmanager
def _left_to_the_next_start() -> Iterator[None]:
    """Let a stop go on where the database or the storage root is away: the next start puts in order what is left."""
    try:
        yield
    except TransientError as error:
        log.warning("receive.unsettled", why=str(error))


def _open_tls_port(settings: Settings, associations: Associations, server: _Server) -> _TlsServer | None:
    """Open the port for TLS beside that of `server`; without a certificate there is none."""
    if not settings.tls.certificate:
        return None
    try:
        context = make_server_context(settings.tls)
        opened = _open_port(_TlsServer, settings, ("tls.port", settings.tls.port), associations)
    except BaseException:
        server.server_close()
        raise
    opened.context, opened.counts, opened.alerts = context, associations.counts, associations.alerts
    return opened


def _open_port(kind: type[_Kind], settings: Settings, place: tuple[str, int], associations: Associations) -> _Kind:
    # The library's own logs of messages and identifiers may carry patient data.
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    entity = AE(settings.node.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_associations = CONNECTIONS_MAX
    _set_limits(entity, settings.limits)
    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_REQUESTED, associations.handle_request),
        (evt.EVT_C_STORE, associations.handle_store),
        (evt.EVT_N_ACTION, associations.handle_commitment),
        (evt.EVT_N_EVENT_REPORT, associations.handle_commitment),
    ]
    key, port = place
    try:
        address = socket.getaddrinfo(settings.node.bind, port, type=socket.SOCK_STREAM)[0][4]
        server = kind(
            entity,
            (str(address[0]), port),
            settings.node.ae_title,
            make_contexts(),
            evt_handlers=handlers,
            request_handler=_RequestHandler,
        )
    except OSError as error:
        raise ConfigurationError(
            f"node.bind {settings.node.bind}, {key} {port}: {error.strerror}; a free port of this machine is needed"
        ) from error
    server.associations, server.waiting = associations, associations.waiting
    return server


def _set_limits(entity: AE, limits: LimitSettings) -> None:
    """Let pynetdicom tell, and hold, who comes from now on to these limits."""
    entity.maximum_pdu_size = limits.pdu_bytes
    entity.network_timeout = limits.idle_s
    entity.acse_timeout = min(ASSOCIATE_TIMEOUT_S, limits.idle_s)


def _close_port(server: _Server) -> None:
    """Close the listening socket; pynetdicom's own `shutdown` knows only servers that `AE.start_server` made."""
    listener = server.socket
    if listener is not None:
        listener.shutdown(socket.SHUT_RDWR)  # wakes `serve_forever`, and lets nobody in from here on
    BaseServer.shutdown(server)
    server.server_close()
