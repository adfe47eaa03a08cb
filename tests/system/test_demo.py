"""`dicomnode demo` as a person runs it: the stages, the error, the files, the picture.

Flow: pytest > dicomnode demo > [test_demo]
Never: the picture's beauty; a person looks at docs/demo.png.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from tests.builders import CommandResult, run_command
from tests.conftest import REPOSITORY

MOST_PICTURE_BYTES = 300_000  # it goes into the README
STAGES = ("patient", "started", "sent", "complete", "paired", "running", "accept", "delivered", "error", "done")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def result(folder: Path) -> CommandResult:
    leftover = folder / "demo" / "PT" / "9999.dcm"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"of an earlier demonstration")
    return run_command("demo", cwd=folder)


def test_it_ends_well_and_shows_every_stage(result: CommandResult) -> None:
    assert result.returncode == 0, result.stdout + result.stderr
    told = [line.split()[2] for line in result.stdout.splitlines() if re.match(r" *\d+\.\d s ", line)]
    assert [stage for stage in dict.fromkeys(told) if stage in STAGES] == list(STAGES)


def test_the_error_against_the_truth_is_under_2_mm(result: CommandResult) -> None:
    found = re.search(r"error +(\d+\.\d+) mm in the mean", result.stdout)
    assert found is not None, result.stdout
    assert 0 < float(found[1]) < 2


def test_the_three_series_are_there_as_the_archive_received_them(result: CommandResult, folder: Path) -> None:
    wanted = {"REG": ("REG", 1), "PT": ("PT", 176), "fused": ("OT", 176)}
    for name, (modality, count) in wanted.items():
        slices = [pydicom.dcmread(path) for path in sorted((folder / "demo" / name).iterdir())]
        assert len(slices) == count, result.stdout
        assert {one.Modality for one in slices} == {modality}
        assert len({one.SeriesInstanceUID for one in slices}) == 1


def test_the_picture_is_small_and_shows_colour(result: CommandResult, folder: Path) -> None:
    path = folder / "demo" / "demo.png"
    assert path.is_file(), result.stdout
    assert path.stat().st_size < MOST_PICTURE_BYTES
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.shape[1] > 1000
    assert np.ptp(picture.astype(int), axis=2).max() > 100, "no colour anywhere"


def test_nothing_is_left_behind_but_the_results(result: CommandResult, folder: Path) -> None:
    assert result.returncode == 0
    assert {path.name for path in folder.iterdir()} == {"demo"}
    assert {path.name for path in (folder / "demo").iterdir()} == {"MR", "PET", "REG", "PT", "fused", "demo.png"}


def test_what_it_wrote_is_registered_by_the_command_that_readme_shows(result: CommandResult, folder: Path) -> None:
    assert result.returncode == 0
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    program, *arguments = shlex.split(next(line for line in readme.splitlines() if "$ dicomnode register " in line))[1:]
    assert program == "dicomnode"
    registered = run_command(*arguments, cwd=folder)
    assert registered.returncode == 0, registered.stderr
    assert registered.json["verdict"] == "accept"
    assert (folder / "fused").is_dir()
