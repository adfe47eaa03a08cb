"""Priors are found and fetched, and series counted, at a real archive: Orthanc and DCMTK's dcmqrscp.

Flow: dicomnode.app > Orthanc | dcmqrscp > [test_priors]
Never: a stand-in for an archive, save where it must misbehave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from structlog.testing import capture_logs

from dicomnode.app import Node
from dicomnode.database.engine import Database, open_database
from dicomnode.database.pairs import Pair, fetch_pairs
from dicomnode.database.priors import Prior, fetch_priors
from dicomnode.database.queries import Query, fetch_queries
from dicomnode.database.series import SeriesRow, fetch_instance_paths, fetch_series, fetch_series_rows
from dicomnode.database.store import Store
from dicomnode.setting_values import Service
from dicomnode.settings import NodeSettings, PairingSettings, PeerSettings, SendSettings, Settings
from dicomnode.settings_limits import LimitSettings
from tests.dicomnode.series_files import SeriesSpec, write_series
from tests.peers_programs import LOOPBACK, DcmQrScp, Orthanc, data_set_bytes, free_port, send_with_dcmtk
from tests.waiting import wait_until

ROOT = "1.2.826.0.1.3680043.8.498"
NODE_AE = "DICOMNODE"
PAIRED_WITHIN_S = 30.0
Archive = Orthanc | DcmQrScp


@dataclass(frozen=True)
class Kept:
    """A series for the archive or the node: what tells it from the others of the test."""

    number: int
    modality: str = "MR"
    description: str = "t1_mprage"
    date: str = "20250304"
    patient_id: str = "T-1"
    slices: int = 12

    @property
    def series_uid(self) -> str:
        return f"{ROOT}.{self.number}.2"

    def write(self, folder: Path) -> list[Path]:
        def change(header: pydicom.Dataset, _k: int) -> None:
            header.SeriesDescription = self.description
            header.StudyDate = self.date
            header.PatientID = self.patient_id

        shape = (self.slices, 32, 30)
        spec = SeriesSpec(modality=self.modality, shape=shape, uid=f"{ROOT}.{self.number}", change=change)
        return write_series(folder / str(self.number), spec)


PET = Kept(1, "PT", "FDG brain", "20250304")
PRIOR = Kept(2, date="20250201")
LOCALIZER = Kept(3, description="localizer", date="20250303")
OLD = Kept(4, date="20230101")
STRANGER = Kept(5, patient_id="T-11", date="20250304")
FARTHER = Kept(6, date="20250120")


def _orthanc(folder: Path, node_port: int) -> Orthanc:
    allowed = {f"DicomAlwaysAllow{service}": True for service in ("Find", "Get", "Move")}
    return Orthanc(folder / "orthanc", further={**allowed, "DicomModalities": {"n": [NODE_AE, LOOPBACK, node_port]}})


def _dcmqrscp(folder: Path, node_port: int) -> DcmQrScp:
    return DcmQrScp(folder, {NODE_AE: node_port})


MakeArchive = Callable[[Path, int], Archive]
ARCHIVES = pytest.mark.parametrize("make_archive", [_orthanc, _dcmqrscp], ids=["orthanc", "dcmqrscp"])


@dataclass
class Site:
    """A node and an archive that know each other, and the node's database."""

    archive: Archive
    node: Node
    database: Database

    def send(self, files: list[Path]) -> None:
        """Send to the node as its scanner does."""
        assert send_with_dcmtk(files, self.node.port, called=NODE_AE, calling="SCANNER").all_stored

    def series(self) -> dict[str, str]:
        with self.database.read() as connection:
            return {row.series_uid: row.state for row in fetch_series_rows(connection)}

    def row(self, kept: Kept) -> SeriesRow:
        with self.database.read() as connection:
            return fetch_series(connection, kept.series_uid).row

    def stored(self, kept: Kept) -> set[bytes]:
        """The data sets of a series as the node keeps them."""
        with self.database.read() as connection:
            paths = fetch_instance_paths(connection, self.store, self.row(kept).id)
        return {data_set_bytes(path.read_bytes()) for path in paths}

    @property
    def store(self) -> Store:
        return Store(self.node.settings.node.storage_root)

    def pairs(self) -> list[Pair]:
        with self.database.read() as connection:
            return fetch_pairs(connection)

    def queries(self, series_uid: str) -> list[Query]:
        with self.database.read() as connection:
            return fetch_queries(connection, [fetch_series(connection, series_uid).row.id])

    def priors(self, series_uid: str) -> list[Prior]:
        with self.database.read() as connection:
            return fetch_priors(connection, fetch_series(connection, series_uid).row.id)


