"""`dicomnode doctor`: whether this machine, this node and its peers are well, and what the running node has counted.

Flow: cli > [doctor] > storage_root, database, running, tls, jobs, send
Never: a repair; a trace of the look, save for a file that is written and removed to see whether the disk takes one.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from dicomnode.cli.listings import open_node_database
from dicomnode.cli.output import show, write_json
from dicomnode.database.audit import fetch_channel_states
from dicomnode.database.commitment_requests import fetch_untold
from dicomnode.database.commitments import fetch_uncommitted
from dicomnode.database.damages import fetch_damages
from dicomnode.database.index import fetch_newest_opening, has_received
from dicomnode.database.marks import fetch_mark
from dicomnode.database.notices import fetch_notices
from dicomnode.database.refusals import fetch_refusals
from dicomnode.database.revision import check_writable
from dicomnode.database.store import Store
from dicomnode.errors import DicomnodeError, StorageFailedError
from dicomnode.housekeeping.retention import CLOCK
from dicomnode.jobs.pipeline import load_network
from dicomnode.running import find_running_nodes, read_counts
from dicomnode.send.commitment import check_commitment_peer
from dicomnode.send.notice_files import find_problems as find_notice_problems
from dicomnode.send.scu import make_caller, send_echo
from dicomnode.settings import DATABASE_NAME, PeerSettings, Settings
from dicomnode.settings_file import load_settings
from dicomnode.storage_root import find_storage_problem
from dicomnode.tls import find_expiring, find_invalid, find_problems, read_certificates

ANSWER_S = 5.0  # for a port of this machine
PEERS_AT_ONCE = 16
DAMAGES_AT_MOST = 20  # named one by one
# Of one association: its connection, what wakes its thread, its spool; of one that waits: its connection and its waker.
DESCRIPTORS_OF_ASSOCIATION, DESCRIPTORS_OF_WAITING, DESCRIPTORS_OF_NODE = 4, 2, 250

CLOCKS_DIFFER_S = 60.0  # between nodes of one database
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised

# What a person does about a damaged file, by what it is of.
MENDED_BY = {
    "series": "have it sent again",
    "job": "dicomnode jobs reprocess {} makes it again, and sends it where it is due",
}
# What a peer is refused, as a person calls it.
REFUSED = {"request": "requests for storage commitment", "report": "reports on storage commitment"}

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what is there or what to do."""

    check: str
    state: State
    text: str


def doctor(arguments: argparse.Namespace) -> int:
    """Look at everything, and say how it is; 2 where something keeps the node from its work."""
    settings = load_settings(arguments.config)
    findings = [finding for check in CHECKS for finding in check(settings)]
    counts: dict[int, dict[str, int]] = {}
    with suppress(StorageFailedError):  # `node` says why
        counts = read_counts(settings.node.storage_root)
    if arguments.json:
        write_json({"findings": [asdict(finding) for finding in findings], "counts": counts})
    else:
        for finding in findings:
            sys.stdout.write(f"{finding.state:<8} {finding.check:<12} {show(finding.text)}\n")
        for process_id, found in counts.items():
            sys.stdout.writelines(f"counted  process {process_id}: {name} {count}\n" for name, count in found.items())
    return 2 if any(finding.state == "problem" for finding in findings) else 0


def _look_at_storage(settings: Settings) -> Iterator[Finding]:
    root, store = settings.node.storage_root, Store(settings.node.storage_root)
    folder = store.spool_root if _has_run(settings) else root
    if problem := find_storage_problem(folder, settings.limits.disk_reserve_bytes) or _find_write_problem(root):
        yield Finding("storage", "problem", problem)
    elif store.is_made:
        yield Finding("storage", "ok", f"{root} can be written")
    else:
        text = f"{root} can be written, and nothing is kept there yet; has a node run, mount its disk before it starts"
        yield Finding("storage", "warning", text)


def _has_run(settings: Settings) -> bool:
    """Say whether a node is known to have made its folders below the storage root, whatever is there now."""
    root = settings.node.storage_root
    if os.access(root / DATABASE_NAME, os.F_OK) or _has_running_node(root):
        return True
    with suppress(DicomnodeError), open_node_database(settings) as database, database.read() as connection:
        return has_received(connection)
    return Store(root).is_made


def _has_running_node(root: Path) -> bool:
    with suppress(StorageFailedError):
        return bool(find_running_nodes(root))
    return False


def _find_write_problem(root: Path) -> str | None:
    """Write a block through to the disk: it may fail where the file system looks well."""
    try:
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{root}: cannot be written: {error.strerror}; instances are refused until it can"
    return None


def _look_at_database(settings: Settings) -> Iterator[Finding]:
    try:
        with open_node_database(settings) as database:
            with database.write() as connection:
                check_writable(connection)
            yield Finding("database", "ok", "it answers, and can be written")
    except DicomnodeError as error:
        yield Finding("database", "problem", str(error))


