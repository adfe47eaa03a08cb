"""DICOM series of a scan: MR Image Storage and PET Image Storage slices with the headers a scanner writes.

Flow: run > [patient] > scans
Never: a real person; a random UID (every UID derives from the visit's key, so the same patient comes out twice).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from dicomnode.demo.scans import Scan

UID_NAMESPACE = UUID("6f1a4c0e-6a0b-5d0e-9c5f-2f6c1d1f7b3a")
IMPLEMENTATION_UID = UID("2.25." + str(uuid5(UID_NAMESPACE, "implementation").int))
FDG_HALF_LIFE_S = 6586.2
INJECTION_BEFORE_SCAN = "20260302082500.00"
SIGNED_MAX = 32767
MR_WINDOW = (450, 900)  # centre, width


@dataclass(frozen=True)
class Person:
    """Who is in the headers."""

    patient_id: str = "DEMO-0001"
    issuer: str = "DICOMNODE DEMO"
    name: str = "Phantom^Demo"
    birth_date: str = "19600229"
    sex: str = "F"


@dataclass(frozen=True)
class Visit:
    """One examination of a person: what the headers of its one series say.

    `key` seeds every UID: equal keys make equal studies, series and frames of reference.
    """

    person: Person
    key: str
    date: str = "20260302"
    time: str = "093000"
    description: str = ""
    transfer_syntax_uid: UID = ExplicitVRLittleEndian

    def uid(self, what: str) -> UID:
        """Return the UID of one thing of this visit, such as `study` or `series`."""
        return UID("2.25." + str(uuid5(UID_NAMESPACE, f"{self.key}/{what}").int))


def write_mr(folder: Path, scan: Scan, visit: Visit) -> list[Path]:
    """Write an MR series, one file a slice, and return the files in the order of k.

    Parameters
    ----------
    folder : Path
        Made when missing.
    scan : Scan
        Its affine must be orthogonal.
    visit : Visit
    """
    pixels: NDArray[np.uint16] = np.clip(np.rint(scan.array), 0, SIGNED_MAX).astype(np.uint16)

    def fill(slice_: Dataset, k: int) -> bytes:
        _fill_mr(slice_, visit, float(np.linalg.norm(scan.affine[:3, 0])))
        plane: NDArray[np.uint16] = pixels[k]
        return plane.tobytes()

    return _write_slices(folder, scan, visit, fill)


def write_pet(folder: Path, scan: Scan, visit: Visit) -> list[Path]:
    """Write a PET series in Bq/ml, one file and one rescale slope a slice; return the files in the order of k.

    Parameters
    ----------
    folder : Path
        Made when missing.
    scan : Scan
        Its affine must be orthogonal; Bq/ml.
    visit : Visit
    """

    def fill(slice_: Dataset, k: int) -> bytes:
        _fill_pet(slice_, visit, k, len(scan.array))
        # The value a reader will see is the text's, so the text comes first.
        slope = format_number_as_ds(max(float(scan.array[k].max()), 1.0) / SIGNED_MAX)
        slice_.RescaleSlope = slope
        pixels: NDArray[np.int16] = np.clip(np.rint(scan.array[k] / float(slope)), 0, SIGNED_MAX).astype(np.int16)
        return pixels.tobytes()

    return _write_slices(folder, scan, visit, fill)


def _write_slices(folder: Path, scan: Scan, visit: Visit, fill: Callable[[Dataset, int], bytes]) -> list[Path]:
    """Write one file for each k; `fill` adds what the modality needs and returns the slice's pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(len(scan.array)):
        slice_ = _common_header(visit)
        slice_.InstanceNumber = k + 1
        slice_.SOPInstanceUID = visit.uid(f"instance/{k + 1}")
        _fill_plane(slice_, scan.affine, k, scan.array.shape[1:])
        slice_.PixelData = fill(slice_, k)
        slice_.file_meta = _file_meta(slice_, visit)
        path = folder / f"{slice_.Modality}{k + 1:04d}.dcm"
        slice_.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _common_header(visit: Visit) -> Dataset:
    """Patient, General Study, General Equipment and what all images share (PS3.3 C.7.1 to C.7.6)."""
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 192"
    d.PatientName = visit.person.name
    d.PatientID = visit.person.patient_id
    if visit.person.issuer:
        d.IssuerOfPatientID = visit.person.issuer
    d.PatientBirthDate = visit.person.birth_date
    d.PatientSex = visit.person.sex
    d.PatientWeight = "68"
    d.PatientSize = "1.7"
    d.StudyInstanceUID = visit.uid("study")
    d.SeriesInstanceUID = visit.uid("series")
    d.FrameOfReferenceUID = visit.uid("frame")
    d.PositionReferenceIndicator = ""
    for name in ("Study", "Series", "Acquisition", "Content"):
        setattr(d, f"{name}Date", visit.date)
        setattr(d, f"{name}Time", visit.time)
    d.StudyDescription = "Synthetic head"
    d.StudyID = "1"
    d.AccessionNumber = ""
    d.ReferringPhysicianName = ""
    d.SeriesDescription = visit.description
    d.SeriesNumber = 2
    d.AcquisitionNumber = 1
    d.Manufacturer = "dicomnode"
    d.ManufacturerModelName = "synthetic patient"
    d.InstitutionName = "dicomnode demo"
    d.StationName = "DEMO"
    d.SoftwareVersions = "1"
    d.DeviceSerialNumber = "0"
    d.BodyPartExamined = "BRAIN"
    d.LossyImageCompression = "00"
    d.BurnedInAnnotation = "NO"
    return d


