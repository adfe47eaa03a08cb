"""What the objects of one registration are made of.

Flow: jobs|cli > [request] > objects
Never: the clock; the moment of making is part of the request, so that the same request makes the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from dicomnode.outputs.uids import make_fingerprint
from dicomnode.setting_values import OutputObject as Kind
from dicomnode.settings import OutputSettings
from dicomnode.volumes.series import SeriesVolume
from registration.transforms import RigidTransform

if TYPE_CHECKING:  # at run time the pipeline brings the ONNX runtime along, which writing objects does not need
    from registration.pipeline import Registration

DISTRIBUTION = "dicomnode-fusion"

__all__ = ["Kind", "OutputRequest", "software_version"]


@dataclass(frozen=True)
class OutputRequest:
    """One registration to be written down."""

    fixed: SeriesVolume  # the MR
    moving: SeriesVolume  # the PET
    registration: Registration
    created_at: float  # UTC epoch seconds, from the job's row
    settings: OutputSettings

    @cached_property
    def fixed_from_moving(self) -> RigidTransform:
        """The transform with its rotation projected on SO(3): ITK refuses a REG off by more than 1e-5."""
        return RigidTransform.from_matrix(self.registration.fixed_from_moving.matrix)

    @cached_property
    def fingerprint(self) -> str:
        """What all UIDs hang on: inputs, software, settings, model and matrix; the moment of making is left out."""
        matrix = (float(value).hex() for value in self.fixed_from_moving.matrix.ravel())
        return make_fingerprint(
            (
                *_name_slices(self.fixed),
                "fixed from moving",
                *_name_slices(self.moving),
                software_version(),
                self.settings.model_dump_json(),
                self.registration.model_sha256,
                *matrix,
            )
        )

    @property
    def created(self) -> datetime:
        """The moment of making, in UTC."""
        return datetime.fromtimestamp(self.created_at, UTC)

    @property
    def shares_frame(self) -> bool:
        """Whether both series stand in one frame of reference (hybrid PET/MR)."""
        return str(self.fixed.headers[0].FrameOfReferenceUID) == str(self.moving.headers[0].FrameOfReferenceUID)

    @property
    def makes_registration_object(self) -> bool:
        """Whether a "reg" is made: not where it would give one frame of reference two places."""
        return "reg" in self.settings.objects and (self.is_identity or not self.shares_frame)

    @property
    def is_unverified(self) -> bool:
        """Whether the objects are to be sent though the registration is in doubt and nobody has looked at it."""
        return self.registration.verdict == "review" and self.settings.review == "send"

    @property
    def is_identity(self) -> bool:
        """Whether the transform is the identity, literally."""
        return bool((self.fixed_from_moving.matrix == RigidTransform.identity().matrix).all())


def _name_slices(series: SeriesVolume) -> list[str]:
    """Name all instances of a series, or the frames that were taken of them, in an order of their own; and any mean."""
    names = [str(header.SOPInstanceUID) for header in series.set_aside]
    for images in series.sources:
        uids = [str(header.SOPInstanceUID) for header in images.headers]
        if images.frame_numbers:
            uids = [f"{uid} {number}" for uid, number in zip(uids, images.frame_numbers, strict=True)]
        names += uids
    return [*sorted(names), *([series.mean.words] if series.mean else [])]


@cache
def software_version() -> str:
    """Return our version, or `unpackaged` when we run from a checkout that nobody installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unpackaged"