def _look_at_files(settings: Settings) -> Iterator[Finding]:
    """Say which files are not what was written."""
    try:
        with open_node_database(settings) as database, database.read() as connection:
            damages = fetch_damages(connection)
    except DicomnodeError:
        return  # the database says so itself
    for damage in damages[:DAMAGES_AT_MOST]:
        kind, _, name = damage.of.partition(" ")
        todo = MENDED_BY[kind].format(name)
        yield Finding("file", "problem", f"{damage.of}: {damage.reason}; {todo}, or restore it from a backup")
    if (left := len(damages) - DAMAGES_AT_MOST) > 0:
        yield Finding("file", "problem", f"{left} more are damaged; see: dicomnode verify")
    if not damages:
        yield Finding("file", "ok", "none is known to be damaged")


def _look_at_clock(settings: Settings) -> Iterator[Finding]:
    """Compare the clock with what was written by it, or by that of another node; and ask Linux who keeps it."""
    now, newest, held_until = time.time(), 0.0, 0.0
    with suppress(DicomnodeError), open_node_database(settings) as database, database.read() as connection:
        newest, mark = fetch_newest_opening(connection) or 0.0, fetch_mark(connection, CLOCK)
        held_until = 0.0 if mark is None else mark.until
    if held_until > now and settings.retention.is_asked_for:
        until = datetime.fromtimestamp(held_until, UTC)
        yield Finding("clock", "warning", f"it was moved, or the node was away: nothing is deleted before {until}")
    if newest > now + CLOCKS_DIFFER_S:
        said, written = (datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for at in (now, newest))
        text = f"it says {said}, but an association was opened at {written}; set it right, here and at every node"
        yield Finding("clock", "problem", text)
    elif _is_unkept():
        yield Finding("clock", "warning", "no time service keeps it; start one, as: timedatectl set-ntp true")
    else:
        yield Finding("clock", "ok", "it is not behind what was received, nor known to be unkept")


def _is_unkept() -> bool:
    """Say whether Linux knows that no time service keeps its clock; elsewhere nobody can be asked."""
    ask = getattr(ctypes.CDLL(None), "adjtimex", None)
    nothing_to_set = ctypes.create_string_buffer(512)  # struct timex, which is shorter
    return ask is not None and ask(nothing_to_set) == TIME_ERROR


def _look_at_node(settings: Settings) -> Iterator[Finding]:
    try:
        found = find_running_nodes(settings.node.storage_root)
    except StorageFailedError as error:
        yield Finding("node", "problem", str(error))
        return
    if not found:
        yield _say_that_none_runs(settings)
        return
    yield Finding("node", "ok", f"runs as process {', '.join(map(str, found))}")
    ports = {"node.port": settings.node.port, **({"tls.port": settings.tls.port} if settings.tls.certificate else {})}
    for key, port in ports.items():
        if problem := _find_port_problem(settings, port):
            yield Finding("port", "problem", f"{key} {port}: {problem}; see the node's log")
        else:
            yield Finding("port", "ok", f"{key} {port} answers")


def _say_that_none_runs(settings: Settings) -> Finding:
    """Say what to do where no node is announced: where its disk is not mounted, one may run all the same."""
    port, is_made = settings.node.port, Store(settings.node.storage_root).is_made
    text = "no node runs on this storage root"
    if _find_port_problem(settings, port) is None:
        text = f"{text}, but node.port {port} answers: is its disk mounted, or has another program taken the port?"
        return Finding("node", "warning" if is_made else "problem", text)
    todo = "start it" if is_made else "once its disk is mounted, start it"
    return Finding("node", "warning", f"{text}; {todo}: systemctl start dicomnode")


