"""Small MR and PET series as files, for the tests of `volumes/` and `outputs/`.

Flow: tests > [series_files] > files below a temporary folder
Never: a real patient; code of `volumes/` or `outputs/`, which it is there to test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
# Rows turned by 20 degrees about z, columns then tilted by 15 degrees.
OBLIQUE = (0.93969262, 0.34202014, 0.0, -0.33036609, 0.90767337, 0.25881905)

Change = Callable[[pydicom.Dataset, int], None]


def no_change(_header: pydicom.Dataset, _k: int) -> None:
    """Leave a slice as it is made."""


@dataclass(frozen=True)
class SeriesSpec:
    """A series to write: geometry, and a last word on each slice."""

    modality: str = "MR"
    shape: tuple[int, int, int] = (12, 32, 30)  # slices, rows, columns
    orientation: tuple[float, ...] = AXIAL
    spacing_mm: tuple[float, float, float] = (8.0, 3.0, 3.5)  # slices, rows, columns
    origin_mm: tuple[float, float, float] = (-50.0, -45.0, -40.0)
    shear_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)  # added to each slice's step
    uid: str = "1.2.826.0.1.3680043.8.498.1"
    change: Change = field(default=no_change)

    def affine(self) -> NDArray[np.float64]:
        """Return the affine of the slices in the order written, (k, j, i) to LPS mm."""
        row, column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        affine = np.eye(4)
        affine[:3, 0] = np.cross(row, column) * self.spacing_mm[0] + self.shear_mm
        affine[:3, 1] = column * self.spacing_mm[1]
        affine[:3, 2] = row * self.spacing_mm[2]
        affine[:3, 3] = self.origin_mm
        return affine


def make_series(spec: SeriesSpec) -> list[pydicom.Dataset]:
    """Make the slices in the order of k, each with file meta; stored values as `stored_values` says."""
    affine = spec.affine()
    slices = []
    for k in range(spec.shape[0]):
        header = _make_mr(spec, k) if spec.modality == "MR" else _make_pet(spec, k)
        header.ImagePositionPatient = [f"{value:.6f}" for value in (affine @ (k, 0, 0, 1))[:3]]
        header.ImageOrientationPatient = [f"{value:.8f}" for value in spec.orientation]
        header.PixelSpacing = list(spec.spacing_mm[1:])
        header.SliceThickness = spec.spacing_mm[0]
        header.PixelData = stored_values(spec.shape, k).astype("<i2").tobytes()
        spec.change(header, k)
        _add_file_meta(header)
        slices.append(header)
    return slices


def write_series(folder: Path, spec: SeriesSpec) -> list[Path]:
    """Write the slices as files in the order of k."""
    return write_files(folder, make_series(spec))


def write_files(folder: Path, slices: Sequence[pydicom.Dataset]) -> list[Path]:
    """Write data sets as Part-10 files, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, header in enumerate(slices):
        path = folder / f"{number:04d}.dcm"
        header.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def stored_values(shape: tuple[int, int, int], k: int) -> NDArray[np.int16]:
    """Return slice k's stored values: smooth, different along every axis, 0 to 3200."""
    _, rows, columns = shape
    j, i = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    bump = np.exp(-(((j - 0.6 * rows) / (0.25 * rows)) ** 2) - ((i - 0.4 * columns) / (0.3 * columns)) ** 2)
    values: NDArray[np.int16] = np.rint(3000 * bump * (k + 1) / shape[0] + 100 * i / columns).astype(np.int16)
    return values


def _make_common(spec: SeriesSpec, k: int, sop_class_uid: UID) -> pydicom.Dataset:
    header = pydicom.Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    header.SOPClassUID = sop_class_uid
    header.SOPInstanceUID = f"{spec.uid}.3.{k + 1}"
    header.StudyInstanceUID = f"{spec.uid}.1"
    header.SeriesInstanceUID = f"{spec.uid}.2"
    header.FrameOfReferenceUID = f"{spec.uid}.4"
    header.PositionReferenceIndicator = ""
    header.Modality = spec.modality
    header.Manufacturer = "Builder"
    header.PatientName = "Müller^Käthe"
    header.PatientID = "T-1"
    header.PatientBirthDate = "19500102"
    header.PatientSex = "F"
    header.StudyDate = "20250304"
    header.StudyTime = "101112"
    header.StudyID = "7"
    header.AccessionNumber = "A7"
    header.ReferringPhysicianName = ""
    header.SeriesNumber = 3
    header.InstanceNumber = spec.shape[0] - k  # not the order of k
    header.Rows, header.Columns = spec.shape[1:]
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = 1
    return header


def _make_mr(spec: SeriesSpec, k: int) -> pydicom.Dataset:
    header = _make_common(spec, k, MRImageStorage)
    header.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    header.SeriesDescription = "T1 äxial"
    header.EchoTime = 3
    return header


def _make_pet(spec: SeriesSpec, k: int) -> pydicom.Dataset:
    header = _make_common(spec, k, PositronEmissionTomographyImageStorage)
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    header.SeriesDescription = "FDG brain"
    header.PatientWeight = "61.5"
    header.PatientSize = "1.66"
    header.SeriesDate = "20250301"
    header.SeriesTime = "090000"
    header.AcquisitionDate = "20250301"
    header.AcquisitionTime = f"{9 + k // 60:02d}{k % 60:02d}00"
    header.Units = "BQML"
    header.CountsSource = "EMISSION"
    header.CorrectedImage = ["DECY", "ATTN", "SCAT"]
    header.DecayCorrection = "START"
    header.CollimatorType = "NONE"
    header.SeriesType = ["STATIC", "IMAGE"]
    header.NumberOfSlices = spec.shape[0]
    header.RescaleIntercept = 0
    header.RescaleSlope = f"{0.5 + 0.01 * k:.4f}"  # differs by slice, as scanners write it
    header.FrameReferenceTime = 600000 + k
    header.ActualFrameDuration = 1200000
    header.DecayFactor = "1.05"
    header.DoseCalibrationFactor = "1"
    isotope = pydicom.Dataset()
    isotope.RadiopharmaceuticalStartTime = "080000"
    isotope.RadionuclideTotalDose = "250000000"
    isotope.RadionuclideHalfLife = "6586.2"
    isotope.RadionuclideCodeSequence = [_code("C-111A1", "SRT", "^18^Fluorine")]
    header.RadiopharmaceuticalInformationSequence = [isotope]
    header.PatientOrientationCodeSequence = []
    header.PatientGantryRelationshipCodeSequence = []
    return header


def _code(value: str, scheme: str, meaning: str) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _add_file_meta(header: pydicom.Dataset) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.get("SOPClassUID", MRImageStorage)
    meta.MediaStorageSOPInstanceUID = header.get("SOPInstanceUID", "1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta = meta
