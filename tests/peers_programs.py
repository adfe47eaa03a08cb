"""Other people's programs as peers of a test: Orthanc, DCMTK's storescp, storescu and dcmqrscp, dicom3tools' dciodvfy.

Flow: tests > [peers_programs] > programs of the system
Never: a program from the virtual environment; a port that is not loopback's; a process left behind.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.conftest import find_peer_program
from tests.waiting import wait_until

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 300.0
# Debian's DCMTK and Orthanc leave Nagle on: 44 ms an instance.
PEER_ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
PREAMBLE_BYTES = 132
# Below those that Linux gives to connections (net.ipv4.ip_local_port_range). Each process begins elsewhere.
PORTS = range(20000, 32000)
LISTENING = "0A"  # a state in the tables of the kernel
_CANDIDATES = (PORTS[(os.getpid() * 101 + number) % len(PORTS)] for number in itertools.count())


def free_port() -> int:
    """Return a TCP port of loopback which nobody listens on now, and which no connection is given meanwhile."""
    return next(port for port in _CANDIDATES if not _is_taken(port))


def _is_taken(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return True
        return False


def is_listening(port: int) -> bool:
    """Tell whether somebody listens on a port.

    Nobody is called to find out: rsyslog 8.2302 mixes up a caller who leaves at once with those who come next.
    """
    tables = (Path("/proc/net", name).read_text(encoding="ascii") for name in ("tcp", "tcp6"))
    rows = (line.split() for table in tables for line in table.splitlines()[1:])
    return any(row[1].endswith(f":{port:04X}") and row[3] == LISTENING for row in rows)


class Process:
    """A program in its own process group, its output in one file, ended with the `with` block."""

    def __init__(self, command: Sequence[str | Path], log: Path, ports: Sequence[int], cwd: Path | None = None) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self.ports = tuple(ports)
        self.cwd = cwd
        self.environment: dict[str, str] = dict(PEER_ENVIRONMENT)
        self.popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        assert self.popen is not None
        return self.popen.pid

    def start(self) -> None:
        """Start the program and return once every port answers; fail with its output when it ends instead."""
        with self.log.open("ab") as output:
            self.popen = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                cwd=self.cwd,
                start_new_session=True,
            )
        try:
            wait_until(self._has_come_up, START_TIMEOUT_S, f"{self.command[0]} listening on {self.ports}")
        except BaseException:
            self.kill()
            raise

    def _has_come_up(self) -> bool:
        assert self.popen is not None
        if self.popen.poll() is not None:
            raise AssertionError(f"{self.command[0]} ended with {self.popen.returncode}:\n{self.output()}")
        return all(is_listening(port) for port in self.ports)

    def output(self) -> str:
        """Return what the program has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def is_running(self) -> bool:
        """Tell whether the program still runs."""
        return self.popen is not None and self.popen.poll() is None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """Ask the program to end (SIGTERM); kill its group when it does not. Return its exit status."""
        if self.popen is None:
            return None
        if self.popen.poll() is None:
            self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout_s)
        self.kill()
        return self.popen.returncode

    def kill(self) -> None:
        """End the program and its children at once (SIGKILL to the group)."""
        if self.popen is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(STOP_TIMEOUT_S)


