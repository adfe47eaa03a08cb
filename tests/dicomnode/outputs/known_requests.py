"""Requests for outputs from small series with a known transform.

Flow: tests > [known_requests] > files and values
Never: a network; the transform is given, not found.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np

from dicomnode.outputs.objects import OutputRequest
from dicomnode.setting_values import OutputObject
from dicomnode.settings import OutputSettings
from dicomnode.volumes.series import SeriesVolume, load_series
from registration.confidence import Verdict
from registration.pipeline import Registration
from registration.transforms import RigidTransform
from tests.dicomnode.dynamic_files import DynamicSpec, make_dynamic
from tests.dicomnode.series_files import SeriesSpec, write_files, write_series

CREATED_AT = 1_760_000_000.25  # 2025-10-09 08:53:20 UTC
# A quarter turn about z, then a shift: MR point = (-y, x, z) + (12, -7, 30) of the PET point.
QUARTER_TURN = np.array([[0.0, -1, 0, 12], [1, 0, 0, -7], [0, 0, 1, 30], [0, 0, 0, 1]])
SMALL_MOTION = RigidTransform.from_parameters(np.array([0.1, -0.06, 0.2]), np.array([4.0, -3.0, 6.0]), np.zeros(3))
MR = SeriesSpec()
PET = SeriesSpec(modality="PT", shape=(14, 26, 28), spacing_mm=(7.0, 4.0, 4.0), uid="1.2.826.0.1.3680043.8.498.2")
DEFAULTS = OutputSettings()
EVERY_OBJECT = OutputSettings(objects=get_args(OutputObject))


@cache
def load_spec(spec: SeriesSpec) -> SeriesVolume:
    """Load the series that a specification describes; loaded once."""
    with TemporaryDirectory() as folder:
        return load_series(write_series(Path(folder), spec))


def make_registration(transform: RigidTransform = SMALL_MOTION, verdict: Verdict = "accept") -> Registration:
    """Return a registration with this transform."""
    return Registration(
        fixed_from_moving=transform,
        verdict=verdict,
        confidence=0.987,
        is_calibrated=True,
        metrics={},
        timings_s={},
        device="cpu",
        model_sha256="ab" * 32,
    )


def make_request(
    fixed: SeriesSpec = MR,
    moving: SeriesSpec = PET,
    transform: RigidTransform = SMALL_MOTION,
    settings: OutputSettings = DEFAULTS,
) -> OutputRequest:
    """Return a request for the outputs of two series with this transform between them."""
    return OutputRequest(
        fixed=load_spec(fixed),
        moving=load_spec(moving),
        registration=make_registration(transform),
        created_at=CREATED_AT,
        settings=settings,
    )


def make_mean_request(
    dynamic: DynamicSpec, settings: OutputSettings = DEFAULTS, fixed: SeriesSpec = MR
) -> OutputRequest:
    """Return a request whose PET is the mean of the frames of a dynamic one."""
    with TemporaryDirectory() as folder:
        frames = [header for slices in make_dynamic(dynamic) for header in slices]
        moving = load_series(write_files(Path(folder), frames), "mean")
    return replace(make_request(fixed, settings=settings), moving=moving)
