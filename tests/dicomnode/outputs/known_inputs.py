"""Inputs whose outputs other programs judge: oriented in every way, with a poor PET, in every study that can be chosen.

Flow: tests/peers > [known_inputs] > known_requests, series_files
Never: a look at an output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pydicom

from dicomnode.outputs.request import OutputRequest
from dicomnode.settings import OutputSettings
from dicomnode.volumes.series import load_series
from registration.confidence import Verdict
from tests.dicomnode.dynamic_files import DynamicSpec, make_dynamic
from tests.dicomnode.enhanced_files import make_enhanced_series
from tests.dicomnode.outputs.known_requests import (
    EVERY_OBJECT,
    MR,
    PET,
    SMALL_MOTION,
    make_mean_request,
    make_registration,
    make_request,
)
from tests.dicomnode.series_files import CORONAL, OBLIQUE, SAGITTAL, SeriesSpec, make_series, write_files, write_series


@dataclass(frozen=True)
class Input:
    """Two series and what is asked for of them."""

    fixed: SeriesSpec = MR
    moving: SeriesSpec = PET
    settings: OutputSettings = EVERY_OBJECT
    verdict: Verdict = "accept"
    is_enhanced: bool = False  # one multi-frame object a series
    dynamic: DynamicSpec | None = None  # of whose frames the PET is the mean

    def write(self, folder: Path) -> list[Path]:
        """Write both series below a folder and return their files."""
        if self.is_enhanced:
            objects = [make_enhanced_series(spec) for spec in (self.fixed, self.moving)]
            return [*write_files(folder / "mr", objects[:1]), *write_files(folder / "pet", objects[1:])]
        pet = [header for slices in make_dynamic(self.dynamic) for header in slices] if self.dynamic else None
        moving = make_series(self.moving) if pet is None else pet
        return [*write_series(folder / "mr", self.fixed), *write_files(folder / "pet", moving)]

    def request(self) -> OutputRequest:
        """Return the request for all kinds of objects."""
        request = make_request(self.fixed, self.moving, settings=self.settings)
        if self.is_enhanced:
            with TemporaryDirectory() as folder:
                mr, pet = self.write(Path(folder))
                request = replace(request, fixed=load_series([mr]), moving=load_series([pet]))
        if self.dynamic:
            request = make_mean_request(self.dynamic, self.settings, self.fixed)
        return replace(request, registration=make_registration(SMALL_MOTION, self.verdict))


def in_utf8(header: pydicom.Dataset, _k: int) -> None:
    """Write text as the outputs have it, for dcentvfy compares bytes; and weigh the patient of the MR too."""
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientWeight, header.PatientSize = "61.5", "1.66"


def poor(header: pydicom.Dataset, k: int) -> None:
    """Take away what real exporters have been seen to leave out."""
    in_utf8(header, k)
    for keyword in (
        "Units", "CountsSource", "DecayCorrection", "FrameReferenceTime", "DecayFactor", "SeriesDate", "SeriesTime",
        "RadiopharmaceuticalInformationSequence", "CollimatorType", "CorrectedImage", "Manufacturer", "StudyID",
        "PatientOrientationCodeSequence", "PatientGantryRelationshipCodeSequence", "ActualFrameDuration",
        "AcquisitionDate", "AcquisitionTime", "DoseCalibrationFactor", "PatientWeight", "PatientSize", "SeriesType",
    ):  # fmt: skip
        delattr(header, keyword)


def counts(header: pydicom.Dataset, k: int) -> None:
    """Count, and say how many Bq/ml a count is, as Philips does."""
    in_utf8(header, k)
    header.Units = "CNTS"
    block = header.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0.000551")
    block.add_new(0x09, "DS", "1.602563")


AXIAL_MR = replace(MR, uid="1.2.3.8", change=in_utf8)
CORONAL_MR = replace(AXIAL_MR, orientation=CORONAL, origin_mm=(-47.0, -39.0, 51.0), uid="1.2.3.1")
# In-plane voxels far smaller than the slice step, as a sagittal 0.5 x 0.5 x 1 mm T1 has them.
SAGITTAL_MR = SeriesSpec(
    shape=(16, 170, 180),
    orientation=SAGITTAL,
    spacing_mm=(6.0, 0.5, 0.5),
    origin_mm=(40.0, -40.0, 45.0),
    uid="1.2.3.2",
    change=in_utf8,
)
OBLIQUE_MR = replace(AXIAL_MR, orientation=OBLIQUE, uid="1.2.3.3")
AXIAL_PET = replace(PET, uid="1.2.3.9", change=in_utf8)

DYNAMIC_PET = DynamicSpec(series=replace(AXIAL_PET, uid="1.2.3.22"))

INPUTS: dict[str, Input] = {
    "axial": Input(AXIAL_MR, AXIAL_PET),
    "coronal": Input(CORONAL_MR, AXIAL_PET),
    "sagittal half millimetre": Input(SAGITTAL_MR, AXIAL_PET),
    "oblique": Input(OBLIQUE_MR, AXIAL_PET),
    "oblique sheared": Input(replace(OBLIQUE_MR, shear_mm=(0.3, 0.0, 0.2), uid="1.2.3.5"), AXIAL_PET),
    "poor PET": Input(AXIAL_MR, replace(PET, uid="1.2.3.4", change=poor)),
    "PET in counts": Input(AXIAL_MR, replace(PET, uid="1.2.3.6", change=counts)),
    "the PET's study": Input(AXIAL_MR, AXIAL_PET, EVERY_OBJECT.model_copy(update={"study": "pet"})),
    "a study of their own": Input(AXIAL_MR, AXIAL_PET, EVERY_OBJECT.model_copy(update={"study": "new"})),
    "Enhanced": Input(replace(OBLIQUE_MR, uid="1.2.3.20"), replace(AXIAL_PET, uid="1.2.3.21"), is_enhanced=True),
    "mean of a dynamic PET": Input(AXIAL_MR, dynamic=DYNAMIC_PET),
    "not verified": Input(AXIAL_MR, AXIAL_PET, EVERY_OBJECT.model_copy(update={"review": "send"}), "review"),
}
