"""The files that [notices] names: the secrets by which people are told, and whom the node trusts on the way.

Flow: send/channels, cli > [notice_files] > tls
Never: a secret in a message or an error; the database, so that a listing needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dicomnode.settings_reporting import NoticeSettings
from dicomnode.tls import find_ca_problem

SECRET_CHARACTERS = 16


def find_problems(notices: NoticeSettings) -> Iterator[tuple[str, str]]:
    """Yield what keeps the files of [notices] from being used: the key, and what is wrong with its value."""
    if problem := find_ca_problem(notices.ca):
        yield "ca", problem
    secret, password = notices.webhook.secret_file, notices.email.password_file
    if secret and (problem := _find_secret_problem(secret, SECRET_CHARACTERS)):
        yield "webhook.secret_file", problem
    if password and (problem := _find_secret_problem(password, 1) or _find_password_problem(password)):
        yield "email.password_file", problem


def _find_password_problem(name: str) -> str | None:
    if read_secret(name).isascii():
        return None
    return f"{name}: holds more than ASCII, by which alone a mail server is logged in to; set another password"


def _find_secret_problem(name: str, at_least: int) -> str | None:
    try:
        secret = read_secret(name)
    except OSError as error:
        return f"{name}: {error.strerror}; name a file that the node's user may read"
    except UnicodeDecodeError:
        return f"{name}: is no text in UTF-8; write the secret on one line"
    if len(secret) < at_least or not secret.isprintable():
        return f"{name}: one line of {at_least} or more characters is needed; openssl rand -hex 32 makes a secret"
    return None


def read_secret(name: str) -> str:
    """Return what a file holds, without the end of its line."""
    return Path(name).read_text(encoding="utf-8").strip("\r\n")
