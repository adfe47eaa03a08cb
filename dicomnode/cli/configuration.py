"""`dicomnode config`: writes, checks and shows the configuration file.

Flow: cli > [configuration] > settings_file, running
Never: a check that leaves a trace of itself; a password on standard output.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import tomlkit

from dicomnode.cli.output import write_json
from dicomnode.errors import StorageFailedError, UsageError
from dicomnode.logs import escape
from dicomnode.running import find_running_nodes
from dicomnode.send.notice_files import find_problems as find_notice_problems
from dicomnode.settings import Settings
from dicomnode.settings_file import (
    Problem,
    check_configuration,
    find_place,
    load_settings,
    read_configuration,
    show_key,
)
from dicomnode.shipped import EXAMPLE, UNITS, find_shipped
from dicomnode.tls import find_expiring, find_invalid, find_problems, read_certificates
from dicomnode.toml_lines import Key, find_lines

Finding = tuple[Key, str]
LOOKUPS_AT_ONCE = 16


def init(arguments: argparse.Namespace) -> int:
    """Write the example to a file that must not be there yet."""
    path: Path = arguments.config
    example = find_shipped(EXAMPLE).read_text(encoding="utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(example)
    except OSError as error:
        if _is_there(path):
            raise UsageError(f"{path}: is there already; name another with --config, or edit it") from error
        raise UsageError(
            f"{path}: cannot be written: {error.filename or path}: {error.strerror}; name another with --config"
        ) from error
    sys.stdout.write(f"{path}: written; edit it, then: dicomnode config check --config {path}\n")
    sys.stdout.write(f"the units for systemd are in {find_shipped(UNITS)}\n")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Name every problem of the file and of what it names on this machine; 0 when there is none."""
    path: Path = arguments.config
    text = read_configuration(path)
    settings, problems = check_configuration(text, str(path))
    warnings: list[Problem] = []
    if settings is not None:
        lines = find_lines(text)
        problems, warnings = (
            [Problem(find_place(key, lines, str(path)), show_key(key), what) for key, what in found]
            for found in (
                [
                    *_find_storage_problems(settings),
                    *_find_port_problems(settings),
                    *_find_driver_problems(settings),
                    *_find_tls_problems(settings),
                    *_find_notice_problems(settings),
                    *_find_audit_problems(settings),
                ],
                [
                    *_find_unknown_hosts(settings),
                    *_find_full_disk(settings),
                    *_find_tls_risks(settings),
                    *_find_open_secrets(settings),
                ],
            )
        )
    if arguments.json:
        rows = {"problems": [vars(problem) for problem in problems], "warnings": [vars(row) for row in warnings]}
        write_json({"file": str(path), "is_valid": not problems, **rows})
    else:
        for problem in problems:
            sys.stderr.write(f"{escape(str(problem))}\n")
        for warning in warnings:
            sys.stderr.write(f"warning: {escape(str(warning))}\n")
        if not problems:
            sys.stdout.write(f"{path}: nothing wrong\n")
    return 2 if problems else 0


def show(arguments: argparse.Namespace) -> int:
    """Write the settings in force as TOML or JSON, passwords hidden."""
    settings = load_settings(arguments.config).model_dump(mode="json")
    settings["database"]["url"] = re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", settings["database"]["url"])
    if arguments.json:
        write_json(settings)
    else:
        sys.stdout.write(tomlkit.dumps(settings))
    return 0


def _is_there(path: Path) -> bool:
    """Say whether there is a file or folder that this user can see; `Path.exists` raises where it may not look."""
    return os.access(path, os.F_OK)


def _find_existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if _is_there(place))


def _find_storage_problems(settings: Settings) -> Iterator[Finding]:
    root = settings.node.storage_root
    key = ("node", "storage_root")
    there = _find_existing(root)
    if not there.is_dir():
        yield key, f"{there} is a file; name a folder"
        return
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        what = f"{root} is not writable" if there == root else f"{root} is not there, and {there} is not writable"
        yield key, f"{what} for this user ({error.strerror}); make it for the node's user, or name another folder"