class Orthanc(Process):
    """Debian's Orthanc with a store of its own: a PACS that takes C-STORE from anybody on loopback.

    `port` and `ae_title` are its DICOM side, `further` more keys of its configuration; the REST interface is used by
    the methods.
    """

    def __init__(
        self,
        folder: Path,
        ae_title: str = "ORTHANC",
        port: int | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ae_title = ae_title
        self.port = port or free_port()
        self.http_port = free_port()
        configuration = folder / "orthanc.json"
        configuration.write_text(json.dumps(self._settings(folder) | dict(further or {})), encoding="utf-8")
        command = [find_peer_program("Orthanc"), configuration]
        super().__init__(command, folder / "orthanc.log", (self.port, self.http_port))

    def _settings(self, folder: Path) -> dict[str, Any]:
        return {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "StorageCompression": False,
            "DicomAet": self.ae_title,
            "DicomPort": self.port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "OverwriteInstances": False,
            "Plugins": [],
        }

    def get(self, path: str) -> bytes:
        """Return the body of a REST resource; fail on any status but 200."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: bytes) -> bytes:
        """Give it something and return what it answers; fail on any status but 200."""
        return self._ask("POST", path, body)

    def put(self, path: str, body: bytes) -> bytes:
        """Set something there and return what it answers; fail on any status but 200."""
        return self._ask("PUT", path, body)

    def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        connection = http.client.HTTPConnection(LOOPBACK, self.http_port, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        assert response.status == http.client.OK, f"{method} {path}: {response.status} {answer[:500]!r}"
        return answer

    def count_instances(self) -> int:
        """Return how many instances it holds."""
        return int(json.loads(self.get("/statistics"))["CountInstances"])

    def instances(self) -> dict[str, str]:
        """Return SOP Instance UID -> Orthanc's own identifier, for every instance it holds."""
        listing = json.loads(self.get("/instances?expand"))
        return {item["MainDicomTags"]["SOPInstanceUID"]: item["ID"] for item in listing}

    def fetch_files(self) -> dict[str, bytes]:
        """Return SOP Instance UID -> DICOM file for every instance it holds."""
        return {uid: self.get(f"/instances/{identifier}/file") for uid, identifier in self.instances().items()}


class StoreScp(Process):
    """DCMTK's storescp, writing each data set exactly as it came (`+B`), one file an instance."""

    def __init__(
        self, folder: Path, ae_title: str = "STORESCP", port: int | None = None, options: Sequence[str] = ()
    ) -> None:
        self.folder = folder / "received"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ae_title = ae_title
        self.port = port or free_port()
        command: list[str | Path] = [find_peer_program("storescp"), "--fork", "-pdu", "131072", "+B", "+xa", "-uf"]
        command += [*options, "-aet", ae_title, "-od", self.folder, str(self.port)]
        super().__init__(command, folder / "storescp.log", (self.port,))

    def files(self) -> list[Path]:
        """Return what it has stored."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())


class DcmQrScp(Process):
    """DCMTK's dcmqrscp: an archive that answers C-FIND, C-MOVE and C-GET; it moves to `ae_titles`, by their ports."""

    def __init__(self, folder: Path, ae_titles: Mapping[str, int], ae_title: str = "QRSCP") -> None:
        self.ae_title = ae_title
        self.port = free_port()
        storage = folder / "dcmqrscp"
        storage.mkdir(parents=True)
        hosts = [f"host{n} = ({name}, {LOOPBACK}, {port})" for n, (name, port) in enumerate(ae_titles.items())]
        lines = [f"NetworkTCPPort = {self.port}", "MaxPDUSize = 131072", "MaxAssociations = 16"]
        lines += ["HostTable BEGIN", *hosts, "HostTable END", "VendorTable BEGIN", "VendorTable END"]
        lines += ["AETable BEGIN", f"{ae_title} {storage} RW (200, 1024mb) ANY", "AETable END", ""]
        configuration = folder / "dcmqrscp.cfg"
        configuration.write_text("\n".join(lines), encoding="ascii")
        command: list[str | Path] = [find_peer_program("dcmqrscp"), "-v", "-c", configuration, str(self.port)]
        super().__init__(command, folder / "dcmqrscp.log", (self.port,))


@dataclass(frozen=True)
class Sent:
    """How one run of storescu ended."""

    returncode: int
    output: str
    statuses: tuple[str, ...] = field(default=())

    @property
    def all_stored(self) -> bool:
        """Whether every instance was answered with Success."""
        return self.returncode == 0 and bool(self.statuses) and all(status == "Success" for status in self.statuses)


def send_with_dcmtk(
    files: Iterable[Path],
    port: int,
    *,
    called: str,
    calling: str = "STORESCU",
    options: Sequence[str] = ("-R",),
    environment: Mapping[str, str] = PEER_ENVIRONMENT,
) -> Sent:
    """Send DICOM files (or whole folders) with DCMTK's storescu over one association.

    `options` are storescu's own; `-R` proposes only the contexts that the files need.
    """
    command: list[str] = [str(find_peer_program("storescu")), "-v", *options, "+sd", "+r"]
    command += ["-aet", calling, "-aec", called, "-pdu", "131072", LOOPBACK, str(port), *(str(path) for path in files)]
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SEND_TIMEOUT_S,
        check=False,
    )
    output = done.stdout.decode("utf-8", errors="replace")
    marker = "Received Store Response ("
    statuses = tuple(line.split(marker, 1)[1].rstrip(") ") for line in output.splitlines() if marker in line)
    return Sent(done.returncode, output, statuses)


def find_dciodvfy_errors(path: Path) -> list[str]:
    """Return the lines that start with `Error` of `dciodvfy -new`."""
    done = subprocess.run(
        [find_peer_program("dciodvfy"), "-new", str(path)], capture_output=True, timeout=60, check=False
    )
    lines = (done.stdout + done.stderr).decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if line.startswith("Error")]


def data_set_bytes(file_bytes: bytes) -> bytes:
    """Return a DICOM file's data set: what follows the preamble and the File Meta group (PS3.10 7.1)."""
    assert file_bytes[128:PREAMBLE_BYTES] == b"DICM", "not a DICOM file"
    # (0002,0000) UL is the first element, always explicit little endian: 8 bytes of header, 4 of value.
    group_length = int.from_bytes(file_bytes[PREAMBLE_BYTES + 8 : PREAMBLE_BYTES + 12], "little")
    return file_bytes[PREAMBLE_BYTES + 12 + group_length :]
