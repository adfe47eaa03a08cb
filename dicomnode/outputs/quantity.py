"""In which unit the derived PET is written, and which private elements an SUV still needs.

Flow: volumes > [quantity] > pet
Never: a conversion by a factor that the PET does not carry itself, or that its slices disagree on.

Sources: Philips' PET DICOM conformance statement: (7053,1009) turns counts into Bq/ml, (7053,1000) turns them into an
SUV by body weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pydicom

from dicomnode.outputs.sources import copy_private, read_clean, read_private

# (group, creator, element, value representation)
GE_REFERENCE_TIME = (0x0009, "GEMS_PETD_01", 0x0D, "DT")  # scan date and time that decay is corrected to
PHILIPS_SUV_FACTOR = (0x7053, "Philips PET Private Group", 0x00, "DS")
PHILIPS_ACTIVITY_FACTOR = (0x7053, "Philips PET Private Group", 0x09, "DS")


@dataclass(frozen=True)
class Quantity:
    """What a derived PET's values mean: the PET's own, times `factor`."""

    factor: float = 1.0
    units: str = ""  # where they are other units than the PET's own
    derivation: str = ""  # what to add to the description of how the image came about

    def add_private(self, headers: Sequence[pydicom.Dataset], target: pydicom.Dataset) -> None:
        """Carry over the private elements an SUV needs, where all slices agree on them; of counts only for counts."""
        of_counts = () if self.units else (PHILIPS_SUV_FACTOR, PHILIPS_ACTIVITY_FACTOR)
        for element in (GE_REFERENCE_TIME, *of_counts):
            if len({read_private(header, element) for header in headers}) == 1:
                copy_private(headers[0], target, element)


def find_quantity(headers: Sequence[pydicom.Dataset]) -> Quantity:
    """Find in which unit to write the PET: counts become Bq/ml where every slice carries the one factor for it."""
    if any(read_clean(header, "Units") != "CNTS" for header in headers):
        return Quantity()
    factors = {read_private(header, PHILIPS_ACTIVITY_FACTOR) for header in headers}
    word = factors.pop() if len(factors) == 1 else None
    factor = float(str(word)) if word is not None else 0.0
    if not math.isfinite(factor) or factor <= 0:
        return Quantity()
    return Quantity(factor, "BQML", f", counts turned into Bq/ml by the PET's own factor {word} of (7053,1009)")
