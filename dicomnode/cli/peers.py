"""`dicomnode peers`: lists and edits the AEs of the configuration file, and asks one whether it answers, and for what.

Flow: cli > [peers] > settings_edit, running, send
Never: a change that the node would refuse; one that a running node does not hear of.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from pydantic import ValidationError
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomnode.cli.output import show, write_json, write_rows
from dicomnode.errors import StorageFailedError, UsageError
from dicomnode.outputs.compression import COMPRESSED, SYNTAXES
from dicomnode.outputs.modules import PLANS
from dicomnode.running import ask_to_reload
from dicomnode.send.pdus import ContextKey
from dicomnode.send.probe import SERVICE_CONTEXTS, probe
from dicomnode.send.scu import make_caller, send_echo
from dicomnode.settings import PeerSettings, Settings
from dicomnode.settings_edit import add_peer as add_to_text
from dicomnode.settings_edit import remove_peer as remove_from_text
from dicomnode.settings_edit import replace_configuration
from dicomnode.settings_file import load_settings, read_configuration

COLUMNS = ("name", "ae_title", "host", "port", "tls", "may", "answers", "is_destination")
PROBED = ("for", "sop_class", "transfer_syntax", "is_taken", "is_needed")
EXIT_NOT_TAKEN = 3


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
    peer = _find_callable(settings, arguments)
    started = time.monotonic()
    send_echo(peer, make_caller(settings))
    if arguments.json:
        write_json({"name": peer.name, "answered_in_s": round(time.monotonic() - started, 3)})
    else:
        sys.stdout.write(f"peer {peer.name}: {peer.ae_title} at {peer.host}:{peer.port} answers\n")
    return 0


def probe_peer(arguments: argparse.Namespace) -> int:
    """Ask a peer which of our objects and requests it takes; 3 if it does not take what the configuration needs."""
    settings = load_settings(arguments.config)
    peer = _find_callable(settings, arguments)
    offers = [*_list_services(settings, peer), *_list_objects(settings, peer)]
    found = probe(peer, make_caller(settings), [context for _, context, _ in offers])
    rows: list[dict[str, Any]] = [
        {
            "for": what,
            "sop_class": UID(context[0]).keyword,
            "transfer_syntax": UID(context[1]).keyword,
            "is_taken": context in found.accepted,
            "is_needed": is_needed,
        }
        for what, context, is_needed in offers
    ]
    missing = sorted({row["for"] for row in rows if row["is_needed"]} - {row["for"] for row in rows if row["is_taken"]})
    if arguments.json:
        write_json(
            {
                "name": peer.name,
                "pdu_bytes": found.pdu_bytes,
                "implementation_class_uid": found.implementation_class_uid,
                "implementation_version_name": found.implementation_version_name,
                "missing": missing,
                "contexts": rows,
            }
        )
    else:
        known = found.implementation_version_name or found.implementation_class_uid
        sys.stdout.write(
            f"peer {peer.name}: {peer.ae_title} at {peer.host}:{peer.port} is {show(known)}, takes PDUs of "
            f"{found.pdu_bytes or 'any number of'} bytes\n\n"
        )
        write_rows(rows, PROBED, "")
        if missing:
            sys.stdout.write(f"\nnot taken, and {arguments.config} needs it: {', '.join(missing)}\n")
    return EXIT_NOT_TAKEN if missing else 0


def _list_services(settings: Settings, peer: PeerSettings) -> list[tuple[str, ContextKey, bool]]:
    """List what a peer may be asked: the service, a presentation context for it, and whether it is asked."""
    asked = {"echo", *peer.answers, *("commitment" for one in settings.destinations if one.commitment == peer.name)}
    return [
        (service, context, service in asked)
        for service, contexts in SERVICE_CONTEXTS.items()
        for context in sorted(contexts)
    ]


def _list_objects(settings: Settings, peer: PeerSettings) -> list[tuple[str, ContextKey, bool]]:
    """List what a peer may be sent: the kind of object, a presentation context for it, and whether it is sent.

    Compressed is what it is sent besides: what it does not take so, it gets plain.
    """
    destination = next((one for one in settings.destinations if one.peer == peer.name), None)
    listed: list[tuple[str, ContextKey, bool]] = []
    for kind, plan in PLANS.items():
        sop_class = str(plan.sop_class_uid)
        is_sent = destination is not None and kind in settings.outputs.objects and destination.takes(kind)
        listed.append((kind, (sop_class, str(ExplicitVRLittleEndian)), is_sent))
        listed += [
            (f"{kind} in {compression}", (sop_class, str(syntax)), False)
            for compression, syntax in SYNTAXES.items()
            if kind in COMPRESSED[compression]
        ]
    return listed


def _parse_peer(arguments: argparse.Namespace) -> PeerSettings:
    try:
        return PeerSettings.model_validate({name: getattr(arguments, name) for name in PeerSettings.model_fields})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = str(first["loc"][0]).replace("_", "-")
        text = str(first["msg"]).removeprefix("Value error, ")
        raise UsageError(f"{flag if flag == 'name' else f'--{flag}'}: found {first['input']!r}; {text}") from error


def _find_callable(settings: Settings, arguments: argparse.Namespace) -> PeerSettings:
    """Return the peer that is named, which must be one that can be called."""
    names = [peer.name for peer in settings.peers]
    if arguments.name not in names:
        found = ", ".join(names) or "none"
        raise UsageError(f"{arguments.config}: no peer is named {arguments.name!r}; peers: {found}")
    peer = settings.peer(arguments.name)
    if peer.is_network:
        raise UsageError(f"peer {peer.name} is at {peer.host}, a network: it may call us, and cannot be called")
    return peer


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
