"""One frame of reference means that the scanner has registered the pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from dicomnode.outputs.hybrid import judge_hybrid
from registration.confidence import Verdict
from registration.transforms import RigidTransform
from tests.dicomnode.outputs.known_requests import MR, PET, SMALL_MOTION, load_spec, make_registration


def _change_frame(header: pydicom.Dataset, _k: int) -> None:
    header.FrameOfReferenceUID = f"{MR.uid}.4"


HYBRID_PET = replace(PET, change=_change_frame, uid="1.2.826.0.1.3680043.8.498.7")


def motion(angle_deg: float, shift_mm: float) -> RigidTransform:
    """Turn about the MR's centre, so that the shift there is the shift asked for."""
    centre_mm = load_spec(MR).volume.centre_mm
    return RigidTransform.from_parameters(
        np.array([0.0, 0.0, np.deg2rad(angle_deg)]), np.array([shift_mm, 0.0, 0.0]), centre_mm
    )


def test_two_frames_of_reference_are_left_alone() -> None:
    registration = make_registration(SMALL_MOTION)
    judgement = judge_hybrid(load_spec(MR), load_spec(PET), registration)
    assert judgement.decision == "separate"
    assert judgement.registration is registration


@pytest.mark.parametrize(
    ("angle_deg", "shift_mm", "verdict", "decision"),
    [
        (0.0, 0.0, "accept", "confirmed"),
        (0.9, 1.9, "accept", "confirmed"),
        (1.1, 0.0, "accept", "review"),
        (0.0, 2.1, "accept", "review"),
        (0.0, 0.0, "review", "review"),
        (0.0, 0.0, "reject", "review"),
    ],
)
def test_motion_within_one_frame_is_judged(angle_deg: float, shift_mm: float, verdict: Verdict, decision: str) -> None:
    registration = make_registration(motion(angle_deg, shift_mm), verdict)
    judgement = judge_hybrid(load_spec(MR), load_spec(HYBRID_PET), registration)
    assert judgement.decision == decision
    kept = judgement.registration.fixed_from_moving.matrix
    expected = np.eye(4) if decision == "confirmed" else registration.fixed_from_moving.matrix
    np.testing.assert_array_equal(kept, expected)
    assert f"moves by {shift_mm:.1f} mm and turns by {angle_deg:.1f} degrees" in judgement.reason
