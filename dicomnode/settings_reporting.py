"""What an administrator decides about who is told what: notices to people, the audit trail to its collectors.

Flow: settings > [settings_reporting] > setting_values
Never: a secret itself (a key names its file); anybody who is told something by default.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from dicomnode.setting_values import (
    COUNT_AT_MOST,
    AbsolutePath,
    OptionalHost,
    Port,
    Seconds,
    Section,
    check_host,
    is_loopback,
)

# RFC 5321 4.1.2, what mail servers use of it: no quotes, no comments.
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+")


def _check_url(value: str) -> str:
    if not value:
        return value
    try:
        parts = urlsplit(value)
        check_host(parts.hostname or "")
        is_usable = parts.scheme in ("https", "http") and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or not value.isascii() or any(c.isspace() or not c.isprintable() for c in value):
        raise ValueError('a URL is written as "https://alerts.example.org/dicomnode"')
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL holds no user and no password; each notice is signed with the secret of secret_file")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("notices go by https; http is for a loopback address only")
    return value


def _check_address(value: str) -> str:
    if value and not _ADDRESS.fullmatch(value):
        raise ValueError(f'an e-mail address is written as "pacs@hospital.example.org", this is {value!r}')
    return value


def _check_user(value: str) -> str:
    if not value.isascii():  # RFC 4954 has other characters prepared first, which `smtplib` does not
        raise ValueError(f"a mail server is logged in to by ASCII only, this is {value!r}")
    return value


Url = Annotated[str, AfterValidator(_check_url)]
Address = Annotated[str, AfterValidator(_check_address)]
User = Annotated[str, AfterValidator(_check_user)]


class WebhookSettings(Section):
    """Where notices are posted as signed JSON; without a `url`, nowhere."""

    url: Url = ""
    secret_file: str = ""

    @model_validator(mode="after")
    def _check_agrees(self) -> Self:
        if bool(self.url) != bool(self.secret_file):
            given, missing = ("url", "secret_file") if self.url else ("secret_file", "url")
            raise ValueError(f"{given} needs {missing} too; a notice is signed with the secret in that file")
        return self


class EmailSettings(Section):
    """By which mail server notices are sent, and to whom; without a `host`, not at all."""

    host: OptionalHost = ""
    port: Port = 587  # registered for message submission: RFC 6409
    encryption: Literal["starttls", "tls", "none"] = "starttls"
    sender: Address = ""
    recipients: tuple[Address, ...] = ()
    user: User = ""
    password_file: str = ""

    @model_validator(mode="after")
    def _check_agrees(self) -> Self:
        if not self.host:
            unused = [key for key in ("sender", "recipients", "user", "password_file") if getattr(self, key)]
            if unused:
                raise ValueError(f"{unused[0]} needs host too; name the mail server")
            return self
        for key in ("sender", "recipients"):
            if not getattr(self, key):
                raise ValueError(f"host needs {key} too; name an e-mail address")
        if self.encryption == "none" and not is_loopback(self.host):
            raise ValueError('encryption "none" is for a loopback address only; take "starttls" or "tls"')
        if bool(self.user) != bool(self.password_file):
            set_, missing = ("user", "password_file") if self.user else ("password_file", "user")
            raise ValueError(f"{set_} needs {missing} too; without both, the node does not log in")
        return self


class NoticeSettings(Section):
    """Whom the node tells that something needs a person, and how often at most."""

    window_s: Seconds = 900.0
    ca: str = ""
    webhook: WebhookSettings = WebhookSettings()
    email: EmailSettings = EmailSettings()

    @property
    def channels(self) -> tuple[str, ...]:
        """The ways by which somebody is told."""
        ways = {"webhook": self.webhook.url, "email": self.email.host}
        return tuple(name for name, is_used in ways.items() if is_used)


class AuditSettings(Section):
    """Where the audit trail of PS3.15 A.5 goes; without a `file` and a `host`, none is kept."""

    file: AbsolutePath = ""
    host: OptionalHost = ""
    port: Port = 6514  # registered for syslog over TLS: RFC 5425
    transport: Literal["tls", "udp"] = "tls"
    patient_id: bool = False
    spool_messages: Annotated[int, Field(ge=100, le=COUNT_AT_MOST)] = 100000

    @property
    def channels(self) -> tuple[str, ...]:
        """Where the audit trail goes."""
        return tuple(name for name, is_used in {"file": self.file, "syslog": self.host}.items() if is_used)
