"""The ways by which people are told, made from the settings and the files that these name.

Flow: send/notices, cli > [channels] > send/webhook, send/mail
Never: a secret in a message or an error.
"""

from __future__ import annotations

from typing import Protocol

from dicomnode.errors import ConfigurationError
from dicomnode.send.mail import Mail
from dicomnode.send.notice_files import find_problems, read_secret
from dicomnode.send.notice_words import Message
from dicomnode.send.webhook import Webhook
from dicomnode.settings import Settings
from dicomnode.tls import make_trusting_context


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
        secret = read_secret(notices.webhook.secret_file).encode("utf-8")
        channels["webhook"] = Webhook(url, secret, timeout_s, tls if url.startswith("https") else None)
    if notices.email.host:
        password = read_secret(notices.email.password_file) if notices.email.password_file else ""
        channels["email"] = Mail(notices.email, password, timeout_s, tls)
    return channels
