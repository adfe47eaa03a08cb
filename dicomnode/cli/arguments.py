"""Every command, flag and default of `dicomnode`; names and flags are a contract.

Flow: cli > [arguments]
Never: work; a command's module is named here and imported when it is called.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, get_args

from dicomnode.logs import escape
from dicomnode.setting_values import COUNT_AT_MOST, Permission, Profile, Service

CONFIG = Path("/etc/dicomnode/dicomnode.toml")
DISTRIBUTION = "dicomnode-fusion"
PERMISSIONS: tuple[str, ...] = get_args(Permission)
SERVICES: tuple[str, ...] = get_args(Service)
PROFILES: tuple[str, ...] = get_args(Profile)

# The listings: what they show, how one of it is named, and its states (ARCHITECTURE.md).
LISTINGS = {
    "series": ("received series", "SERIES_UID", ("receiving", "complete", "paired", "unpaired", "refused", "deleted")),
    "pairs": ("MR and PET matched by patient", "ID", ("held", "ready", "rejected")),
    "jobs": ("registrations", "ID", ("waiting", "running", "retry", "failed", "review", "done")),
    "outbox": ("what is owed to destinations", "ID", ("owed", "retry", "sent", "committed", "dead")),
    "notices": ("what people were told, or are owed to be", "ID", ("owed", "retry", "sent", "dead")),
}
# What a person may decide, beside `list` and `show`.
DECISIONS = {
    "pairs": {"accept": "run a held pair, or send a reviewed result", "reject": "never run a held pair, or never send"},
    "jobs": {
        "retry": "run a failed job again",
        "cancel": "give up a job that waits or runs: it is failed, and its worker is ended",
        "reprocess": "register the pair of an ended job again, for a result beside the old one",
    },
    "outbox": {"retry": "owe a dead row again, or all of a destination"},
    "notices": {"retry": "owe a dead notice again"},
}

ONE_OR_ALL = {("outbox", "retry")}  # where a flag may take the place of the one


class _Parser(argparse.ArgumentParser):
    """argparse answers a mistake with its whole usage; a person needs the one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {escape(message)} (see {self.prog} --help)\n")


def _read_number(text: str) -> int:
    """Return the number of a row: a database takes none beyond its INTEGER."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:11]) <= COUNT_AT_MOST):
        raise argparse.ArgumentTypeError(f"found {text!r}, needed a number that `list` shows")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses has `command`, the module below `dicomnode.cli` and the function to call."""
    parser = _Parser(prog="dicomnode", description="Registers brain PET to MRI and returns the fused series.")
    parser.add_argument("--version", action="version", version=f"dicomnode {version(DISTRIBUTION)}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_register(commands)
    _add_demo(commands)
    _add_config(commands)
    _add_doctor(commands)
    _add_peers(commands)
    for name in LISTINGS:
        _add_listing(commands, name)
    _add_rules(commands)
    _add_housekeeping(commands)
    _add_backup(commands)
    return parser


def _add(commands: Any, name: str, text: str, command: tuple[str, str] | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[:1].upper() + text[1:])
    if command:
        parser.set_defaults(command=command)
    return parser


def _add_config_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help="default: %(default)s")


def _add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON on standard output, for programs")


def _add_serve(commands: Any) -> None:
    parser = _add(commands, "serve", "run the node until SIGTERM; SIGHUP reads FILE again", ("serve", "serve"))
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--roles", metavar="ROLE,...", help="of receive, pair, work, send; default: all")


def _add_register(commands: Any) -> None:
    text = "register one PET series to one MR series, without a network"
    parser = _add(commands, "register", text, ("register", "register"))
    parser.add_argument("--fixed", type=Path, required=True, metavar="DIR", help="the MR series: files below DIR")
    parser.add_argument("--moving", type=Path, required=True, metavar="DIR", help="the PET series: files below DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the results are written")
    _add_json_flag(parser)


def _add_demo(commands: Any) -> None:
    text = "show a synthetic MR and PET go through a node on this machine; writes demo/"
    _add(commands, "demo", text, ("demo", "demo"))


def _add_config(commands: Any) -> None:
    actions = _add(commands, "config", "the configuration file").add_subparsers(required=True, metavar="ACTION")
    for name, text in {
        "init": "write FILE with every key, its default and unit",
        "check": "name whatever is wrong in FILE or with what it names",
        "show": "the settings in force, the environment included",
    }.items():
        parser = _add(actions, name, text, ("configuration", name))
        _add_config_flag(parser)
        if name != "init":
            _add_json_flag(parser)


def _add_doctor(commands: Any) -> None:
    text = "look at disk, database, clock, ports, certificates, model and peers, and show what the node has counted"
    parser = _add(commands, "doctor", text, ("doctor", "doctor"))
    _add_config_flag(parser)
    _add_json_flag(parser)


