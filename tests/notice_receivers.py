"""Who is told: an HTTP server that keeps what is posted to it, and a mail server that keeps what is sent through it.

Flow: tests > [notice_receivers] > http.server; tests/mail_server
Never: a server beyond loopback; an answer that the test did not ask for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dicomnode.settings_reporting import EmailSettings
from dicomnode.tls import make_server_context
from tests.certificates import Authority
from tests.conftest import find_peer_program
from tests.peers_programs import LOOPBACK, Process, free_port

SYSTEM_PYTHON = Path("/usr/bin/python3")


@dataclass(frozen=True)
class Post:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class HttpReceiver:
    """What was posted, and with which status the next ones are answered (200 once these are used up)."""

    port: int = 0
    posts: list[Post] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@contextmanager
def receive_posts(authority: Authority | None = None) -> Iterator[HttpReceiver]:
    """Run an HTTP server, by TLS with a certificate of this authority if there is one."""
    received = HttpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.posts.append(Post(self.path, dict(self.headers), body))
            status = received.statuses.pop(0) if received.statuses else 200
            self.send_response(status)
            self.send_header("Location", f"http://{LOOPBACK}:{received.port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server fixes the name
            pass

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        if authority is not None:
            tls = authority.settings(authority.sign("/CN=alerts.example.org"), require_client_certificate=False)
            context = make_server_context(tls.model_copy(update={"ca": ""}))
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a handshake that is refused
        received.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield received
        server.shutdown()
        thread.join()


class MailServer(Process):
    """aiosmtpd of the system, keeping what it takes; `login` is the user and password it asks for."""

    def __init__(
        self, folder: Path, authority: Authority, encryption: str = "starttls", login: tuple[str, str] = ("", "")
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        find_peer_program("aiosmtpd")
        identity = authority.sign("/CN=mail.example.org")
        self.maildir, self.port, self.encryption = folder / "mail", free_port(), encryption
        program = Path(__file__).with_name("mail_server.py")
        command: list[str | Path] = [
            SYSTEM_PYTHON,
            program,
            str(self.port),
            self.maildir,
            encryption,
            identity.certificate,
            identity.key,
        ]
        super().__init__([*command, *login], folder / "mail.log", (self.port,))

    def settings(self, **others: object) -> EmailSettings:
        """Return the [notices.email] that uses it."""
        values = {
            "host": LOOPBACK,
            "port": self.port,
            "encryption": self.encryption,
            "sender": "dicomnode@hospital.example.org",
            "recipients": ["physics@hospital.example.org"],
        }
        return EmailSettings.model_validate({**values, **others})

    def messages(self) -> list[EmailMessage]:
        """Return what it has taken."""
        paths = sorted((self.maildir / "new").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [BytesParser(policy=default).parsebytes(path.read_bytes()) for path in paths]
