"""Counts become Bq/ml by the PET's own factor; what else an SUV needs of a maker's own is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pydicom
import pytest

from dicomnode.outputs.objects import OutputRequest, make_outputs
from registration.resample import resample
from tests.dicomnode.outputs.known_requests import PET, make_request

PHILIPS = "Philips PET Private Group"
FACTOR = "1.602563"


@dataclass(frozen=True)
class Philips:
    """A change to a PET's headers: Philips' factors, that of activity by slice, and something else of theirs."""

    units: str = "CNTS"
    activity: tuple[str, ...] = (FACTOR,)  # of slice k, repeated

    def __call__(self, header: pydicom.Dataset, k: int) -> None:
        header.Units = self.units
        block = header.private_block(0x7053, PHILIPS, create=True)
        block.add_new(0x00, "DS", "0.000551")
        block.add_new(0x09, "DS", self.activity[k % len(self.activity)])
        block.add_new(0x10, "LO", "anything else")


def request_with(change: Philips) -> OutputRequest:
    return make_request(moving=replace(PET, uid=f"1.2.66.{abs(hash(change))}", change=change))


def make_pet(request: OutputRequest) -> list[pydicom.Dataset]:
    return [instance for kind, instance in make_outputs(request) if kind == "pt"]


def private_of(image: pydicom.Dataset) -> dict[int, str]:
    return {element.tag.element: str(element.value) for element in image if element.tag.is_private}


def test_counts_become_activity_by_the_pets_own_factor() -> None:
    request = request_with(Philips())
    images = make_pet(request)
    counts = resample(request.moving.volume, request.fixed.volume, request.fixed_from_moving)
    (slope,) = {float(image.RescaleSlope) for image in images}
    got = np.stack([np.frombuffer(image.PixelData, "<i2").reshape(image.Rows, -1) for image in images]) * slope
    assert np.abs(got - np.maximum(counts, 0) * 1.602563).max() <= slope / 2 * (1 + 1e-4)
    assert got.max() == pytest.approx(counts.max() * 1.602563, rel=1e-4)
    for image in images:
        assert image.Units == "BQML"
        assert image.DerivationDescription.endswith(
            "cubic B-splines, counts turned into Bq/ml by the PET's own factor 1.602563 of (7053,1009)"
        )
        assert "ImageComments" not in image
        assert private_of(image) == {}  # factors for counts, and there are no counts any more


def test_the_window_is_in_the_new_unit() -> None:
    (counts, *_), (activity, *_) = (make_pet(request_with(Philips(units=units))) for units in ("PROPCNTS", "CNTS"))
    assert float(activity.WindowWidth) == pytest.approx(1.602563 * float(counts.WindowWidth))


@pytest.mark.parametrize("activity", [(FACTOR, "1.7"), ("",), ("0",), ("-1",), (FACTOR, "")])
def test_counts_stay_counts_where_the_pet_does_not_carry_one_factor_for_all_slices(activity: tuple[str, ...]) -> None:
    image = make_pet(request_with(Philips(activity=activity)))[0]
    assert image.Units == "CNTS"
    kept = private_of(image)
    assert kept[0x1000] == "0.000551"  # turns counts into an SUV
    assert set(kept) <= {0x10, 0x1000, 0x1009}
    if len(activity) > 1:  # a factor of some slices is none for the series
        assert 0x1009 not in kept


def test_activity_is_not_turned_again_and_keeps_its_factors() -> None:
    image = make_pet(request_with(Philips(units="BQML")))[0]
    assert image.Units == "BQML"
    assert "counts" not in image.DerivationDescription
    assert private_of(image) == {0x10: PHILIPS, 0x1000: "0.000551", 0x1009: FACTOR}


def test_the_time_that_ge_corrects_decay_to_is_kept() -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        block = header.private_block(0x0009, "GEMS_PETD_01", create=True)
        block.add_new(0x0D, "DT", "20250301085900.00")
        block.add_new(0x0A, "LO", "a name of somebody")

    image = make_pet(make_request(moving=replace(PET, uid="1.2.67", change=change)))[0]
    assert private_of(image) == {0x10: "GEMS_PETD_01", 0x100D: "20250301085900.00"}