def _find_port_problem(settings: Settings, port: int) -> str | None:
    try:
        socket.create_connection((settings.node.bind, port), ANSWER_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _look_at_descriptors(settings: Settings) -> Iterator[Finding]:
    """Compare what each running node may open with what it may need; where none runs, what this user may."""
    limits = settings.limits
    needed = DESCRIPTORS_OF_NODE + DESCRIPTORS_OF_ASSOCIATION * limits.associations
    needed += DESCRIPTORS_OF_WAITING * limits.waiting_connections
    allowed: dict[str, int] = {}
    with suppress(StorageFailedError):  # `node` says why
        for process_id in find_running_nodes(settings.node.storage_root):
            with suppress(FileNotFoundError):  # it ended since we looked
                allowed[f"process {process_id}, which runs the node,"] = _read_descriptor_limit(process_id)
    if not allowed:
        allowed["this user, in this shell,"], _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for who, most in allowed.items():
        if most < needed:
            text = f"{who} may open {most} files, [limits] may need {needed}; raise LimitNOFILE= of the service"
            yield Finding("descriptors", "warning", text)


def _read_descriptor_limit(process_id: int) -> int:
    """Return how many files a process may open, by proc_pid_limits(5)."""
    text = Path(f"/proc/{process_id}/limits").read_text(encoding="ascii")
    return int(text.partition("Max open files")[2].split()[0])


def _look_at_certificates(settings: Settings) -> Iterator[Finding]:
    unusable = [f"tls.{key}: {text}" for key, text in find_problems(settings.tls)]
    yield from (Finding("certificate", "problem", text) for text in unusable)
    if unusable:
        return
    now, certificates = datetime.now(UTC), read_certificates(settings.tls)
    yield from (Finding("certificate", "problem", text) for _, text in find_invalid(certificates, now))
    for certificate in find_expiring(certificates, now):
        text = f"{certificate.path}: expires at {certificate.validity.not_after}; get a new one in time"
        yield Finding("certificate", "warning", text)


def _look_at_notices(settings: Settings) -> Iterator[Finding]:
    """Say how the notices and the audit trail do that the settings ask for."""
    wanted = settings.notices.channels or settings.audit.channels
    problems = [f"notices.{key}: {text}" for key, text in find_notice_problems(settings.notices)]
    yield from (Finding("notices", "problem", text) for text in problems)
    if not wanted:
        return
    with suppress(DicomnodeError), open_node_database(settings) as database, database.read() as connection:
        for notice in fetch_notices(connection, ["retry", "dead"]):
            text = f"notice {notice.id} by {notice.channel} is {notice.state}: {notice.reason}"
            yield Finding("notices", "warning", text)
        for channel in fetch_channel_states(connection):
            text = f"{channel.name}: {channel.waiting} messages wait{f'; {channel.reason}' if channel.reason else ''}"
            yield Finding("audit", "warning" if channel.reason else "ok", text)


def _look_at_model(settings: Settings) -> Iterator[Finding]:
    try:
        network = load_network(settings.registration)
    except DicomnodeError as error:
        yield Finding("model", "problem", str(error))
    else:
        yield Finding("model", "ok", f"{network.name}, SHA-256 {network.sha256}, runs on {network.device}")


def _look_at_peers(settings: Settings) -> Iterator[Finding]:
    peers = [peer for peer in settings.peers if not peer.is_network]
    with ThreadPoolExecutor(PEERS_AT_ONCE) as threads:  # one that is away takes send.timeout_s
        yield from threads.map(lambda peer: _ask(peer, settings), peers)


def _ask(peer: PeerSettings, settings: Settings) -> Finding:
    try:
        send_echo(peer, make_caller(settings))
    except DicomnodeError as error:
        return Finding("peer", "warning", str(error))  # one that only calls us need not answer
    return Finding("peer", "ok", f"{peer.name} answers C-ECHO")


def _look_at_refusals(settings: Settings) -> Iterator[Finding]:
    """Say whose requests for storage commitment, and reports on ours, we refuse, and who does not take our reports."""
    with suppress(DicomnodeError), open_node_database(settings) as database, database.read() as connection:
        for refusal in fetch_refusals(connection):
            what, last_at = REFUSED[refusal.kind], datetime.fromtimestamp(refusal.last_at, UTC)
            text = f"{refusal.refused} {what} of {refusal.calling_ae!a} at {refusal.address} refused"
            text += f", the last at {last_at}: {refusal.reason}"
            yield Finding("commitment", "warning", text)
        for untold in fetch_untold(connection):
            asked_at = datetime.fromtimestamp(untold.requested_at, UTC)
            text = f"{untold.peer} has not taken our report on {untold.requests} of its requests"
            text += f", the last of {asked_at}"
            if untold.has_taken_since:
                yield Finding("commitment", "ok", f"{text} ({untold.reason}); it has taken one since")
            else:
                yield Finding("commitment", "warning", f"{text}: {untold.reason}")


def _look_at_commitment(settings: Settings) -> Iterator[Finding]:
    """Say which peers that are asked to commit cannot be, and what of all that was sent is not committed in time."""
    asked = {destination.commitment for destination in settings.destinations if destination.commitment}
    for name in sorted(asked):
        try:
            check_commitment_peer(settings.peer(name), make_caller(settings))
        except DicomnodeError as error:
            yield Finding("commitment", "warning", str(error))
        else:
            yield Finding("commitment", "ok", f"{name} takes requests for storage commitment")
    if not asked:
        return
    with suppress(DicomnodeError), open_node_database(settings) as database, database.read() as connection:
        for destination, count in fetch_uncommitted(connection).items():
            text = f"{destination} was sent {count} instances and has not committed them, though asked more than once"
            yield Finding("commitment", "warning", f"{text}; dicomnode outbox list --state sent")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _look_at_storage,
    _look_at_database,
    _look_at_files,
    _look_at_clock,
    _look_at_node,
    _look_at_descriptors,
    _look_at_certificates,
    _look_at_notices,
    _look_at_model,
    _look_at_peers,
    _look_at_refusals,
    _look_at_commitment,
)
