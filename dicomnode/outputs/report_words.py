"""A registration's numbers in words that a radiologist reads: found, what it means, what was needed.

Flow: report > [report_words]
Never: a number that is not in the registration; a judgement of its own: what is marked is what `confidence` asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicomnode.outputs.panels import INK, Colour
from registration.confidence import (
    ACCEPT_FROM,
    DOUBT_FRESH_MM,
    DOUBT_SHARE,
    DOUBT_STARTS_MM,
    LEAST_EARLY_FALL_TO_ACCEPT,
    LEAST_MATCHES_TO_ACCEPT,
    LEAST_MIRROR_MARGIN_TO_ACCEPT,
    LEAST_OVERLAP_TO_ACCEPT,
    LEAST_SHARPNESS_TO_ACCEPT,
    REJECT_BELOW,
)
from registration.evidence import FAR_MM, LARGER_TURN_DEG, RIGHT_MATCH_MM, SMALL_TURN_DEG
from registration.pipeline import Registration

NOT_FOR_DIAGNOSIS = "Not for diagnosis"
DOUBT: Colour = (40, 180, 250)
VERDICTS: Mapping[str, tuple[Colour, str]] = {
    "accept": ((110, 205, 90), "The checks speak for it. Look at the pictures before you rely on it."),
    "review": (DOUBT, "A person must look and decide before it is used."),
    "reject": ((80, 80, 245), "It must not be used: nothing but this report was written."),
}
SHA_DIGITS = 12


@dataclass(frozen=True)
class Line:
    """One line of the report: a value, and what it says."""

    value: str
    words: str
    colour: Colour = INK  # the value's


@dataclass(frozen=True)
class Signal:
    """How one of `Registration.metrics` is told.

    Attributes
    ----------
    words : str
        What the value means.
    form : str
        A format of the value, with its unit.
    least, most : float
        Where doubt begins; infinite where nothing is asked for.
    """

    words: str
    form: str
    least: float = -math.inf
    most: float = math.inf


SIGNALS: Mapping[str, Signal] = {
    "matches_kept": Signal("matches of a last, fresh look by features", "{:.0f}", least=LEAST_MATCHES_TO_ACCEPT),
    "match_share": Signal(f"of them end within {RIGHT_MATCH_MM:.0f} mm of their key point", "{:.0%}", DOUBT_SHARE),
    "match_apart_mm": Signal("from key point to match, median", "{:.1f} mm"),
    "fresh_to_final_mm": Signal("from this result to where they alone would lay it", "{:.1f} mm", most=DOUBT_FRESH_MM),
    "feature_to_final_mm": Signal("from this result to what the search by features found", "{:.1f} mm"),
    "inliers": Signal("matches behind that search", "{:.0f}"),
    "starts_apart_mm": Signal(
        "from this result to where the three most alike climbs ended, median", "{:.1f} mm", most=DOUBT_STARTS_MM
    ),
    "margin": Signal("times the likeness of the best place elsewhere, 5 where there is none", "{:.2f}"),
    "mirror_margin": Signal(
        "times the likeness of the PET's mirror image", "{:.2f}", least=LEAST_MIRROR_MARGIN_TO_ACCEPT
    ),
    "overlap": Signal("of the head lies in the PET's field of view", "{:.0%}", least=LEAST_OVERLAP_TO_ACCEPT),
    "similarity": Signal("mutual information, normalised: 1 unrelated, 2 alike", "{:.3f}"),
    "sharpness": Signal(
        f"times the likeness of the same pose turned by {SMALL_TURN_DEG:.0f} degrees",
        "{:.2f}",
        least=LEAST_SHARPNESS_TO_ACCEPT,
    ),
    "early_fall": Signal(
        f"of the likeness lost at {LARGER_TURN_DEG:.0f} degrees is lost in the first {SMALL_TURN_DEG:.0f}",
        "{:.0%}",
        least=LEAST_EARLY_FALL_TO_ACCEPT,
    ),
}


def describe_verdict(registration: Registration, reason: str, middle_mm: NDArray[np.float64]) -> list[Line]:
    """Say the reason of the verdict, the confidence, and how the PET was moved.

    Parameters
    ----------
    registration : Registration
    reason : str
        As a person reads it at the job.
    middle_mm : (3,) float64
        The middle of the head, fixed LPS mm: where the shift is measured.
    """
    colour, _ = VERDICTS[registration.verdict]
    came_from_mm = registration.fixed_from_moving.inverse().apply(middle_mm[None])[0]
    return [
        Line("why", reason),
        Line(f"{registration.confidence:.2f}", describe_confidence(registration), colour),
        Line("", f"accept from {ACCEPT_FROM:.2f}, reject below {REJECT_BELOW:.2f}"),
        Line(f"{np.linalg.norm(middle_mm - came_from_mm):.1f} mm", "PET moved, at the middle of the head"),
        Line(f"{registration.fixed_from_moving.angle_deg:.1f} degrees", "PET turned"),
    ]


def describe_confidence(registration: Registration) -> str:
    """Say what the confidence is a probability of, or that it is none."""
    words = "probability that the mean error over the brain is below 5 mm"
    return words if registration.is_calibrated else f"not calibrated for this profile and network: no {words}"


def describe_signals(metrics: Mapping[str, float]) -> list[Line]:
    """Say each signal behind the confidence with its unit and what was needed; marked where it raises doubt."""
    known = [_describe_signal(signal, metrics[name]) for name, signal in SIGNALS.items() if name in metrics]
    return known + [Line(f"{value:.4g}", name) for name, value in metrics.items() if name not in SIGNALS]


def describe_run(registration: Registration) -> list[Line]:
    """Say how long each stage took, where the network ran, and which it was."""
    return [
        *(Line(f"{seconds:.2f} s", stage.replace("_", " ")) for stage, seconds in registration.timings_s.items()),
        Line(f"{sum(registration.timings_s.values()):.2f} s", "all stages"),
        Line(registration.device, "device of the network"),
        Line(registration.model_sha256[:SHA_DIGITS], "model, sha256"),
    ]


def _describe_signal(signal: Signal, value: float) -> Line:
    is_far = signal.form.endswith(" mm") and value >= FAR_MM
    needed = [
        f"{signal.form.format(limit)} {word}"
        for limit, word in ((signal.least, "at least"), (signal.most, "at most"))
        if math.isfinite(limit)
    ]
    return Line(
        f"\u2265 {FAR_MM:.0f} mm" if is_far else signal.form.format(value),
        signal.words + (f" ({needed[0]})" if needed else ""),
        INK if signal.least <= value <= signal.most else DOUBT,
    )
