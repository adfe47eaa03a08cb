"""What to do when MR and PET stand in one frame of reference: the scanner has registered them already.

Flow: jobs > [hybrid]
Never: a correction written over the hardware's own alignment; a person decides that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from dicomnode.volumes.series import SeriesVolume
from registration.transforms import RigidTransform

if TYPE_CHECKING:
    from registration.pipeline import Registration

# Section 2 of the project's rules on hybrid scanners: below both, the registration confirms the hardware.
MAX_SHIFT_MM = 2.0
MAX_ANGLE_DEG = 1.0


@dataclass(frozen=True)
class HybridJudgement:
    """What a registration means for a pair, given the frames of reference."""

    decision: Literal["separate", "confirmed", "review"]
    registration: Registration  # the one to make outputs from; its transform is the identity when confirmed
    reason: str


def judge_hybrid(fixed: SeriesVolume, moving: SeriesVolume, registration: Registration) -> HybridJudgement:
    """Judge a registration of two series that may come from one hybrid scanner.

    Parameters
    ----------
    fixed, moving : SeriesVolume
    registration : Registration
        As `registration.register` returned it for their volumes.

    Returns
    -------
    HybridJudgement
        `separate`: two frames of reference, nothing to judge, registration unchanged. `confirmed`: one frame, and
        the registration moves the centre of the MR by less than 2 mm and turns by less than 1 degree, so outputs
        are made with the identity. `review`: one frame and a larger motion, or a registration that was not
        accepted; a person must decide, since readers that go by frame of reference cannot show a correction.
    """
    frames = {str(series.headers[0].FrameOfReferenceUID) for series in (fixed, moving)}
    if len(frames) > 1:
        return HybridJudgement("separate", registration, "different frames of reference")
    transform = registration.fixed_from_moving
    centre_mm = fixed.volume.centre_mm[None, :]
    shift_mm = float(np.linalg.norm(transform.apply(centre_mm) - centre_mm))
    angle_deg = transform.angle_deg
    found = (
        f"one frame of reference; the registration moves by {shift_mm:.1f} mm and turns by {angle_deg:.1f} degrees "
        f"({registration.verdict}), less than {MAX_SHIFT_MM:.0f} mm and {MAX_ANGLE_DEG:.0f} degree confirm the hardware"
    )
    if registration.verdict == "accept" and shift_mm < MAX_SHIFT_MM and angle_deg < MAX_ANGLE_DEG:
        return HybridJudgement("confirmed", replace(registration, fixed_from_moving=RigidTransform.identity()), found)
    return HybridJudgement("review", registration, found)
