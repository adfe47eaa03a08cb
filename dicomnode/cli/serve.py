"""`dicomnode serve`: runs the node until a signal ends it, and keeps systemd informed.

Flow: cli > [serve] > app
Never: work in a signal handler; settings that were not checked as a whole before the node hears of them.
"""

from __future__ import annotations

import argparse
import gc
import queue
import signal
from pathlib import Path

from dicomnode import logs, systemd
from dicomnode.app import ROLES, Node, Role
from dicomnode.errors import DicomnodeError, TransientError, UsageError
from dicomnode.running import announce_node, show_counts
from dicomnode.settings import Settings
from dicomnode.settings_file import load_settings

log = logs.get_logger()

STOP = (signal.SIGTERM, signal.SIGINT)
EXIT_NOT_NOW = 75  # EX_TEMPFAIL of sysexits.h: systemd starts the node again, which it does not after 2
SIGNAL_S = 1.0  # a signal does not always wake the main thread, and only when it wakes does Python run the handler


def serve(arguments: argparse.Namespace) -> int:
    """Run the node in this process; 0 after SIGTERM or SIGINT, 75 where it could not start now but may later."""
    roles = _parse_roles(arguments.roles)
    settings = load_settings(arguments.config)
    logs.configure(settings.node.log_format)
    try:
        _run(settings, roles, arguments.config)
    except TransientError as error:  # a database that comes up after us, a disk that is not mounted yet
        log.error("node.not_now", reason=str(error))
        return EXIT_NOT_NOW
    return 0


def _run(settings: Settings, roles: list[Role], config: Path) -> None:
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # its put is safe in a signal handler
    for number in (*STOP, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: signals.put(received))
    with announce_node(settings.node.storage_root) as announced:
        node = Node(settings, roles)
        node.start()
        gc.collect()
        gc.freeze()  # pynetdicom collects garbage every 60 connections: all that is here by now need not be looked at
        systemd.notify(systemd.READY)
        try:
            _follow_signals(node, config, signals, announced)
        finally:
            systemd.notify(systemd.STOPPING)
            node.stop()


def _parse_roles(text: str | None) -> list[Role]:
    if text is None:
        return list(ROLES)
    asked = [part.strip() for part in text.split(",")]
    known = {str(role): role for role in ROLES}
    if unknown := [part for part in asked if part not in known]:
        raise UsageError(f"--roles: found {unknown[0]!r}, needed one or more of {','.join(ROLES)}")
    return [known[part] for part in asked]


def _follow_signals(node: Node, config: Path, signals: queue.SimpleQueue[int], announced: Path) -> None:
    """Wait for signals until one says stop; between them, tell the watchdog that all is well, and show counts."""
    shown: dict[str, int] = {}
    interval_s = min(systemd.find_watchdog_interval_s() or SIGNAL_S, SIGNAL_S)
    while True:
        try:
            received = signals.get(timeout=interval_s)
        except queue.Empty:
            if node.is_healthy():
                systemd.notify(systemd.ALIVE)
            if (counts := node.read_counts()) != shown:
                show_counts(announced, counts)
                shown = counts
            continue
        if received in STOP:
            log.info("node.stopping", signal=signal.Signals(received).name)
            return
        _reload(node, config)


def _reload(node: Node, config: Path) -> None:
    """Give the node the file's settings as they are now; when they are wrong, it keeps those it has."""
    systemd.notify_reloading()
    try:
        node.reload(load_settings(config))
    except DicomnodeError as error:
        log.error("node.reload_refused", problem=str(error))
    systemd.notify(systemd.READY)