def _fill_plane(d: Dataset, affine: NDArray[np.float64], k: int, shape: tuple[int, ...]) -> None:
    """Image Plane and Image Pixel (PS3.3 C.7.6.2, C.7.6.3) of slice k: the affine is in the order k, j, i."""
    row_step, column_step = affine[:3, 1], affine[:3, 2]
    normal_step = affine[:3, 0]
    origin = affine @ [k, 0, 0, 1]
    along_row = column_step / np.linalg.norm(column_step)
    along_column = row_step / np.linalg.norm(row_step)
    d.ImagePositionPatient = [format_number_as_ds(float(v)) for v in origin[:3]]
    d.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in (*along_row, *along_column)]
    # PixelSpacing is (between rows, between columns).
    d.PixelSpacing = [format_number_as_ds(float(np.linalg.norm(step))) for step in (row_step, column_step)]
    d.SliceThickness = format_number_as_ds(float(np.linalg.norm(normal_step)))
    normal = np.cross(along_row, along_column)
    d.SliceLocation = format_number_as_ds(float(origin[:3] @ normal))
    d.Rows, d.Columns = shape
    d.SamplesPerPixel = 1
    d.PhotometricInterpretation = "MONOCHROME2"
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit = 15


def _fill_mr(d: Dataset, visit: Visit, step_mm: float) -> None:
    """MR Image (PS3.3 C.8.3.1): an inversion-prepared 3D gradient echo."""
    d.SOPClassUID = MRImageStorage
    d.Modality = "MR"
    d.PatientPosition = "HFS"  # a PET says the same by codes
    d.SeriesDescription = visit.description or "T1 MPRAGE SAG 3D"
    d.ProtocolName = d.SeriesDescription
    d.ImageType = ["ORIGINAL", "PRIMARY", "M", "NORM"]
    d.PixelRepresentation = 0
    d.ScanningSequence = ["GR", "IR"]
    d.SequenceVariant = ["SK", "SP", "MP"]
    d.ScanOptions = ""
    d.MRAcquisitionType = "3D"
    d.SequenceName = "*tfl3d1"
    d.RepetitionTime = "2300"
    d.EchoTime = "2.98"
    d.InversionTime = "900"
    d.FlipAngle = "9"
    d.EchoTrainLength = 1
    d.NumberOfAverages = "1"
    d.ImagedNucleus = "1H"
    d.ImagingFrequency = "123.25"
    d.MagneticFieldStrength = "3"
    d.PixelBandwidth = "240"
    d.SpacingBetweenSlices = format_number_as_ds(step_mm)
    d.WindowCenter, d.WindowWidth = MR_WINDOW


def _fill_pet(d: Dataset, visit: Visit, k: int, count: int) -> None:
    """PET Series, PET Isotope, NM/PET Patient Orientation and PET Image (PS3.3 C.8.9)."""
    d.SOPClassUID = PositronEmissionTomographyImageStorage
    d.Modality = "PT"
    d.SeriesDescription = visit.description or "FDG BRAIN AC"
    d.ImageType = ["ORIGINAL", "PRIMARY"]
    d.PixelRepresentation = 1
    d.Units = "BQML"
    d.CountsSource = "EMISSION"
    d.SeriesType = ["STATIC", "IMAGE"]
    d.NumberOfSlices = count
    d.CorrectedImage = ["NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN"]
    d.RandomsCorrectionMethod = "DLYD"
    d.AttenuationCorrectionMethod = "CT-derived mu map"
    d.ScatterCorrectionMethod = "Model-based"
    d.ReconstructionMethod = "OSEM 4i21s"
    d.ConvolutionKernel = "XYZ Gauss3.00"
    d.DecayCorrection = "START"
    d.CollimatorType = "NONE"
    d.FrameReferenceTime = "0"
    d.ActualFrameDuration = "600000"
    d.DecayFactor = "1"
    d.DoseCalibrationFactor = "1"
    d.ImageIndex = k + 1
    d.RescaleIntercept = "0"
    d.RadiopharmaceuticalInformationSequence = Sequence([_fdg()])
    d.PatientOrientationCodeSequence = Sequence([_code("102538003", "SCT", "recumbent")])
    d.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence = Sequence(
        [_code("40199007", "SCT", "supine")]
    )
    d.PatientGantryRelationshipCodeSequence = Sequence([_code("102540008", "SCT", "headfirst")])


def _fdg() -> Dataset:
    """Radiopharmaceutical Information item: the codes of PS3.16 CID 4020 and CID 4021."""
    d = Dataset()
    d.Radiopharmaceutical = "Fluorodeoxyglucose"
    d.RadiopharmaceuticalStartTime = INJECTION_BEFORE_SCAN[8:]
    d.RadiopharmaceuticalStartDateTime = INJECTION_BEFORE_SCAN
    d.RadionuclideTotalDose = "185000000"
    d.RadionuclideHalfLife = str(FDG_HALF_LIFE_S)
    d.RadionuclidePositronFraction = "0.967"
    d.RadionuclideCodeSequence = Sequence([_code("77004003", "SCT", "^18^Fluorine")])
    d.RadiopharmaceuticalCodeSequence = Sequence([_code("35321007", "SCT", "Fluorodeoxyglucose F^18^")])
    return d


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    d = Dataset()
    d.CodeValue = value
    d.CodingSchemeDesignator = scheme
    d.CodeMeaning = meaning
    return d


def _file_meta(d: Dataset, visit: Visit) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = d.SOPClassUID
    meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    meta.TransferSyntaxUID = visit.transfer_syntax_uid
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.ImplementationVersionName = "DICOMNODE_DEMO"
    return meta
