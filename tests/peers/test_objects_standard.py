"""Other people's judgement of our objects: dicom3tools, and the standard's tables as highdicom carries them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map

from dicomnode.outputs.objects import OutputFile, write_outputs
from tests.dicomnode.outputs.known_requests import MR, PET, make_request
from tests.dicomnode.series_files import CORONAL, OBLIQUE, SAGITTAL, SeriesSpec


def poor(header: pydicom.Dataset, _k: int) -> None:
    """Take away what real exporters have been seen to leave out."""
    for keyword in (
        "Units", "CountsSource", "DecayCorrection", "FrameReferenceTime", "DecayFactor", "SeriesDate", "SeriesTime",
        "RadiopharmaceuticalInformationSequence", "CollimatorType", "CorrectedImage", "Manufacturer", "StudyID",
        "PatientOrientationCodeSequence", "PatientGantryRelationshipCodeSequence", "ActualFrameDuration",
        "AcquisitionDate", "AcquisitionTime", "DoseCalibrationFactor", "PatientWeight", "PatientSize", "SeriesType",
    ):  # fmt: skip
        delattr(header, keyword)


INPUTS: dict[str, tuple[SeriesSpec, SeriesSpec]] = {
    "axial": (MR, PET),
    "coronal": (replace(MR, orientation=CORONAL, uid="1.2.3.1"), PET),
    # In-plane voxels far smaller than the slice step, as a sagittal 0.5 x 0.5 x 1 mm T1 has them.
    "sagittal anisotropic": (
        SeriesSpec(shape=(16, 170, 180), orientation=SAGITTAL, spacing_mm=(6.0, 0.5, 0.5), uid="1.2.3.2"),
        PET,
    ),
    "oblique sheared": (replace(MR, orientation=OBLIQUE, shear_mm=(0.3, 0.0, 0.2), uid="1.2.3.3"), PET),
    "poor pet": (MR, replace(PET, uid="1.2.3.4", change=poor)),
}


@pytest.fixture(scope="module", params=list(INPUTS.values()), ids=list(INPUTS))
def outputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[OutputFile]:
    fixed, moving = request.param
    return write_outputs(make_request(fixed, moving), tmp_path_factory.mktemp("outputs"))


def test_dciodvfy_finds_no_error(outputs: list[OutputFile], peer_program: Callable[[str], Path]) -> None:
    program = peer_program("dciodvfy")
    for file in outputs:
        result = subprocess.run([program, "-new", file.path], capture_output=True, text=True, check=False)
        errors = [line for line in result.stderr.splitlines() if line.startswith(("Error", "Abort"))]
        assert errors == [], file.path.name
        iod = {"pt": "PETImage", "rgb": "SCImage", "reg": "SpatialRegistration"}[file.kind]
        assert iod in result.stderr.splitlines(), f"dciodvfy did not take {file.path.name} for a {iod}"


def test_every_type_1_attribute_has_a_value_and_every_type_2_attribute_is_there(outputs: list[OutputFile]) -> None:
    for file in outputs:
        dataset = pydicom.dcmread(file.path)
        modules = get_iod_module_map()[get_sop_class_iod_map()[dataset.SOPClassUID]]
        for module in modules:
            if module["usage"] == "M":
                for attribute in get_module_attribute_map()[module["key"]]:
                    for problem in find_problems(dataset, attribute):
                        pytest.fail(f"{file.path.name}: {module['key']}: {problem}")


def find_problems(dataset: pydicom.Dataset, attribute: dict[str, object]) -> list[str]:
    """Follow an attribute's path through the sequences that are there; say what is missing or empty."""
    path, keyword, kind = list(attribute["path"]), str(attribute["keyword"]), attribute["type"]  # type: ignore[call-overload]  # JSON
    places = [dataset]
    for step in path:
        places = [item for place in places for item in place.get(step) or []]
    problems = []
    for place in places:
        if kind in {"1", "2"} and keyword not in place:
            problems.append(f"{'.'.join([*path, keyword])} (type {kind}) is missing")
        elif kind == "1" and place[keyword].is_empty:
            problems.append(f"{'.'.join([*path, keyword])} (type 1) is empty")
    return problems


def test_the_table_check_sees_what_is_missing(outputs: list[OutputFile]) -> None:
    dataset = pydicom.dcmread(outputs[-1].path)
    del dataset.RegistrationSequence[1].MatrixRegistrationSequence[0].MatrixSequence
    dataset.ContentLabel = None
    table = get_module_attribute_map()["spatial-registration"]
    assert sorted(problem for attribute in table for problem in find_problems(dataset, attribute)) == [
        "ContentLabel (type 1) is empty",
        "RegistrationSequence.MatrixRegistrationSequence.MatrixSequence (type 1) is missing",
    ]