@contextmanager
def _site(
    folder: Path, make_archive: MakeArchive, answers: tuple[Service, ...], kept: tuple[Kept, ...], **pairing: Any
) -> Iterator[Site]:
    node_port = free_port()
    archive = make_archive(folder, node_port)
    pacs = PeerSettings(
        name="pacs", ae_title=archive.ae_title, host=LOOPBACK, port=archive.port, may=("store",), answers=answers
    )
    scanner = PeerSettings(name="scanner", ae_title="SCANNER", host=LOOPBACK, port=104, may=("store",))
    settings = Settings(
        node=NodeSettings(ae_title=NODE_AE, port=node_port, storage_root=folder / "storage"),
        peers=(pacs, scanner),
        pairing=PairingSettings(**{"series_quiet_period_s": 0.5, "study_quiet_period_s": 0.5, **pairing}),
        send=SendSettings(timeout_s=10.0, attempts=2, retry_first_s=0.2),
        limits=LimitSettings(disk_reserve_bytes=0, shutdown_s=5.0),
    )
    with archive:
        files = [file for series in kept for file in series.write(folder / "kept")]
        assert send_with_dcmtk(files, archive.port, called=archive.ae_title, calling="OTHER").all_stored
        node = Node(settings, ("receive", "pair", "send"))
        node.start()
        database = open_database(settings.database_url)
        try:
            yield Site(archive, node, database)
        finally:
            database.close()
            node.stop()


@ARCHIVES
@pytest.mark.parametrize("service", ["move", "get"])
def test_the_best_prior_of_the_patient_is_fetched_and_paired(
    tmp_path: Path, make_archive: MakeArchive, service: Service
) -> None:
    kept = (PRIOR, LOCALIZER, OLD, STRANGER, FARTHER)
    with _site(tmp_path, make_archive, ("find", service), kept) as site, capture_logs() as logs:
        site.send(PET.write(tmp_path))
        wait_until(site.pairs, PAIRED_WITHIN_S, "a pair with the prior")
        wait_until(lambda: _is_answered(site), PAIRED_WITHIN_S, "every question answered")

        [pair] = site.pairs()
        assert (pair.fixed_series_uid, pair.moving_series_uid) == (PRIOR.series_uid, PET.series_uid)
        found = {prior.series.row.series_uid: prior.state for prior in site.priors(PET.series_uid)}
        here = site.series()
        assert {query.peer for query in site.queries(PET.series_uid)} == {"pacs"}
        if isinstance(site.archive, Orthanc):  # dcmqrscp converts what it sends
            assert site.stored(PRIOR) <= {data_set_bytes(file) for file in site.archive.fetch_files().values()}
        wait_until(lambda: not any(site.store.fetched_root.glob("*/")), 10, "no file that waits to be received")

    # dcmqrscp does not describe a series: the localizer is fetched, refused once it is here, and the next best is.
    is_described = make_archive is _orthanc
    assert found == {
        PRIOR.series_uid: "chosen",
        LOCALIZER.series_uid: "refused" if is_described else "chosen",
        FARTHER.series_uid: "lost",
    }
    fetched = {PRIOR.series_uid: "paired"} | ({} if is_described else {LOCALIZER.series_uid: "refused"})
    assert here == {PET.series_uid: "paired", **fetched}
    assert not any(secret in str(logs) for secret in ("T-1", "Müller", "Käthe", "19500102"))


