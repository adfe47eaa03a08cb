"""Outputs made of real series, and with the headers of real PETs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK

from dicomnode.outputs.objects import make_outputs, write_outputs
from dicomnode.volumes.headers import quiet_reading
from dicomnode.volumes.series import load_series
from tests.dicomnode.outputs.known_requests import EVERY_OBJECT, PET, SMALL_MOTION, make_registration, make_request
from tests.dicomnode.series_files import Change
from tests.peers.test_objects_readers import affine_of, corners_mm, read_with_simpleitk

sitk: Any = SimpleITK  # untyped
pytestmark = pytest.mark.real_data


def test_outputs_on_a_real_sagittal_half_millimetre_t1_are_valid(
    real_series: dict[str, list[list[Path]]], tmp_path: Path, peer_program: Callable[[str], Path]
) -> None:
    (paths,) = real_series["uih_umr770_t1_sessionA"]
    request = replace(make_request(), fixed=load_series(paths), registration=make_registration(SMALL_MOTION))
    request = replace(request, settings=EVERY_OBJECT)
    files = write_outputs(request, tmp_path)
    assert [file.kind for file in files] == ["pt"] * 160 + ["rgb"] * 160 + ["multiframe", "reg", "blending"]
    for file in (files[0], files[80], files[160], files[240], *files[320:]):
        result = subprocess.run(
            [peer_program("dciodvfy"), "-new", file.path], capture_output=True, text=True, check=False
        )
        assert not [line for line in result.stderr.splitlines() if line.startswith(("Error", "Abort"))], file.path.name
    image = read_with_simpleitk([file.path for file in files if file.kind == "pt"])
    shape = request.fixed.volume.shape
    difference = corners_mm(affine_of(image), shape) - corners_mm(request.fixed.volume.affine, shape)
    assert np.abs(difference).max() < 1e-3


SERIES_KEYWORDS = ("Units", "DecayCorrection", "SeriesDate", "SeriesTime", "PatientWeight", "PatientSize")
ISOTOPE_KEYWORDS = (
    "RadionuclideTotalDose",
    "RadionuclideHalfLife",
    "RadiopharmaceuticalStartTime",
    "RadiopharmaceuticalStartDateTime",
)


def test_real_pet_headers_keep_what_an_suv_needs(shared_data: Path) -> None:
    paths = sorted((shared_data / "pt_headers_json").glob("*.json"))
    assert len(paths) >= 8
    converted = 0
    for number, path in enumerate(paths):
        words = json.loads(path.read_text())[0]
        request = make_request(moving=replace(PET, uid=f"1.2.77.{number}", change=put_words(words)))
        image = next(instance for _, instance in make_outputs(request))
        isotope = image.RadiopharmaceuticalInformationSequence[0]
        is_converted = (
            words["Units"] == "CNTS" and "ActivityConcentrationScaleFactor" in words["PhilipsPETPrivateGroup"]
        )
        converted += is_converted
        for place, keywords in ((image, SERIES_KEYWORDS), (isotope, ISOTOPE_KEYWORDS)):
            for keyword in keywords:
                if keyword in words and not (is_converted and keyword == "Units"):
                    got, wanted = place[keyword].value, words[keyword]
                    is_same = got == wanted.strip() if isinstance(wanted, str) else float(got) == wanted
                    assert is_same, f"{path.name}: {keyword}"
        factors = words["PhilipsPETPrivateGroup"]
        for keyword, element in (("SUVScaleFactor", 0x1000), ("ActivityConcentrationScaleFactor", 0x1009)):
            if keyword in factors and not is_converted:
                assert float(image[0x7053, element].value) == float(factors[keyword]), f"{path.name}: {keyword}"
    assert converted == 1


def test_a_real_pet_in_counts_has_the_suv_that_philips_gives_it(shared_data: Path) -> None:
    """The SUV of the activity we write, by the standard attributes, is that of the counts by Philips' own factor."""
    path = shared_data / "pt_headers_json" / "PHILIPS_CNTS_AND_BQML_SUV-instances.json"
    words = json.loads(path.read_text())[0]
    request = make_request(moving=replace(PET, uid="1.2.78", change=put_words(words)))
    image = next(instance for _, instance in make_outputs(request))
    assert image.Units == "BQML"
    isotope = image.RadiopharmaceuticalInformationSequence[0]
    waited_s = seconds(image.SeriesTime) - seconds(isotope.RadiopharmaceuticalStartTime)
    left_bq = float(isotope.RadionuclideTotalDose) * 0.5 ** (waited_s / float(isotope.RadionuclideHalfLife))
    suv_of_activity = 1000 * float(image.PatientWeight) / left_bq
    factors = words["PhilipsPETPrivateGroup"]
    suv_of_count = float(factors["SUVScaleFactor"])  # three digits of it
    assert suv_of_activity * float(factors["ActivityConcentrationScaleFactor"]) == pytest.approx(suv_of_count, rel=1e-3)


def seconds(time: str) -> float:
    return 3600 * int(time[:2]) + 60 * int(time[2:4]) + float(time[4:])


def put_words(words: dict[str, Any]) -> Change:
    """Put a real header's words, as these files hold them, into our slices."""

    def change(header: pydicom.Dataset, _k: int) -> None:
        isotope = header.RadiopharmaceuticalInformationSequence[0]
        with quiet_reading():
            for keyword, value in words.items():
                if keyword != "PhilipsPETPrivateGroup":
                    setattr(isotope if keyword.startswith("Radio") else header, keyword, value)
        block = header.private_block(0x7053, "Philips PET Private Group", create=True)
        for keyword, offset in (("SUVScaleFactor", 0x00), ("ActivityConcentrationScaleFactor", 0x09)):
            if keyword in words["PhilipsPETPrivateGroup"]:
                block.add_new(offset, "DS", str(words["PhilipsPETPrivateGroup"][keyword]))

    return change
