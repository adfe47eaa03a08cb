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
    secrets = (("webhook.secret_file", notices.webhook.secret_file, SECRET_CHARACTERS),)
    for key, name, at_least in (*secrets, ("email.password_file", notices.email.password_file, 1)):
        if name and (problem := _find_secret_problem(name, at_least)):
            yield key, problem


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
