"""One registration from stored slices to results that are owed: load, register, make outputs, queue for sending.

Flow: jobs/worker | cli > [pipeline] > volumes > registration > outputs > database/outbox > send
Never: a retry or a state of its own (`jobs/retry` decides); another transform for the command than for the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
from sqlalchemy import Connection

from dicomnode.database.damages import StoredInstance, fetch_series_instances, record_damage
from dicomnode.database.engine import Database
from dicomnode.database.jobs import Job, JobClaim, move_claimed_job, record_outputs, record_progress
from dicomnode.database.pairs import fetch_pair, is_current_pair, lock_parts
from dicomnode.database.series import fetch_instance_paths
from dicomnode.database.store import Store, find_instance_damage
from dicomnode.errors import ConfigurationError, FileDamagedError, RegistrationRefusedError, StorageFailedError
from dicomnode.logs import get_logger
from dicomnode.outputs.compression import write_copies
from dicomnode.outputs.hybrid import judge_hybrid
from dicomnode.outputs.objects import OutputFile, OutputRequest, write_outputs
from dicomnode.routes import owe_results
from dicomnode.setting_values import DynamicPet
from dicomnode.settings import DestinationSettings, OutputSettings, RegistrationSettings, Settings
from dicomnode.steps import Step, reach
from dicomnode.volumes.series import SeriesVolume, load_series
from registration.descriptors import Network
from registration.errors import DeviceError, ModelError, RegistrationError
from registration.pipeline import Registration, register
from registration.profiles import PROFILES
from registration.volume import Volume

log = get_logger()

Clock = Callable[[], float]
Progress = Callable[[str, float], None]

# What each stage is of the whole, for the bar a person sees: where it starts and ends, in percent.
STAGES = {"load": (0.0, 10.0), "register": (10.0, 75.0), "write": (75.0, 100.0)}
PROGRESS_EVERY_S = 1.0
SUPERSEDED = "superseded: slices came after its pair was made, or again under another PatientID; a new pair may follow"


@dataclass(frozen=True)
class SeriesRequest:
    """Two series to register; `created_at` in UTC epoch seconds dates the outputs, which go to `folder`."""

    fixed_paths: Sequence[Path]
    moving_paths: Sequence[Path]
    folder: Path
    created_at: float
    registration: RegistrationSettings
    outputs: OutputSettings
    dynamic_pet: DynamicPet = "refuse"


@dataclass(frozen=True)
class SeriesResult:
    """A registration, what it was made from, and what was written of it: nothing when the verdict is `reject`."""

    registration: Registration
    reason: str
    outputs: tuple[OutputFile, ...]
    fixed: Volume
    moving: Volume

    @property
    def summary(self) -> dict[str, Any]:
        """The result as `register --json` prints it and `jobs.result` keeps it."""
        return {
            "fixed_from_moving": self.registration.fixed_from_moving.matrix.tolist(),
            "verdict": self.registration.verdict,
            "confidence": self.registration.confidence,
            "metrics": dict(self.registration.metrics),
            "timings_s": dict(self.registration.timings_s),
            "device": self.registration.device,
            "model_sha256": self.registration.model_sha256,
        }


def register_series(request: SeriesRequest, network: Network, progress: Progress) -> SeriesResult:
    """Register a PET series to an MR series and write the outputs: what the node and the command both do.

    Parameters
    ----------
    request : SeriesRequest
        The files of both series and where the outputs go.
    network : Network
        A loaded one, used and left as it is.
    progress : callable
        Gets a stage and the percentage of the whole.

    Raises
    ------
    SeriesRefusedError
        If a series cannot become a volume; nothing was written.
    RegistrationRefusedError
        If the volumes cannot be registered; nothing was written.
    ConfigurationError
        If the model or the device cannot be used; nothing was written.
    """
    progress("load", STAGES["load"][0])
    fixed = load_series(request.fixed_paths)
    moving = load_series(request.moving_paths, request.dynamic_pet)
    reach(Step.LOADED)
    with _translated():
        registration = register(
            fixed.volume,
            moving.volume,
            network,
            profile=PROFILES[request.registration.profile],
            seed=request.registration.seed,
            progress=lambda stage, done: progress(f"register: {stage} done", _percent("register", done)),
        )
    reach(Step.REGISTERED)
    registration, reason = judge_result(fixed, moving, registration)
    if registration.verdict == "reject":
        return SeriesResult(registration, reason, (), fixed.volume, moving.volume)
    progress("write", STAGES["write"][0])
    output_request = OutputRequest(fixed, moving, registration, request.created_at, request.outputs)
    outputs = tuple(write_outputs(output_request, request.folder))
    reach(Step.WRITTEN)
    return SeriesResult(registration, reason, outputs, fixed.volume, moving.volume)


def judge_result(fixed: SeriesVolume, moving: SeriesVolume, registration: Registration) -> tuple[Registration, str]:
    """Decide whether a registration may be used, with the reason a person reads.

    The confidence decides, save where one scanner made both series: its own alignment stands when the registration
    confirms it, and a person decides when it does not (docs/geometry.md). The reason says, too, what of a series was
    registered where it holds more: the first echo, the head.
    """
    judged, reason = _judge(fixed, moving, registration)
    chosen = [f"{name}: {series.choice}" for name, series in (("MR", fixed), ("PET", moving)) if series.choice]
    return judged, "; ".join((reason, *chosen))


def _judge(fixed: SeriesVolume, moving: SeriesVolume, registration: Registration) -> tuple[Registration, str]:
    fitted = "" if registration.is_calibrated else ", which is not calibrated for this profile and network"
    reason = f"{registration.verdict} at confidence {registration.confidence:.2f}{fitted}"
    if registration.verdict == "reject":
        return registration, reason
    hybrid = judge_hybrid(fixed, moving, registration)
    if hybrid.decision == "separate":
        return registration, reason
    verdict: Literal["accept", "review"] = "accept" if hybrid.decision == "confirmed" else "review"
    return replace(hybrid.registration, verdict=verdict), hybrid.reason


def run_job(job: Job, settings: Settings, database: Database, clock: Clock) -> None:
    """Run one claimed job to its end and record it, with what is owed of it, in one transaction.

    Raises
    ------
    LeaseLostError
        If another worker claimed the job meanwhile; nothing was recorded, and the files written are the same bytes.
    DicomnodeError
        What `register_series` raises, or the database; the job is still `running`.
    """
    store, claim = Store(settings.node.storage_root), JobClaim(job.id, job.token)
    with database.read() as connection:
        pair = fetch_pair(connection, job.pair_id)
        instances = fetch_series_instances(connection, (pair.fixed_series_id, pair.moving_series_id))
        is_current = is_current_pair(connection, pair)
        fixed_paths = fetch_instance_paths(connection, store, pair.fixed_series_id)
        moving_paths = fetch_instance_paths(connection, store, pair.moving_series_id)
    if not is_current:
        with database.write() as connection:
            _record_superseded(connection, claim, clock())
        return
    progress = _recorder(database, claim, clock)
    progress("load", STAGES["load"][0])
    _check_instances(database, store, instances, clock())
    folder = store.outputs_folder(job.id)
    registration = settings.registration
    if job.profile:  # a person asked for it
        registration = RegistrationSettings.model_validate({**registration.model_dump(), "profile": job.profile})
    request = SeriesRequest(
        fixed_paths,
        moving_paths,
        folder,
        job.created_at,
        registration,
        settings.outputs,
        settings.pairing.dynamic_pet,
    )
    network = load_network(registration)
    result = register_series(request, network, progress)
    copies = _write_copies(result, settings.destinations)
    with database.write() as connection:
        _record_result(connection, claim, job.pair_id, result, copies, (settings, clock()))
    reach(Step.RECORDED, job_id=job.id)


def _record_result(
    connection: Connection,
    claim: JobClaim,
    pair_id: int,
    result: SeriesResult,
    copies: Mapping[Path, Mapping[str, str]],
    where_and_when: tuple[Settings, float],
) -> None:
    """Record a result, its outputs, and what is owed: all where the verdict needs no person, or none is waited for.

    Nothing is, where slices came while it was made: one of them may be of another patient.
    """
    settings, now = where_and_when
    pair = fetch_pair(connection, pair_id)
    lock_parts(connection, pair)
    if not is_current_pair(connection, pair):
        _record_superseded(connection, claim, now)
        return
    root = settings.node.storage_root
    state = {"accept": "done", "review": "review", "reject": "failed"}[result.registration.verdict]
    values = {"verdict": result.registration.verdict, "result": result.summary, "stage": "", "percent": 100}
    move_claimed_job(connection, claim, state, reason=result.reason, finished_at=now, **values)
    rows = [
        {**asdict(output), "path": str(output.path.relative_to(root)), "copies": dict(copies.get(output.path, {}))}
        for output in result.outputs
    ]
    output_ids = record_outputs(connection, claim.job_id, rows)
    if state == "done" or settings.outputs.review == "send":
        made = zip(output_ids, (output.kind for output in result.outputs), strict=True)
        owe_results(connection, pair_id, result.registration.verdict, made, where_and_when)
    log.info("job.finished", job_id=claim.job_id, verdict=result.registration.verdict, outputs=len(result.outputs))


def _record_superseded(connection: Connection, claim: JobClaim, now: float) -> None:
    move_claimed_job(connection, claim, "done", reason=SUPERSEDED, finished_at=now)
    log.info("job.superseded", job_id=claim.job_id)


def _check_instances(database: Database, store: Store, instances: Sequence[StoredInstance], now: float) -> None:
    """See that every file still holds what was received; record those that do not.

    Raises
    ------
    FileDamagedError
        If one holds something else.
    StorageFailedError
        If one cannot be read, which may be over the next time.
    """
    found = ((one.id, find_instance_damage(store, one.file_name, one.sha256)) for one in instances)
    damaged = {instance_id: what for instance_id, what in found if what is not None}
    if unread := [what.text for what in damaged.values() if not what.is_changed]:
        raise StorageFailedError(f"{len(unread)} of {len(instances)} files cannot be read; {unread[0]}")
    if not damaged:
        return
    with database.write() as connection:
        for instance_id, what in damaged.items():
            record_damage(connection, what.text, now, instance_id=instance_id)
    raise FileDamagedError(
        f"{len(damaged)} of {len(instances)} files are not what was received; {next(iter(damaged.values())).text}; "
        "have the series sent again, then retry the job"
    )


def _write_copies(result: SeriesResult, destinations: Sequence[DestinationSettings]) -> dict[Path, dict[str, str]]:
    """Write the compressed copies that the destinations ask for, each once, and return their SHA-256 by image."""
    written: dict[Path, dict[str, str]] = {}
    for compression in sorted({destination.compression for destination in destinations}):
        takers = [destination for destination in destinations if destination.compression == compression]
        wanted = [out for out in result.outputs if any(taker.takes(out.kind) for taker in takers)]
        for path, sha256 in write_copies([(output.kind, output.path) for output in wanted], compression).items():
            written.setdefault(path, {})[compression] = sha256
    return written


@lru_cache(maxsize=1)
def load_network(settings: RegistrationSettings) -> Network:
    """Load the network the settings ask for, once a process; raises `ConfigurationError` if it cannot be used.

    OpenCV, which smooths for it, is held to the same number of threads.
    """
    cv2.setNumThreads(settings.threads)
    with _translated():
        return Network.load(PROFILES[settings.profile].network, device=settings.device, threads=settings.threads)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what `registration` raises into the node's own errors."""
    try:
        yield
    except (ModelError, DeviceError) as error:
        raise ConfigurationError(str(error)) from error
    except RegistrationError as error:
        raise RegistrationRefusedError(str(error)) from error


def _percent(stage: str, done: float) -> float:
    start, end = STAGES[stage]
    return start + (end - start) * min(max(done, 0.0), 1.0)


def _recorder(database: Database, claim: JobClaim, clock: Clock) -> Progress:
    """Return a progress function that writes to the job's row, at most once a second within one stage."""
    last_stage, last_at = "", float("-inf")

    def record(stage: str, percent: float) -> None:
        nonlocal last_stage, last_at
        now = clock()
        if stage != last_stage or now - last_at >= PROGRESS_EVERY_S:
            record_progress(database, claim, stage[:32], round(percent))
            last_stage, last_at = stage, now

    return record
