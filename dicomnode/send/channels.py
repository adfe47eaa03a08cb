"""The ways by which people are told, made from the settings and the files that these name.

Flow: send/notices, cli > [channels] > send/webhook, send/mail
Never: a secret in a message or an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from dicomnode.errors import ConfigurationError
from dicomnode.send.mail import Mail
from dicomnode.send.notice_words import Message
from dicomnode.send.webhook import Webhook
from dicomnode.settings import Settings
from dicomnode.settings_reporting import NoticeSettings
from dicomnode.tls import find_ca_problem, make_trusting_context

SECRET_CHARACTERS = 16


class Channel(Protocol):
    """A way by which people are told."""

    def send(self, message: Message, now: float) -> str:
        """Send a message, and return what is to be said of it; raises a `DicomnodeError` whose branch decides retry."""


def make_channels(settings: Settings) -> dict[str, Channel]:
    """Return the channels of the settings by name, with the secrets that their files hold now.

    Raises
    ------
    ConfigurationError
        If a file of [notices] cannot be used.
    """
    notices, timeout_s = settings.notices, settings.send.timeout_s
    if not notices.channels:
        return {}
    for key, problem in find_problems(notices):
        raise ConfigurationError(f"notices.{key}: {problem}")
    tls = make_trusting_context(notices.ca)
    channels: dict[str, Channel] = {}
    if url := notices.webhook.url:
        secret = _read_secret(notices.webhook.secret_file).encode("utf-8")
        channels["webhook"] = Webhook(url, secret, timeout_s, tls if url.startswith("https") else None)
    if notices.email.host:
        password = _read_secret(notices.email.password_file) if notices.email.password_file else ""
        channels["email"] = Mail(notices.email, password, timeout_s, tls)
    return channels


def find_problems(notices: NoticeSettings) -> Iterator[tuple[str, str]]:
    """Yield what keeps the files of [notices] from being used: the key, and what is wrong with its value."""
    if problem := find_ca_problem(notices.ca):
        yield "ca", problem
    secrets = (("webhook.secret_file", notices.webhook.secret_file, SECRET_CHARACTERS),)
    for key, name, at_least in (*secrets, ("email.password_file", notices.email.password_file, 1)):
        if name and (problem := _find_secret_problem(name, at_least)):
            yield key, problem


def _find_secret_problem(name: str, at_least: int) -> str | None:
    try:
        secret = _read_secret(name)
    except OSError as error:
        return f"{name}: {error.strerror}; name a file that the node's user may read"
    except UnicodeDecodeError:
        return f"{name}: is no text in UTF-8; write the secret on one line"
    if len(secret) < at_least or not secret.isprintable():
        return f"{name}: one line of {at_least} or more characters is needed; openssl rand -hex 32 makes a secret"
    return None


def _read_secret(name: str) -> str:
    """Return what a file holds, without the end of its line."""
    return Path(name).read_text(encoding="utf-8").strip("\r\n")