def _find_port_problems(settings: Settings) -> Iterator[Finding]:
    try:
        if find_running_nodes(settings.node.storage_root):
            return  # the ports are taken by the node itself
    except StorageFailedError:
        return  # perhaps; that this user may not look there is said of storage_root
    yield from _find_port_problem(settings.node.bind, ("node", "port"), settings.node.port)
    if settings.tls.certificate:
        yield from _find_port_problem(settings.node.bind, ("tls", "port"), settings.tls.port)


def _find_port_problem(bind: str, key: Key, port: int) -> Iterator[Finding]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except socket.gaierror as error:
        yield ("node", "bind"), f"{bind} is not known: {error.strerror}; name an address of this machine"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            yield key, f"port {port} of {bind} is in use by another program; stop it, or choose another port"
        elif error.errno == errno.EACCES:
            yield key, f"port {port} is not allowed for this user; choose one from 1024 on, such as 11112"
        else:
            text = f"{bind} is not an address of this machine: {error.strerror}; name one, or 0.0.0.0 for all"
            yield ("node", "bind"), text


def _find_driver_problems(settings: Settings) -> Iterator[Finding]:
    if settings.database.url.startswith("postgresql") and find_spec("psycopg") is None:
        yield ("database", "url"), "psycopg is not installed; pip install 'dicomnode-fusion[postgres]'"


def _find_tls_problems(settings: Settings) -> Iterator[Finding]:
    unusable = list(find_problems(settings.tls))
    yield from ((("tls", key), text) for key, text in unusable)
    if not unusable:
        for certificate, text in find_invalid(read_certificates(settings.tls), datetime.now(UTC)):
            yield ("tls", certificate.key), text


def _find_notice_problems(settings: Settings) -> Iterator[Finding]:
    for key, text in find_notice_problems(settings.notices):
        yield ("notices", *key.split(".")), text


def _find_audit_problems(settings: Settings) -> Iterator[Finding]:
    path = Path(settings.audit.file)
    if not settings.audit.file:
        return
    if _is_there(path) and path.is_dir():
        yield ("audit", "file"), f"{path} is a folder; name a file in it"
    elif not os.access(path if _is_there(path) else path.parent, os.W_OK):
        yield ("audit", "file"), f"{path} cannot be written by this user; make its folder for the node's user"


def _find_open_secrets(settings: Settings) -> Iterator[Finding]:
    notices = settings.notices
    files = {
        ("tls", "key"): settings.tls.key,
        ("notices", "webhook", "secret_file"): notices.webhook.secret_file,
        ("notices", "email", "password_file"): notices.email.password_file,
    }
    for key, name in files.items():
        with suppress(OSError):  # that it is not there is said elsewhere
            if name and Path(name).stat().st_mode & stat.S_IROTH:
                yield key, f"{name} can be read by every user; make it the node's alone: chmod 600"


def _find_tls_risks(settings: Settings) -> Iterator[Finding]:
    if any(find_problems(settings.tls)):
        return
    for certificate in find_expiring(read_certificates(settings.tls), datetime.now(UTC)):
        text = f"{certificate.path}: the certificate expires at {certificate.validity.not_after}; get a new one in time"
        yield ("tls", certificate.key), text


def _find_unknown_hosts(settings: Settings) -> Iterator[Finding]:
    named = [(number, peer) for number, peer in enumerate(settings.peers) if not peer.is_network]
    with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as pool:  # a DNS that is away lets each wait for seconds
        problems = pool.map(_find_lookup_problem, [peer.host for _, peer in named])
        for (number, peer), problem in zip(named, problems, strict=True):
            if problem:
                text = f"{peer.host} is not known: {problem}; is the name right, does DNS answer?"
                yield ("peers", number, "host"), text


def _find_lookup_problem(host: str) -> str | None:
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _find_full_disk(settings: Settings) -> Iterator[Finding]:
    root = settings.node.storage_root
    there = _find_existing(root)
    free = shutil.disk_usage(there).free
    if free < settings.limits.disk_reserve_bytes:
        text = f"{free} bytes are free at {there}, below this reserve: instances will be refused"
        yield ("limits", "disk_reserve_bytes"), text
