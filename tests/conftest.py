"""What every test may ask for: real data, peers' programs, the machine to itself; and the rule that CI skips nothing.

Flow: pytest > [conftest] > tests
Never: a peer from the virtual environment (pynetdicom installs scripts named after DCMTK's); a skip under CI.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
PROGRAM_FOLDERS = (Path("/usr/bin"), Path("/usr/sbin"))
# PostgreSQL on Debian keeps its server programs out of /usr/bin, in a folder named after the version.
POSTGRESQL_FOLDERS = "/usr/lib/postgresql"
PACKAGES = {
    "Orthanc": "orthanc",
    "dciodvfy": "dicom3tools",
    "dcentvfy": "dicom3tools",
    "initdb": "postgresql",
    "pg_ctl": "postgresql",
    "postgres": "postgresql",
    "openssl": "openssl",
    "dcm2niix": "dcm2niix",
    "gcc": "gcc libc6-dev",
    "aiosmtpd": "python3-aiosmtpd",
    "rsyslogd": "rsyslog rsyslog-openssl",
    "xmllint": "libxml2-utils",
    "systemd-analyze": "systemd",
    "systemd-sysusers": "systemd",
    "systemd-tmpfiles": "systemd",
}

# A test that takes long on a busy machine has found nothing.
hypothesis.settings.register_profile("untimed", hypothesis.settings(deadline=None))
hypothesis.settings.load_profile("untimed")


def is_ci() -> bool:
    """Tell whether a missing peer is a failure rather than a skip."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


@pytest.fixture(scope="session")
def repository() -> Path:
    """Give the checkout these tests stand in."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder of real data, which is beside the checkout and never in it."""
    if not (SHARED_DATA / "MANIFEST.sha256").is_file():
        pytest.skip("real data: put the project's shared/data folder beside the checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def peer_program() -> Callable[[str], Path]:
    """Give a function from a program's name to its absolute path in the system, never in the virtual environment."""
    return find_peer_program


def find_peer_program(name: str) -> Path:
    """Return a peer's program of the system, or skip with the package to install."""
    folders = [*PROGRAM_FOLDERS, *sorted(Path(POSTGRESQL_FOLDERS).glob("*/bin"), reverse=True)]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} is not installed: apt-get install {PACKAGES.get(name, 'dcmtk')}, or `make peers` as root")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that is marked `alone` wait until those of the other workers are over, and them for it."""
    with take_turn(is_alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def take_turn(*, is_alone: bool) -> Iterator[None]:
    """Hold the machine, together with the tests of other processes on this checkout or alone."""
    gate, machine = (os.open(path, os.O_RDONLY) for path in (TESTS, __file__))
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)  # whoever waits to be alone holds it, and no newcomer overtakes
        fcntl.flock(machine, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
    finally:
        os.close(machine)
        os.close(gate)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failure under CI."""
    report = yield
    if is_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped under CI, where nothing may be: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a skipped module into a failure under CI."""
    report = yield
    if is_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped under CI, where nothing may be: {report.longrepr}"
    return report
