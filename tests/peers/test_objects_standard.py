"""Other people's judgement of our objects: dicom3tools, and the standard's tables as highdicom carries them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map

from dicomnode.outputs.compression import find_copy_path, write_copies
from dicomnode.outputs.objects import OutputFile, write_outputs
from tests.dicomnode.outputs.known_inputs import INPUTS, Input

IODS = {
    "pt": "PETImage",
    "rgb": "SCImage",
    "multiframe": "MultiframeTrueColorSCImage",
    "reg": "SpatialRegistration",
    "blending": "BlendingSoftcopyPresentationState",
}


@dataclass(frozen=True)
class Case:
    """Outputs on disk, and the files they were made of."""

    outputs: list[OutputFile]
    sources: list[Path]
    has_weight: bool  # of the patient, in the PET


@pytest.fixture(scope="module", params=list(INPUTS.values()), ids=list(INPUTS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    asked: Input = request.param
    folder = tmp_path_factory.mktemp("case")
    sources, made = asked.write(folder), asked.request()
    return Case(write_outputs(made, folder / "outputs"), sources, "PatientWeight" in made.moving.headers[0])


def run(command: list[str | Path]) -> list[str]:
    done = subprocess.run(command, capture_output=True, check=False)
    return (done.stdout + done.stderr).decode("utf-8", errors="replace").splitlines()


def test_dciodvfy_finds_no_error(case: Case, peer_program: Callable[[str], Path]) -> None:
    assert {file.kind for file in case.outputs} == set(IODS)
    write_copies([(file.kind, file.path) for file in case.outputs], "jpeg-ls")
    write_copies([(file.kind, file.path) for file in case.outputs], "jpeg-2000")
    copies = 0
    for file in case.outputs:
        forms = [file.path, find_copy_path(file.path, "jpeg-ls"), find_copy_path(file.path, "jpeg-2000")]
        for path in filter(Path.is_file, forms):
            said = run([peer_program("dciodvfy"), "-new", path])
            assert [line for line in said if line.startswith(("Error", "Abort"))] == [], path.name
            assert IODS[file.kind] in said, f"dciodvfy did not take {path.name} for a {IODS[file.kind]}"
            copies += path != file.path
    slices = sum(file.kind == "pt" for file in case.outputs)
    assert copies == 3 * slices + 1  # PT by both, the colours by JPEG-LS


def test_dcentvfy_finds_outputs_and_inputs_in_one_patient_and_study(
    case: Case, peer_program: Callable[[str], Path]
) -> None:
    said = run([peer_program("dcentvfy"), *case.sources, *(file.path for file in case.outputs)])
    # Where the PET does not weigh the patient, its own PT does not either, whatever the MR says.
    assert [line for line in said if not re.search(r"^Warning - .* Element=<Patient(Weight|Size)>", line)] == []
    assert said == [] or not case.has_weight


def test_dcentvfy_sees_what_differs(case: Case, tmp_path: Path, peer_program: Callable[[str], Path]) -> None:
    changed = pydicom.dcmread(case.outputs[0].path)
    changed.PatientBirthDate = "19991231"
    changed.save_as(tmp_path / "changed.dcm")
    assert any(
        "PatientBirthDate" in line for line in run([peer_program("dcentvfy"), *case.sources, tmp_path / "changed.dcm"])
    )


def test_every_type_1_attribute_has_a_value_and_every_type_2_attribute_is_there(case: Case) -> None:
    problems = []
    for file in case.outputs:
        dataset = pydicom.dcmread(file.path)
        modules = get_iod_module_map()[get_sop_class_iod_map()[dataset.SOPClassUID]]
        for key in (module["key"] for module in modules if module["usage"] == "M"):
            for attribute in get_module_attribute_map()[key]:
                problems += [f"{file.path.name}: {key}: {found}" for found in find_problems(dataset, attribute)]
    assert problems == []


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


def test_the_table_check_sees_what_is_missing(case: Case) -> None:
    dataset = pydicom.dcmread(next(file.path for file in case.outputs if file.kind == "reg"))
    del dataset.RegistrationSequence[1].MatrixRegistrationSequence[0].MatrixSequence
    dataset.ContentLabel = None
    table = get_module_attribute_map()["spatial-registration"]
    assert sorted(problem for attribute in table for problem in find_problems(dataset, attribute)) == [
        "ContentLabel (type 1) is empty",
        "RegistrationSequence.MatrixRegistrationSequence.MatrixSequence (type 1) is missing",
    ]
