"""`dicomnode register`: one PET laid on one MR from two folders, without a network or a database.

Flow: cli > [register] > jobs/pipeline, outputs/report
Never: another result than the node's own for the same files; a word on standard output that is not the result.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dicomnode.cli.output import write_json
from dicomnode.errors import UsageError
from dicomnode.jobs.pipeline import SeriesRequest, SeriesResult, load_network, register_series
from dicomnode.outputs.report import REPORT, write_report
from dicomnode.outputs.report_words import describe_confidence
from dicomnode.settings_file import load_defaults
from dicomnode.volumes.headers import quiet_reading, read_instance, read_word
from dicomnode.volumes.series import find_series

EXIT_CODES: Mapping[str, int] = {"accept": 0, "review": 3, "reject": 3}


def register(arguments: argparse.Namespace) -> int:
    """Register the series below two folders, write the results and a picture to a third, and say what came of it."""
    settings = load_defaults()
    request = SeriesRequest(
        fixed_paths=_find_one_series(arguments.fixed, "--fixed"),
        moving_paths=_find_one_series(arguments.moving, "--moving"),
        folder=_make_folder(arguments.output),
        created_at=time.time(),
        registration=settings.registration,
        outputs=settings.outputs,
        dynamic_pet=settings.pairing.dynamic_pet,
    )
    _warn_of_two_patients(request)
    with _show_progress() as progress:
        result = register_series(request, load_network(settings.registration), progress)
        progress("report", 100.0)
        report = request.folder / REPORT
        write_report(
            report,
            result.fixed,
            result.moving,
            result.registration,
            reason=result.reason,
            opacity=settings.outputs.opacity,
            colour_map=settings.outputs.colour_map,
        )
    sys.stderr.write(f"dicomnode: the report is {report}\n")
    _warn_of_other_files(arguments.output, result)
    outputs = [{**vars(output), "path": str(output.path)} for output in result.outputs]
    if arguments.json:
        write_json({**result.summary, "outputs": outputs})
    else:
        _write_summary(result, report)
    return EXIT_CODES[result.registration.verdict]


def _find_one_series(folder: Path, flag: str) -> list[Path]:
    if not (os.access(folder, os.R_OK | os.X_OK) and folder.is_dir()):
        raise UsageError(f"{flag} {folder}: no such folder, or this user may not read it")
    series = find_series(folder)
    if len(series) != 1:
        found = ", ".join(f"{uid} ({len(paths)} files)" for uid, paths in series.items()) or "none"
        raise UsageError(f"{flag} {folder}: found {len(series)} DICOM series, needed 1: {found}")
    return next(iter(series.values()))


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: cannot be made: {error.strerror}") from error
    return folder


@contextmanager
def _show_progress() -> Iterator[Callable[[str, float], None]]:
    """Give a progress function: a bar on a terminal, else a line for each stage; both on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        shown: set[str] = set()

        def say(stage: str, percent: float) -> None:
            if stage not in shown:
                shown.add(stage)
                sys.stderr.write(f"{percent:3.0f} % {stage}\n")

        yield say
        return
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("load", total=100.0)
        yield lambda stage, percent: bar.update(task, description=stage, completed=percent)


def _warn_of_two_patients(request: SeriesRequest) -> None:
    """Say so when the series carry two PatientIDs: nobody has paired them here but who typed the folders."""
    with quiet_reading():
        firsts = [read_instance(paths[0]).header for paths in (request.fixed_paths, request.moving_paths)]
        patient_ids = {read_word(header, "PatientID") for header in firsts}
    if len(patient_ids) > 1:
        sys.stderr.write("dicomnode: PatientID differs between the MR and the PET; the results carry the MR's\n")


def _warn_of_other_files(folder: Path, result: SeriesResult) -> None:
    """Say so when the folder also holds what is not of this run: it may be of another patient."""
    written = {output.path.resolve() for output in result.outputs}
    others = [path for path in folder.glob("*.dcm") if path.resolve() not in written]
    if others:
        sys.stderr.write(f"dicomnode: {folder} also holds {len(others)} files of an earlier run\n")


def _write_summary(result: SeriesResult, report: Path) -> None:
    registration = result.registration
    facts: dict[str, Any] = {
        "verdict": registration.verdict,
        "confidence": f"{registration.confidence:.2f} {describe_confidence(registration)}",
        "rotation": f"{registration.fixed_from_moving.angle_deg:.1f} degrees",
        "device": registration.device,
        "seconds": f"{sum(registration.timings_s.values()):.1f}",
        "outputs": f"{len(result.outputs)} instances in {report.parent}" if result.outputs else "none",
        "report": report,
    }
    for name, value in facts.items():
        sys.stdout.write(f"{name:<12}{value}\n")
    sys.stdout.write("fixed_from_moving, LPS mm:\n")
    for row in registration.fixed_from_moving.matrix:
        sys.stdout.write(" ".join(f"{value:12.6f}" for value in row) + "\n")
