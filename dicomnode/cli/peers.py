"""`dicomnode peers`: lists and edits the AEs of the configuration file, and asks one whether it answers.

Flow: cli > [peers] > settings_edit, running, send
Never: a change that the node would refuse; one that a running node does not hear of.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pydantic import ValidationError

from dicomnode.cli.output import write_json, write_rows
from dicomnode.errors import StorageFailedError, UsageError
from dicomnode.running import ask_to_reload
from dicomnode.send.scu import make_caller, send_echo
from dicomnode.settings import PeerSettings, Settings
from dicomnode.settings_edit import add_peer as add_to_text
from dicomnode.settings_edit import remove_peer as remove_from_text
from dicomnode.settings_edit import replace_configuration
from dicomnode.settings_file import load_settings, read_configuration

COLUMNS = ("name", "ae_title", "host", "port", "tls", "may", "answers", "is_destination")


def list_peers(arguments: argparse.Namespace) -> int:
    """List every peer, what it may do, and whether results are sent to it."""
    settings = load_settings(arguments.config)
    receivers = {destination.peer for destination in settings.destinations}
    rows = [{**peer.model_dump(mode="json"), "is_destination": peer.name in receivers} for peer in settings.peers]
    if arguments.json:
        write_json(rows)
    else:
        write_rows(rows, COLUMNS, f"no peers in {arguments.config}; add one with: dicomnode peers add")
    return 0


def add_peer(arguments: argparse.Namespace) -> int:
    """Add a peer to the file and tell the running node."""
    load_settings(arguments.config)  # an edit of a broken file would be blamed on the edit
    peer = _parse_peer(arguments)
    text = add_to_text(read_configuration(arguments.config), peer, is_destination=arguments.destination)
    return _replace(arguments, text, f"peer {peer.name}: added to {arguments.config}")


def remove_peer(arguments: argparse.Namespace) -> int:
    """Remove a peer from the file and tell the running node."""
    load_settings(arguments.config)
    text = remove_from_text(read_configuration(arguments.config), arguments.name)
    return _replace(arguments, text, f"peer {arguments.name}: removed from {arguments.config}")


def echo_peer(arguments: argparse.Namespace) -> int:
    """Ask a peer whether it answers; an error says why it does not."""
    settings = load_settings(arguments.config)
    peer = _find_peer(settings, arguments.name, arguments.config)
    if peer.is_network:
        raise UsageError(f"peer {peer.name} is at {peer.host}, a network: it may call us, and cannot be called")
    started = time.monotonic()
    send_echo(peer, make_caller(settings))
    if arguments.json:
        write_json({"name": peer.name, "answered_in_s": round(time.monotonic() - started, 3)})
    else:
        sys.stdout.write(f"peer {peer.name}: {peer.ae_title} at {peer.host}:{peer.port} answers\n")
    return 0


def _parse_peer(arguments: argparse.Namespace) -> PeerSettings:
    try:
        return PeerSettings.model_validate({name: getattr(arguments, name) for name in PeerSettings.model_fields})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = str(first["loc"][0]).replace("_", "-")
        text = str(first["msg"]).removeprefix("Value error, ")
        raise UsageError(f"{flag if flag == 'name' else f'--{flag}'}: found {first['input']!r}; {text}") from error


def _find_peer(settings: Settings, name: str, path: Path) -> PeerSettings:
    names = [peer.name for peer in settings.peers]
    if name not in names:
        raise UsageError(f"{path}: no peer is named {name!r}; peers: {', '.join(names) or 'none'}")
    return settings.peer(name)


def _replace(arguments: argparse.Namespace, text: str, what: str) -> int:
    """Write the file, tell the running nodes, and say both."""
    replace_configuration(arguments.config, text)
    try:
        told = ask_to_reload(load_settings(arguments.config).node.storage_root)
    except StorageFailedError as error:
        text = f"{what}; whether a node runs cannot be seen ({error}); tell it with: systemctl reload dicomnode"
        raise UsageError(text) from error
    if arguments.json:
        write_json({"file": str(arguments.config), "reloading_processes": told})
    else:
        follows = f"the running node (process {told[0]}) follows" if told else "no node runs, the next one reads it"
        sys.stdout.write(f"{what}; {follows}\n")
    return 0
