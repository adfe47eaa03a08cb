"""Every real series at hand: read as SimpleITK and highdicom read it, or refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.series import load_series
from tests.peers.test_volumes_readers import ON_GRID_MM, READERS, distance_mm, match_order

pytestmark = pytest.mark.real_data

# By archive, how each of its series ends: with this shape, or this reason.
MR_SERIES: dict[str, list[tuple[int, int, int] | str]] = {
    "nih_ge_siemens_epi": [
        "40 images at 15 positions and nothing in them that tells which belong together",
        "a Siemens mosaic (many slices tiled in one image)",
    ],
    "philips_achieva_fmri_phantom": [
        "a time series, as functional or dynamic imaging makes: 3 stacks of 9, 9, 9 slices that differ in "
        "TemporalPositionIdentifier (1, 2, 3)"
    ],
    "siemens_prisma_t1_HFS_HFP": [(35, 256, 256), (35, 256, 256)],
    "toshiba_galan_26": ["covers 78.0 x 192.0 x 192.0 mm (slices x rows x columns), a head needs 80 mm along each"],
    "uih_umr770_t1_sessionA": [(160, 512, 460)],
}
FILES = {
    "odd_dicom/MR-SIEMENS-DICOM-WithOverlays.dcm": "1 slice, at least 8 are needed",
    "odd_dicom/MR2_J2KR.dcm": "1 slice, at least 8 are needed",
    "odd_dicom/bad_sequence.dcm": "modality CT (CT Image Storage); MR and PET are read",
    "odd_dicom/emri_small.dcm": "10 frames and 0 items in PerFrameFunctionalGroupsSequence",
    "odd_dicom/emri_small_RLE.dcm": "10 frames and 0 items in PerFrameFunctionalGroupsSequence",
    "odd_dicom/emri_small_big_endian.dcm": "10 frames and 0 items in PerFrameFunctionalGroupsSequence",
    "odd_dicom/emri_small_jpeg_2k_lossless.dcm": "10 frames and 0 items in PerFrameFunctionalGroupsSequence",
    "odd_dicom/emri_small_jpeg_2k_lossless_too_short.dcm": "10 frames and 0 items in PerFrameFunctionalGroupsSequence",
    "odd_dicom/emri_small_jpeg_ls_lossless.dcm": "10 frames and 0 items in PerFrameFunctionalGroupsSequence",
    "odd_dicom/explicit_VR-UN.dcm": "modality CT (CT Image Storage); MR and PET are read",
    "odd_dicom/mlut_18.dcm": "modality OT (Secondary Capture Image Storage); MR and PET are read",
    "odd_dicom/vlut_04.dcm": "modality OT (Secondary Capture Image Storage); MR and PET are read",
    "pt_dicom/1.dcm": "1 slice, at least 8 are needed",
    "pt_dicom/2.dcm": "1 slice, at least 8 are needed",
}


@pytest.mark.parametrize("archive", MR_SERIES)
def test_each_mr_series_is_read_as_other_readers_read_it_or_refused(
    real_series: dict[str, list[list[Path]]], archive: str
) -> None:
    wanted = list(MR_SERIES[archive])
    for paths in real_series[archive]:
        try:
            volume = load_series(paths).volume
        except SeriesRefusedError as refusal:
            wanted.remove(next(reason for reason in wanted if isinstance(reason, str) and reason in str(refusal)))
            continue
        wanted.remove(volume.shape)
        for peer, read in READERS.items():
            theirs = read(paths)
            ours = match_order(volume, theirs)
            assert distance_mm(ours, theirs) < ON_GRID_MM, peer
            np.testing.assert_allclose(ours.array, theirs.array, rtol=1e-5, atol=1e-3, err_msg=peer)
    assert wanted == []


def test_every_archive_is_in_the_table(real_series: dict[str, list[list[Path]]], shared_data: Path) -> None:
    assert {name: len(series) for name, series in real_series.items()} == {
        name: len(outcomes) for name, outcomes in MR_SERIES.items()
    }
    found = {
        f"{folder}/{path.name}" for folder in ("odd_dicom", "pt_dicom") for path in (shared_data / folder).glob("*.dcm")
    }
    assert found == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_each_odd_or_single_file_is_refused_with_its_reason(shared_data: Path, name: str) -> None:
    with pytest.raises(SeriesRefusedError, match=re.escape(FILES[name])):
        load_series([shared_data / name])
