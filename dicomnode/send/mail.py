"""Sends a notice as e-mail.

Flow: send/notices > [mail] > the mail server
Never: a server whose certificate was not checked; a password in a message or an error.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime

from dicomnode.errors import PeerBusyError, PeerRejectedError, PeerUnreachableError
from dicomnode.send.notice_words import Message, show_instant
from dicomnode.settings_reporting import EmailSettings

PERMANENT_FROM = 500  # RFC 5321 4.2.1: 4yz may succeed later, 5yz will not


@dataclass(frozen=True)
class Mail:
    """By which server, and to whom; `password` is empty where nobody logs in."""

    settings: EmailSettings
    password: str
    timeout_s: float
    tls: ssl.SSLContext

    def send(self, message: Message, now: float) -> str:
        """Send a message; return who was refused while others were not, or nothing.

        Raises
        ------
        PeerUnreachableError, PeerBusyError
            If the server does not answer, its certificate is not accepted, or it cannot take the message now.
        PeerRejectedError
            If it refuses sender, recipients, log-in or message for good.
        """
        where = f"mail server {self.settings.host}:{self.settings.port}"
        try:
            server = self._connect()
            try:
                refused = server.send_message(make_mail(message, self.settings, now))
            finally:
                with suppress(OSError):  # it has answered for the message already
                    server.quit()
        except ssl.SSLCertVerificationError as error:
            raise PeerUnreachableError(
                f"{where}: its certificate is not accepted: {error.verify_message}; notices.ca must hold its CA"
            ) from error
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            raise _refusal(where, min(codes), f"refused every recipient with {_show(codes)}") from error
        except smtplib.SMTPResponseException as error:
            raise _refusal(where, error.smtp_code, f"answered with {error.smtp_code}") from error
        except smtplib.SMTPNotSupportedError as error:
            raise PeerRejectedError(f"{where}: {error}; is notices.email right?") from error
        except (OSError, smtplib.SMTPException) as error:  # among them: it hung up
            raise PeerUnreachableError(f"{where}: {error or type(error).__name__}") from error
        return f"refused for {', '.join(sorted(refused))}" if refused else ""

    def _connect(self) -> smtplib.SMTP:
        """Return a session with the server, encrypted and logged in as the settings say."""
        host, port = self.settings.host, self.settings.port
        if self.settings.encryption == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=self.timeout_s, context=self.tls)
        else:
            server = smtplib.SMTP(host, port, timeout=self.timeout_s)
        try:
            if self.settings.encryption == "starttls":
                server.starttls(context=self.tls)
            if self.settings.user:
                server.login(self.settings.user, self.password)
        except BaseException:
            server.close()
            raise
        return server


def make_mail(message: Message, settings: EmailSettings, now: float) -> EmailMessage:
    """Return the e-mail; one that is sent a second time after a crash has the same Message-ID."""
    mail = EmailMessage()
    mail["From"], mail["To"] = settings.sender, ", ".join(settings.recipients)
    mail["Subject"] = f"{message.node}: {message.text}"
    mail["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    domain = settings.sender.partition("@")[2]
    mail["Message-ID"] = f"<dicomnode-{message.number}-{int(message.first_at)}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834 5: no vacation answers
    mail.set_content(
        f"{message.text}.\n\n"
        f"Node: {message.node} on {socket.gethostname()}\n"
        f"Since: {show_instant(message.first_at)}\n"
        f"To do: {message.command}\n"
    )
    return mail


def _refusal(where: str, code: int, what: str) -> PeerBusyError | PeerRejectedError:
    if code >= PERMANENT_FROM:
        return PeerRejectedError(f"{where}: {what}; is notices.email right?")
    return PeerBusyError(f"{where}: {what}")


def _show(codes: list[int]) -> str:
    return ", ".join(str(code) for code in sorted(set(codes)))
