"""Tells systemd how the service is: ready, reloading, stopping, alive (sd_notify(3)).

Flow: cli > [systemd] > the socket in NOTIFY_SOCKET
Never: a failure of the node because nobody listens; without systemd every call does nothing.
"""

from __future__ import annotations

import os
import socket
import time

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


def notify(state: str) -> None:
    """Send one state to the service manager that started this process, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket: its name begins with a zero byte
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect(address)
            sender.sendall(state.encode())
        except OSError:
            return  # the manager is gone; the node's work does not depend on it


def notify_reloading() -> None:
    """Say that the configuration is being read again; `READY` ends it."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def find_watchdog_interval_s() -> float | None:
    """Return how often `ALIVE` is to be sent, half of what the unit allows, or None where nobody watches."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    watched = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not allowed_us.isdecimal() or watched != str(os.getpid()):
        return None
    return int(allowed_us) / 2_000_000
