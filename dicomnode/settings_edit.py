"""Adds and removes peers in the text of a configuration file, comments and order kept, and replaces the file.

Flow: cli > [settings_edit] > settings_file, toml_lines > settings
Never: a file that is half written, or one that the node would refuse.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Array

from dicomnode.durable import sync_folder
from dicomnode.errors import ConfigurationError, UsageError
from dicomnode.settings import PeerSettings
from dicomnode.settings_file import check_configuration
from dicomnode.toml_lines import find_entries


def add_peer(text: str, peer: PeerSettings, *, is_destination: bool) -> str:
    """Return the text with one peer more, and one destination more when asked for.

    Raises
    ------
    UsageError
        If a peer has this name already.
    """
    if peer.name in _names(text, "peers", "name"):
        raise UsageError(f"a peer is named {peer.name!r} already; remove it first, or take another name")
    text = _add_row(text, "peers", peer.model_dump(mode="json", exclude_defaults=True))
    return _add_row(text, "destinations", {"peer": peer.name}) if is_destination else text


def remove_peer(text: str, name: str) -> str:
    """Return the text without one peer.

    Raises
    ------
    UsageError
        If there is no such peer, or results are sent to it.
    """
    names = _names(text, "peers", "name")
    if name not in names:
        raise UsageError(f"no peer is named {name!r}; peers: {', '.join(names) or 'none'}")
    if name in _names(text, "destinations", "peer"):
        raise UsageError(f"results are sent to peer {name!r}; remove its [[destinations]] table from the file first")
    return _remove_row(text, "peers", names.index(name))


def replace_configuration(path: Path, text: str) -> None:
    """Put a new text in the place of a configuration file, at once and durably, its mode and owner kept.

    Raises
    ------
    ConfigurationError
        If the text is not a valid configuration, or the file cannot be replaced; it is as it was.
    """
    _, problems = check_configuration(text, str(path))
    if problems:
        raise ConfigurationError(f"{problems[0]}; the file was left as it is")
    target = path.resolve()
    being_written = ""
    try:
        old = target.stat()
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=target.parent, delete=False) as file:
            being_written = file.name
            file.write(text)
            os.fchmod(file.fileno(), old.st_mode & 0o7777)
            if (os.geteuid(), os.getegid()) != (old.st_uid, old.st_gid):
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.flush()
            os.fsync(file.fileno())
        Path(being_written).replace(target)
        sync_folder(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(being_written).unlink()
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}; the file was left as it is") from error


def _names(text: str, table: str, key: str) -> list[str]:
    return [row[key] for row in tomllib.loads(text).get(table, [])]


def _add_row(text: str, table: str, row: dict[str, Any]) -> str:
    """Add a [[table]] behind the last of its kind, so that the comment of what follows stays with it."""
    document = tomlkit.parse(text)
    rows = document.get(table)
    if isinstance(rows, Array):  # peers = [{...}]
        rows.append(row)
        return tomlkit.dumps(document)
    entries = [entry for entry in find_entries(text) if entry.table[:1] == (table,)]
    lines = text.splitlines(keepends=True)
    end = entries[-1].end if entries else len(lines)
    before, after = "".join(lines[:end]), "".join(lines[end:])
    return f"{before.rstrip()}\n\n{tomlkit.dumps({table: [row]})}{after}"


def _remove_row(text: str, table: str, number: int) -> str:
    """Remove the numbered [[table]] with the comments within it; those before and behind it stay."""
    entries = [entry for entry in find_entries(text) if entry.table[:2] == (table, number)]
    if not entries:  # peers = [{...}]
        document: Any = tomlkit.parse(text)
        del document[table][number]
        return tomlkit.dumps(document)
    lines = text.splitlines(keepends=True)
    before, after = lines[: entries[0].start - 1], lines[entries[-1].end :]
    return "".join([*before, *(after[1:] if after and not after[0].strip() else after)])