def _is_answered(site: Site) -> bool:
    return {query.state for query in site.queries(PET.series_uid)} == {"done"}


def test_a_pet_is_fetched_for_an_mr(tmp_path: Path) -> None:
    with _site(tmp_path, _orthanc, ("find", "move"), (PET, OLD)) as site:
        site.send(PRIOR.write(tmp_path))
        wait_until(site.pairs, PAIRED_WITHIN_S, "a pair with the PET")

        [pair] = site.pairs()
    assert (pair.fixed_series_uid, pair.moving_series_uid) == (PRIOR.series_uid, PET.series_uid)


@pytest.mark.parametrize("service", ["move", "get"])
def test_a_prior_that_turns_out_too_large_is_broken_off(tmp_path: Path, service: Service) -> None:
    with _site(tmp_path, _orthanc, ("find", service), (PRIOR,), prior_bytes=1000) as site:
        site.send(PET.write(tmp_path))
        wait_until(lambda: _failed(site), PAIRED_WITHIN_S, "a fetch that failed")

        [query] = _failed(site)
        assert (query.kind, query.attempts) == ("fetch", 1)
        assert "at most 1000 are fetched" in query.reason


def test_no_more_than_the_settings_allow_is_looked_at(tmp_path: Path) -> None:
    with _site(tmp_path, _orthanc, ("find", "move"), (PRIOR, LOCALIZER, FARTHER), prior_results=2) as site:
        site.send(PET.write(tmp_path))
        wait_until(lambda: PET.series_uid in site.series() and site.priors(PET.series_uid), PAIRED_WITHIN_S)

        assert len(site.priors(PET.series_uid)) == 2


def test_an_archive_that_does_not_know_us_is_named_with_what_to_do(tmp_path: Path) -> None:
    def stranger(folder: Path, _node_port: int) -> DcmQrScp:
        return DcmQrScp(folder, {})

    with _site(tmp_path, stranger, ("find", "move"), (PRIOR,)) as site:
        site.send(PET.write(tmp_path))
        wait_until(lambda: _failed(site), PAIRED_WITHIN_S, "a fetch that failed")

        [query] = _failed(site)
    assert query.reason == (
        "pacs: C-MOVE answered 0xA801 it does not know our AE title as a move destination; add it there"
    )


def test_an_archive_that_is_down_is_asked_again(tmp_path: Path) -> None:
    with _site(tmp_path, _orthanc, ("find", "move"), (PRIOR,)) as site:
        site.archive.stop()
        site.send(PET.write(tmp_path))
        wait_until(lambda: _failed(site), PAIRED_WITHIN_S, "a search that failed")

        [query] = _failed(site)
    assert (query.kind, query.attempts) == ("priors", 2)
    assert "nobody listens" in query.reason


def test_a_source_says_how_many_instances_a_series_has(tmp_path: Path) -> None:
    periods = {"series_quiet_period_s": 12.0, "study_quiet_period_s": 600.0}
    with _site(tmp_path, _orthanc, ("find",), (PRIOR,), **periods) as site:
        files = PRIOR.write(tmp_path)
        port, ae_title = site.node.port, site.archive.ae_title
        assert send_with_dcmtk(files[:10], port, called=NODE_AE, calling=ae_title).all_stored
        wait_until(lambda: site.row(PRIOR).source_count == 12, PAIRED_WITHIN_S, "the archive's count")
        assert site.row(PRIOR).state == "receiving"
        assert send_with_dcmtk(files[10:], port, called=NODE_AE, calling=ae_title).all_stored
        wait_until(lambda: site.row(PRIOR).state == "complete", PAIRED_WITHIN_S, "a complete series")
        assert site.row(PRIOR).completed_by == "12 of 12 instances, by the source's count"


def _failed(site: Site) -> list[Query]:
    if PET.series_uid not in site.series():
        return []
    return [query for query in site.queries(PET.series_uid) if query.state == "failed"]
