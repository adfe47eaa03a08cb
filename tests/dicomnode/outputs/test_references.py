"""Items point at instances, and at frames where not all of them are meant."""

from __future__ import annotations

from dataclasses import replace

import pydicom

from dicomnode.outputs.references import refer_to_series, refer_to_slice
from tests.dicomnode.outputs.known_requests import MR, load_spec


def test_frames_of_one_instance_are_referred_to_by_number() -> None:
    """As a multi-frame MR gives them: twelve frames of one instance, or twelve of its twenty."""
    series = load_spec(MR)
    for header in series.headers:
        assert "NumberOfFrames" not in header
    headers = []
    for source in series.headers:
        header = pydicom.Dataset()
        header.SOPClassUID, header.SOPInstanceUID, header.NumberOfFrames = source.SOPClassUID, "1.2.3", "20"
        headers.append(header)
    some = replace(series, headers=tuple(headers), frame_numbers=tuple(range(14, 2, -1)))
    slice_ = refer_to_slice(some, 2)
    assert (slice_.ReferencedSOPInstanceUID, slice_.ReferencedFrameNumber) == ("1.2.3", 12)
    (item,) = refer_to_series(some)
    assert list(item.ReferencedFrameNumber) == list(range(3, 15))
    for header in headers:
        header.NumberOfFrames = "12"
    (item,) = refer_to_series(some)
    assert "ReferencedFrameNumber" not in item
    assert len(refer_to_series(series)) == 12
