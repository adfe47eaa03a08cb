"""dciodvfy and SimpleITK on the synthetic patient: others read in it what we meant.

Flow: pytest > [test_synthetic_patient] > demo
Never: our own reader.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK

from tests.builders import Patient, make_patient
from tests.peers_programs import find_dciodvfy_errors

itk: Any = SimpleITK  # it has no types


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    return make_patient(tmp_path_factory.mktemp("patient"), seed=1)


def test_dciodvfy_finds_no_error(patient: Patient) -> None:
    for path in (patient.mr_files[0], patient.pet_files[10]):
        assert find_dciodvfy_errors(path) == []


def test_simpleitk_reads_the_same_voxels_in_the_same_places(patient: Patient) -> None:
    for folder, scan in ((patient.mr_folder, patient.mr), (patient.pet_folder, patient.pet)):
        reader = itk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        image = reader.Execute()
        array = itk.GetArrayFromImage(image)
        corner = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
        # GDCM may sort the slices the other way round.
        if np.linalg.norm(corner - scan.affine[:3, 3]) > 1:
            array = array[::-1]
            corner = np.array(image.TransformIndexToPhysicalPoint((0, 0, len(array) - 1)))
        assert corner == pytest.approx(scan.affine[:3, 3], abs=1e-3)
        assert array == pytest.approx(scan.array, abs=0.6)
