"""Files of one series become a volume, or are refused with the reason."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    SpatialRegistrationStorage,
)

from dicomnode.errors import SeriesRefusedError, StorageFailedError
from dicomnode.volumes.series import find_series, load_series
from tests.dicomnode.series_files import (
    AXIAL,
    OBLIQUE,
    SAGITTAL,
    SeriesSpec,
    make_series,
    stored_values,
    write_files,
    write_series,
)


@pytest.mark.parametrize("orientation", [SAGITTAL, OBLIQUE])
def test_volume_holds_each_slice_at_its_place(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    spec = SeriesSpec(orientation=orientation, shear_mm=(0.4, 0.2, 0.0))
    series = load_series(write_series(tmp_path, spec)[::-1])
    np.testing.assert_allclose(series.volume.affine, spec.affine(), atol=1e-5)
    for k in range(spec.shape[0]):
        assert (series.volume.array[k] == stored_values(spec.shape, k)).all()
        assert series.headers[k].SOPInstanceUID == f"{spec.uid}.3.{k + 1}"
        assert "PixelData" not in series.headers[k]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    def change(header: pydicom.Dataset, k: int) -> None:
        header.ImageOrientationPatient = [1, 1e-5 * (k % 7) / 3, 0, 0, 1, 1e-5 / (k + 1)]  # as some scanners round
        header.PixelSpacing = [3 + 1e-6 * k / 7, 3]

    spec = SeriesSpec(shape=(10, 27, 28), spacing_mm=(9, 3, 3), change=change)
    return write_series(tmp_path_factory.mktemp("series"), spec)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(order=st.permutations(range(10)))
def test_any_order_of_files_gives_the_same_volume(paths: list[Path], order: list[int]) -> None:
    straight, mixed = load_series(paths), load_series([paths[index] for index in order])
    assert mixed.volume.array.tobytes() == straight.volume.array.tobytes()
    assert mixed.volume.affine.tobytes() == straight.volume.affine.tobytes()
    assert [h.SOPInstanceUID for h in mixed.headers] == [h.SOPInstanceUID for h in straight.headers]


def test_a_whole_body_pet_is_cropped_to_the_head_and_says_so(tmp_path: Path) -> None:
    spec = SeriesSpec(modality="PT", shape=(60, 32, 30))
    series = load_series(write_series(tmp_path, spec))
    assert series.volume.shape == (44, 32, 30)
    assert series.choice == "cropped to the head: the upper 44 of 60 slices"
    assert series.headers[0].SOPInstanceUID == f"{spec.uid}.3.17"
    np.testing.assert_allclose(series.volume.affine[:3, 3], (spec.affine() @ (16, 0, 0, 1))[:3], atol=1e-5)


def test_identical_copies_are_dropped(tmp_path: Path) -> None:
    paths = write_series(tmp_path, SeriesSpec())
    copy = Path(shutil.copy(paths[3], tmp_path / "copy.dcm"))
    rewritten = pydicom.dcmread(paths[4])
    rewritten.file_meta.ImplementationVersionName = "OTHER"  # another store's file meta, the same data set
    rewritten.save_as(tmp_path / "rewritten.dcm")
    assert len(load_series([*paths, copy, tmp_path / "rewritten.dcm"]).headers) == 12


def test_a_second_content_under_one_uid_is_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path, SeriesSpec())
    other = pydicom.dcmread(paths[3])
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(tmp_path / "other.dcm")
    with pytest.raises(SeriesRefusedError, match=r"other.dcm: a second file has the same SOPInstanceUID and other"):
        load_series([*paths, tmp_path / "other.dcm"])


def change_all(**values: object) -> Callable[[pydicom.Dataset, int], None]:
    def change(header: pydicom.Dataset, _k: int) -> None:
        for keyword, value in values.items():
            setattr(header, keyword, value)

    return change


def change_one(k_changed: int, **values: object) -> Callable[[pydicom.Dataset, int], None]:
    def change(header: pydicom.Dataset, k: int) -> None:
        if k == k_changed:
            change_all(**values)(header, k)

    return change


def remove(keyword: str) -> Callable[[pydicom.Dataset, int], None]:
    def change(header: pydicom.Dataset, _k: int) -> None:
        delattr(header, keyword)

    return change


def private(group: int, element: int, creator: str = "", **values: object) -> Callable[[pydicom.Dataset, int], None]:
    def change(header: pydicom.Dataset, k: int) -> None:
        header.add_new((group, element), "UN", b"\x01\x00")
        if creator:
            header.add_new((group, 0x0010), "LO", creator)
        change_all(**values)(header, k)

    return change


def made_by_us(header: pydicom.Dataset, _k: int) -> None:
    item = pydicom.Dataset()
    item.Manufacturer = "dicomnode"
    header.ContributingEquipmentSequence = [item]


def three_planes(header: pydicom.Dataset, k: int) -> None:
    planes = [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)]
    header.ImageOrientationPatient = list(planes[k % 3])


def two_echoes(header: pydicom.Dataset, k: int) -> None:
    header.ImagePositionPatient = [-50, -45, -40 + 8 * (k // 2)]
    header.EchoTime = (12, 90)[k % 2]


def two_frames(header: pydicom.Dataset, k: int) -> None:
    header.ImagePositionPatient = [-50, -45, -40 + 8 * (k % 6)]
    header.FrameReferenceTime = 1000 * (k // 6)


# What is changed in an ordinary MR series of 12 slices, and what the refusal must say.
REFUSALS = {
    "ct": (change_all(SOPClassUID=CTImageStorage, Modality="CT"), r"modality CT \(CT Image Storage\); MR and PET"),
    "words that are no code": (
        change_all(Modality="CT\x1b[2J\nMüller"),
        r"^modality CT\?\?2J\?M\?ller \(MR Image Storage\); MR and PET are read$",
    ),
    "modality of another class": (change_all(Modality="PT"), r"modality PT \(MR Image Storage\)"),
    "own output": (change_all(SOPClassUID=SpatialRegistrationStorage, Modality="REG"), "modality REG"),
    "own derived pet": (made_by_us, "an output of this software; results are never taken as input"),
    "enhanced without frames": (change_all(SOPClassUID=EnhancedMRImageStorage), "NumberOfFrames holds 0 values"),
    "enhanced without groups": (
        change_all(SOPClassUID=EnhancedMRImageStorage, NumberOfFrames=5),
        "0000.dcm: 5 frames and 0 items in PerFrameFunctionalGroupsSequence, one for each frame is needed",
    ),
    "frames in a single-frame class": (change_all(NumberOfFrames=4), "4 frames in one MR Image Storage object"),
    "localizer by type": (
        change_all(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        r"a localizer \(ImageType ORIGINAL\\PRIMARY\\LOCALIZER\); a volume is needed",
    ),
    "mosaic by type": (change_all(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "Siemens mosaic"),
    "mosaic by private mark": (private(0x0019, 0x100A), "Siemens mosaic"),
    "another vendor's mark": (
        private(0x0019, 0x100A, "GEMS_ACQU_01", PhotometricInterpretation="RGB"),
        "PhotometricInterpretation RGB",
    ),
    "vframe by type": (change_all(ImageType=["ORIGINAL", "PRIMARY", "VFRAME"]), "UIH VFRAME"),
    "vframe by private mark": (private(0x0065, 0x1050), "UIH VFRAME"),
    "two series": (change_one(4, SeriesInstanceUID="1.9"), "2 different values of SeriesInstanceUID"),
    "two frames of reference": (
        change_one(4, FrameOfReferenceUID="1.9"),
        r"1 slice\(s\) missing.*1 slice\(s\) set aside that differ in FrameOfReferenceUID\)",
    ),
    "no frame of reference": (remove("FrameOfReferenceUID"), "no FrameOfReferenceUID"),
    "no study": (remove("StudyInstanceUID"), "no StudyInstanceUID"),
    "mixed sizes": (change_one(4, Rows=16), r"different sizes \(11 of 32 x 30, 1 of 16 x 30 rows x columns\)"),
    "localizer": (three_planes, r"3 orientations, as in a localizer: 3 stacks of 4, 4, 4 slices"),
    "no position": (remove("ImagePositionPatient"), "ImagePositionPatient holds 0 values, 3 finite numbers"),
    "words for a position": (change_all(ImagePositionPatient=["1", "2"]), "ImagePositionPatient holds 2 values"),
    "mirrored, and forgotten in the cosines": (
        change_one(4, PatientOrientation=["R", "P"]),
        r"PatientOrientation R\\P contradicts ImageOrientationPatient 1\\0\\0\\0\\1\\0: left and right",
    ),
    "turned, and forgotten in the cosines": (
        change_all(PatientOrientation=["P", "R"]),
        r"PatientOrientation P\\R contra",
    ),
    "no pixel spacing": (remove("PixelSpacing"), "PixelSpacing holds 0 values, 2"),
    "two pixel spacings": (
        change_one(4, PixelSpacing=[2.9, 3.5]),
        r"1 slice\(s\) missing.*1 slice\(s\) set aside that differ in PixelSpacing \(3\\3.5, 2.9\\3.5\)\)",
    ),
    "no spacing at all": (change_all(PixelSpacing=[0, 0]), "PixelSpacing of 0.0000 mm, more than 0 is needed"),
    "two short echoes": (
        two_echoes,
        r"2 stacks of 6, 6 slices that differ in EchoTime \(12, 90\); at least 8 slices in",
    ),
    "two short frames": (two_frames, r"2 stacks of 6, 6 slices that differ in FrameReferenceTime \(0, 1000\)"),
    "a body": (
        change_all(PixelSpacing=[3, 20]),
        "covers 96 x 96 x 600 mm .*more than a head; at most 500 mm along each",
    ),
    "colour": (change_all(PhotometricInterpretation="RGB", SamplesPerPixel=3), "PhotometricInterpretation RGB"),
    "bits that do not fit": (change_all(BitsStored=17), "bits allocated/stored/high 16/17/15"),
    "too large a slice": (change_all(Rows=60000, Columns=60000), "12 slices of 60000 x 60000 at 16 bits; at most"),
    "modality lut": (change_all(ModalityLUTSequence=[]), "ModalityLUTSequence, a linear rescale"),
    "slope is no number": (change_one(4, RescaleSlope="inf"), "RescaleSlope holds 1 values, 1 finite"),
    "no slope": (change_one(4, RescaleSlope="0", RescaleIntercept="5"), "0004.dcm: RescaleSlope 0 makes one value"),
    "pixels cut short": (change_one(4, PixelData=bytes(100)), "0004.dcm: pixels cannot be decoded"),
    "no pixels": (remove("PixelData"), "0000.dcm: pixels cannot be decoded"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_refusal_names_the_reason(tmp_path: Path, change: Callable[[pydicom.Dataset, int], None], reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the builder breaks the rules on purpose
        paths = write_series(tmp_path, SeriesSpec(change=change))
    with pytest.raises(SeriesRefusedError, match=reason):
        load_series(paths)


@pytest.mark.parametrize(
    ("orientation", "letters"),
    [
        (AXIAL, ["L", "P"]),
        (SAGITTAL, ["PL", "FA"]),  # with letters that name no more than a rounding
        (OBLIQUE, ["LP", "PRH"]),
        (OBLIQUE, ["PL", "P"]),  # not in order of size, or the largest alone
        (AXIAL, ["", ""]),
        (AXIAL, ["LE", "D"]),  # of an animal: PS3.3 C.7.6.1.1.1
        (AXIAL, "R"),
    ],
)
def test_letters_that_agree_with_the_cosines_or_say_nothing_are_no_contradiction(
    tmp_path: Path, orientation: tuple[float, ...], letters: list[str] | str
) -> None:
    spec = SeriesSpec(orientation=orientation, change=change_all(PatientOrientation=letters))
    assert load_series(write_series(tmp_path, spec)).volume.shape[0] == 12


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_one(4, Units="CNTS"), r"2 different values of Units \(BQML, CNTS\), one is needed"),
        (change_one(4, Units=""), r"2 different values of Units \(absent, BQML\), one is needed"),
        (change_one(4, DecayCorrection="ADMIN"), r"2 different values of DecayCorrection \(ADMIN, START\)"),
        (change_one(4, CountsSource="TRANSMISSION"), r"2 different values of CountsSource"),
        (change_all(CountsSource="TRANSMISSION", Units="1CM"), "CountsSource TRANSMISSION, a map of attenuation"),
    ],
)
def test_a_pet_whose_values_mean_several_things_or_no_uptake_is_refused(
    tmp_path: Path, change: Callable[[pydicom.Dataset, int], None], reason: str
) -> None:
    paths = write_series(tmp_path, SeriesSpec(modality="PT", change=change))
    with pytest.raises(SeriesRefusedError, match=reason):
        load_series(paths)


def test_gap_names_its_position(tmp_path: Path) -> None:
    paths = write_series(tmp_path, SeriesSpec(shape=(14, 32, 30)))
    with pytest.raises(SeriesRefusedError, match=r"1 slice\(s\) missing: gap of 16.00 mm after k=4, 32.0 mm from the"):
        load_series(paths[:5] + paths[6:])


def test_one_slice_and_no_file_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path, SeriesSpec())
    with pytest.raises(SeriesRefusedError, match="1 slice, at least 8 are needed"):
        load_series(paths[:1])
    with pytest.raises(SeriesRefusedError, match="0 slices: no file was given"):
        load_series([])


def test_refusals_never_hold_who_the_patient_is(tmp_path: Path) -> None:
    for number, (change, _) in enumerate(REFUSALS.values()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            paths = write_series(tmp_path / str(number), SeriesSpec(change=change))
        with pytest.raises(SeriesRefusedError) as refusal:
            load_series(paths)
        for secret in ("Käthe", "T-1", "19500102", "20250304"):
            assert secret not in str(refusal.value)


def test_what_is_no_dicom_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("DICM")
    with pytest.raises(SeriesRefusedError, match=r"notes.txt: no readable DICOM data set"):
        load_series([tmp_path / "notes.txt"])


def test_truncated_file_is_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path, SeriesSpec())
    paths[2].write_bytes(paths[2].read_bytes()[:400])
    with pytest.raises(SeriesRefusedError, match=r"0002.dcm"):
        load_series(paths)


def test_deflated_file_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    slices = make_series(SeriesSpec())
    for header in slices:
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    paths = write_files(tmp_path, slices)
    # Broken from here on: had anything been inflated, the refusal would speak of the data set.
    paths[0].write_bytes(paths[0].read_bytes()[:-40] + bytes(40))
    with pytest.raises(SeriesRefusedError, match=r"0000.dcm: deflated data sets are not read"):
        load_series(paths)


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    (path,) = write_files(tmp_path, make_series(SeriesSpec())[:1])
    opening = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(path.read_bytes() + opening * 3000)
    # The nested sequence stands after the pixels' tag would: put it first by a file of its own.
    start = path.read_bytes()
    meta_end = start.index(b"\x08\x00\x05\x00")
    path.write_bytes(start[:meta_end] + opening * 3000)
    with pytest.raises(SeriesRefusedError, match=r"0000.dcm: no readable DICOM data set"):
        load_series([path])


def test_missing_file_is_a_storage_failure(tmp_path: Path) -> None:
    with pytest.raises(StorageFailedError, match=r"gone.dcm: No such file"):
        load_series([tmp_path / "gone.dcm"])


def test_broken_character_set_and_odd_values_do_not_hurt(tmp_path: Path) -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        header.SpecificCharacterSet = "ISO_IR 999"
        header.PatientBirthDate = "unknown date"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slices = make_series(SeriesSpec(change=change))
        for header in slices:
            header.PatientName = "Ascii"
            header.SeriesDescription = "Ascii"
        paths = write_files(tmp_path, slices)
    assert len(load_series(paths).headers) == 12


def test_find_series_groups_files_below_a_folder_and_skips_the_rest(tmp_path: Path) -> None:
    mr = write_series(tmp_path / "a" / "mr", SeriesSpec(uid="1.2.5"))
    pet = write_series(tmp_path / "b", SeriesSpec(modality="PT", uid="1.2.4"))
    (tmp_path / "a" / "README").write_text("not DICOM")
    found = find_series(tmp_path)
    assert found == {"1.2.4.2": pet, "1.2.5.2": mr}
    assert list(found) == ["1.2.4.2", "1.2.5.2"]
