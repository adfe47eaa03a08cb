"""The node in this process: its parts start, stop and follow a reload together; real registrations survive kill -9."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dicomnode import app
from dicomnode.app import LATE_TICK_S, Node
from dicomnode.database.engine import Database, open_database
from dicomnode.database.jobs import Job, fetch_jobs, fetch_outputs
from dicomnode.database.outbox import fetch_outbox
from dicomnode.errors import ConfigurationError, DatabaseUnavailableError, StateError, StorageFullError
from dicomnode.settings import (
    DestinationSettings,
    JobSettings,
    NodeSettings,
    PairingSettings,
    PeerSettings,
    ReceiveSettings,
    RegistrationSettings,
    SendSettings,
    Settings,
)
from dicomnode.settings_file import load_settings
from dicomnode.settings_limits import LimitSettings
from tests.builders import NodeProcess, Peer, make_config, make_patient
from tests.peers_programs import LOOPBACK, Orthanc, data_set_bytes, free_port, send_with_dcmtk
from tests.waiting import wait_until

JOB_TIMEOUT_S = 300.0


def _settings(root: Path, destination_port: int | None = None) -> Settings:
    peers = () if destination_port is None else (_peer(destination_port),)
    return Settings(
        node=NodeSettings(storage_root=root, port=free_port()),
        receive=ReceiveSettings(accept="any"),
        peers=peers,
        destinations=tuple(DestinationSettings(peer=peer.name) for peer in peers),
        pairing=PairingSettings(series_quiet_period_s=0.5, study_quiet_period_s=0.5),
        jobs=JobSettings(retry_first_s=0.1),
        registration=RegistrationSettings(device="cpu"),
        send=SendSettings(retry_first_s=0.5, retry_ceiling_s=1.0, timeout_s=10.0),
        limits=LimitSettings(disk_reserve_bytes=0, shutdown_s=5.0),
    )


def _peer(port: int) -> PeerSettings:
    return PeerSettings(name="pacs", ae_title="PACS", host=LOOPBACK, port=port, may=("receive",))


@contextmanager
def _running(settings: Settings, roles: tuple[app.Role, ...] = app.ROLES) -> Iterator[Node]:
    node = Node(settings, roles)
    node.start()
    try:
        yield node
    finally:
        node.stop()


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    opened = open_database(settings.database_url)
    try:
        yield opened
    finally:
        opened.close()


def _jobs(database: Database) -> list[Job]:
    with database.read() as connection:
        return fetch_jobs(connection)


def _is_done(database: Database) -> bool:
    jobs = _jobs(database)
    assert not any(job.state in ("failed", "review") for job in jobs), [job.reason for job in jobs]
    return bool(jobs) and all(job.state == "done" for job in jobs)


def test_a_killed_worker_s_job_is_done_once_and_delivered_whole(tmp_path: Path) -> None:
    patient = make_patient(tmp_path / "patient")
    with Orthanc(tmp_path / "orthanc", "PACS") as orthanc:
        settings = _settings(tmp_path / "storage", orthanc.port)
        with _running(settings) as node, _database(settings) as database:
            assert send_with_dcmtk(patient.files, node.port, called="DICOMNODE").all_stored
            wait_until(
                lambda: any(job.stage.startswith("register") for job in _jobs(database)), JOB_TIMEOUT_S, "it registers"
            )
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)
            wait_until(lambda: _is_done(database), JOB_TIMEOUT_S, "the job is done")
            [job] = _jobs(database)
            with database.read() as connection:
                outputs = fetch_outputs(connection, job.id)
            wait_until(lambda: orthanc.count_instances() == len(outputs), JOB_TIMEOUT_S, "all is delivered")
            held = {uid: data_set_bytes(file) for uid, file in orthanc.fetch_files().items()}
            written = {one.sop_instance_uid: (settings.node.storage_root / one.path).read_bytes() for one in outputs}
            wait_until(lambda: _owes_nothing(database), JOB_TIMEOUT_S, "the outbox is empty")

    assert (job.attempts, job.verdict) == (2, "accept")
    assert job.result is not None
    assert set(job.result) == {
        "fixed_from_moving", "verdict", "confidence", "metrics", "timings_s", "device", "model_sha256",
    }  # fmt: skip
    assert held == {uid: data_set_bytes(file) for uid, file in written.items()}


def _owes_nothing(database: Database) -> bool:
    with database.read() as connection:
        return {row.state for row in fetch_outbox(connection)} == {"sent"}


def test_a_node_starts_is_healthy_and_stops_without_a_trace(tmp_path: Path) -> None:
    threads = threading.active_count()

    with _running(_settings(tmp_path)) as node:
        assert node.is_healthy()
        port = node.port
        with socket.create_connection((LOOPBACK, port), timeout=5):
            pass

    wait_until(lambda: threading.active_count() <= threads, 10, "every thread ends")
    wait_until(lambda: multiprocessing.active_children() == [], 10, "every worker ends")
    with pytest.raises(StateError):
        _ = node.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, port), timeout=5)


def test_a_port_in_use_is_named_and_what_had_started_is_stopped(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    threads = threading.active_count()
    with (
        socket.create_server((LOOPBACK, settings.node.port)),
        pytest.raises(ConfigurationError, match=str(settings.node.port)),
    ):
        Node(settings).start()

    wait_until(lambda: threading.active_count() <= threads, 10, "every thread ends")
    wait_until(lambda: multiprocessing.active_children() == [], 10, "every worker ends")


@pytest.mark.parametrize("role", app.ROLES)
def test_each_role_runs_alone(tmp_path: Path, role: app.Role) -> None:
    with _running(_settings(tmp_path), (role,)) as node:
        assert node.is_healthy()
        assert bool(multiprocessing.active_children()) == (role == "work")


def test_a_node_whose_port_is_served_no_more_is_not_healthy(tmp_path: Path) -> None:
    with _running(_settings(tmp_path), ("receive",)) as node:
        assert node.is_healthy()
        assert node._scp is not None
        node._scp.stop(1.0)
        assert not node.is_healthy()
        node._scp.start(0)


def test_a_part_that_hangs_is_not_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _running(_settings(tmp_path), ("pair",)) as node:
        assert node.is_healthy()
        monkeypatch.setattr(app, "LATE_TICK_S", -1.0)
        assert not node.is_healthy()


def test_a_reload_follows_peers_and_keeps_what_cannot_change(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    with _running(settings) as node:
        changed = _settings(tmp_path / "elsewhere", free_port())
        node.reload(changed)

        assert node.settings.peers == changed.peers
        assert node.settings.node == settings.node


def test_a_step_that_fails_is_tried_again_and_stops_no_clock(tmp_path: Path) -> None:
    with _running(_settings(tmp_path), ("receive",)) as node:
        for error in (DatabaseUnavailableError("locked"), StorageFullError("full")):
            node._tick("pair", _raising(error))
            assert node.is_healthy()
        node._ticked_at["pair"] -= LATE_TICK_S
        assert not node.is_healthy()
        with pytest.raises(ZeroDivisionError):
            node._tick("pair", _raising(ZeroDivisionError()))
        assert node.is_healthy()


def _raising(error: Exception) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def test_a_node_that_is_killed_resumes_where_it_was(tmp_path: Path) -> None:
    """kill -9 while it registers, and again while it sends: done once, delivered once, the same bytes."""
    patient = make_patient(tmp_path / "patient")
    port = free_port()
    with Orthanc(tmp_path / "orthanc", "PACS") as orthanc:
        peers = [Peer("pacs", "PACS", orthanc.port, ("receive",)), Peer("scanner", "STORESCU")]
        sections: dict[str, dict[str, Any]] = {
            "jobs": {"lease_s": 5.0},
            "registration": {"device": "cpu"},
            "send": {"timeout_s": 2.0},
        }
        config = make_config(tmp_path, peers, port, sections)
        with NodeProcess(config, port) as node, _database(load_settings(config)) as database:
            assert send_with_dcmtk(patient.files, port, called="DICOMNODE").all_stored
            wait_until(
                lambda: any(job.stage.startswith("register") for job in _jobs(database)), JOB_TIMEOUT_S, "it registers"
            )
            node.kill()
            node.start()
            wait_until(lambda: orthanc.count_instances() > 0, JOB_TIMEOUT_S, "it sends")
            node.kill()
            node.start()
            wait_until(lambda: _is_done(database) and _owes_nothing(database), JOB_TIMEOUT_S, "all is sent")
            [job] = _jobs(database)
            with database.read() as connection:
                outputs = fetch_outputs(connection, job.id)
        held = {uid: data_set_bytes(file) for uid, file in orthanc.fetch_files().items()}

    root = tmp_path / "storage"
    assert job.attempts == 2
    assert held == {one.sop_instance_uid: data_set_bytes((root / one.path).read_bytes()) for one in outputs}