def _add_peers(commands: Any) -> None:
    actions = _add(commands, "peers", "the AEs we talk to").add_subparsers(required=True, metavar="ACTION")
    listed = _add(actions, "list", "every peer and what it may do", ("peers", "list_peers"))
    added = _add(actions, "add", "add a peer to FILE; a running node follows", ("peers", "add_peer"))
    removed = _add(actions, "remove", "remove a peer from FILE; a running node follows", ("peers", "remove_peer"))
    echoed = _add(actions, "echo", "ask a peer whether it answers (C-ECHO)", ("peers", "echo_peer"))
    probed = _add(actions, "probe", "ask a peer what it takes of our objects and requests", ("peers", "probe_peer"))
    for parser in (added, removed, echoed, probed):
        parser.add_argument("name", metavar="NAME", help="how we call it in commands and logs")
    for parser in (listed, added, removed, echoed, probed):
        _add_config_flag(parser)
        _add_json_flag(parser)
    added.add_argument("--ae-title", required=True, metavar="AE", help="its AE title, at most 16 characters")
    added.add_argument("--host", required=True, help="its name or address; a network only calls us")
    added.add_argument("--port", required=True, type=int)
    added.add_argument("--may", nargs="+", choices=PERMISSIONS, default=[], help="store to us, receive results")
    added.add_argument("--sop-classes", nargs="+", default=[], metavar="KEYWORD", help="all it may store; default: any")
    added.add_argument("--transfer-syntaxes", nargs="+", default=[], metavar="KEYWORD", help="in which; default: any")
    added.add_argument(
        "--answers", nargs="+", choices=SERVICES, default=[], help="what we may ask: find, and move or get"
    )
    added.add_argument("--tls", action="store_true", help="call it by TLS, never without")
    added.add_argument("--certificate-sha256", default="", metavar="HEX", help="it calls by TLS, with this certificate")
    added.add_argument("--certificate-subject", default="", metavar="NAME", help="it calls by TLS, as this subject")
    added.add_argument("--priority", type=int, default=0, metavar="N", help="-100 to 100; default: %(default)s")
    added.add_argument("--destination", action="store_true", help="send it every result; needs --may receive")


def _add_rules(commands: Any) -> None:
    actions = _add(commands, "rules", "which results go where").add_subparsers(required=True, metavar="ACTION")
    parser = _add(actions, "explain", "which rules apply to a series' pairs, and why", ("rules", "explain_rules"))
    parser.add_argument("series_uid", metavar="SERIES_UID")
    _add_config_flag(parser)
    _add_json_flag(parser)


def _add_housekeeping(commands: Any) -> None:
    text = "what the node deletes by itself, as [retention] says"
    actions = _add(commands, "housekeeping", text).add_subparsers(required=True, metavar="ACTION")
    planned = _add(
        actions, "plan", "what would go now, and why the rest stays; nothing is deleted", ("housekeeping", "plan")
    )
    logged = _add(actions, "log", "what was deleted, when and why, the latest last", ("housekeeping", "show_log"))
    for parser in (planned, logged):
        _add_config_flag(parser)
        _add_json_flag(parser)


def _add_backup(commands: Any) -> None:
    made = _add(commands, "backup", "copy everything the node holds, while it runs", ("backup", "backup"))
    made.add_argument("target", metavar="FOLDER", help="empty or not there; only this user can read it afterwards")
    restored = _add(commands, "restore", "make a node of a backup, in an empty place", ("backup", "restore"))
    restored.add_argument("source", metavar="FOLDER", help="what `dicomnode backup` wrote")
    verified = _add(
        commands, "verify", "compare a backup, or the node's own files, with what was written", ("backup", "verify")
    )
    verified.add_argument("backup", metavar="FOLDER", nargs="?", help="a backup; default: the node's own files")
    for parser in (made, restored, verified):
        _add_config_flag(parser)
        _add_json_flag(parser)


def _add_listing(commands: Any, name: str) -> None:
    text, key, states = LISTINGS[name]
    actions = _add(commands, name, text).add_subparsers(required=True, metavar="ACTION")
    listed = _add(actions, "list", f"{text}: all, oldest first", ("listings", "list_rows"))
    listed.add_argument("--state", choices=states, help="only those in this state")
    shown = _add(actions, "show", "one of them, with why it is as it is", ("listings", "show_row"))
    decided = {
        action: _add(actions, action, decision, ("decisions", f"{action}_{name}"))
        for action, decision in DECISIONS.get(name, {}).items()
    }
    if name == "pairs":
        text = "the candidates, and the rule each won or lost by"
        decided["explain"] = _add(actions, "explain", text, ("pairs", "explain"))
        _add_request(actions)
    if name == "notices":
        tested = _add(actions, "test", "send a test by each channel, and say how it went", ("notices", "test"))
        _add_config_flag(tested)
        _add_json_flag(tested)
    if "reprocess" in decided:
        text = "default: what the settings say when it runs"
        decided["reprocess"].add_argument("--profile", choices=PROFILES, help=text)
    if name == "outbox":
        text = "every dead row of this destination, instead of one by its number"
        decided["retry"].add_argument("--destination", metavar="NAME", help=text)
    for action, parser in {"show": shown, **decided}.items():
        count = "?" if (name, action) in ONE_OR_ALL else None
        parser.add_argument("key", metavar=key, type=str if name == "series" else _read_number, nargs=count)
    for parser in (listed, shown, *decided.values()):
        parser.set_defaults(listing=name)
        _add_config_flag(parser)
        _add_json_flag(parser)


def _add_request(actions: Any) -> None:
    parser = _add(actions, "request", "pair two series, whatever the rules say", ("pairs", "request"))
    parser.add_argument("--fixed", required=True, metavar="SERIES_UID", help="the MR")
    parser.add_argument("--moving", required=True, metavar="SERIES_UID", help="the PET")
    _add_config_flag(parser)
    _add_json_flag(parser)
