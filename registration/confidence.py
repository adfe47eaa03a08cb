"""How far a registration may be trusted: an estimated probability, and the verdict it leads to.

Flow: pipeline > [confidence]
Never: a look at the images; only whether estimates that do not share a cause agree. Of these signals one tells a
mirrored volume, by its mirror image: the header's geometry is trusted, and volumes/ refuses headers that contradict
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from registration.descriptors import Network
from registration.profiles import DEFAULT, Profile

Verdict = Literal["accept", "review", "reject"]

ACCEPT_FROM = 0.85
REJECT_BELOW = 0.3
DOUBT_STARTS_MM = 4.0
DOUBT_FRESH_MM = 15.0
DOUBT_SHARE = 0.15
DOUBT_SHARPNESS, DOUBT_EARLY_FALL = 1.12, 0.42
LEAST_OVERLAP_TO_ACCEPT = 0.4
LEAST_MIRROR_MARGIN_TO_ACCEPT = 1.05  # below 1 the mirror image fits better
LEAST_MATCHES_TO_ACCEPT = 20
# How similarity falls off the pose: see `registration.evidence.measure_peak`. Of PETs of another person (simulated,
# people never trained on) none reaches both; of right poses nearly all do.
LEAST_SHARPNESS_TO_ACCEPT = 1.08
LEAST_EARLY_FALL_TO_ACCEPT = 0.45

# Fitted by `python -m models.train.calibrate --runs 2010`, 2026-11-28: see models/MODEL_CARD.md. 0 where a signal adds
# nothing to the others.
CALIBRATED_SHA256 = "c49695db95dc73e838be1ecabe1910643ac27064a0ee248cbcf5f45cd6cec7b2"  # the network of these runs
INTERCEPT = -8.209
COEFFICIENTS: Mapping[str, float] = {
    "fresh": 1.000,
    "starts": 0.755,
    "margin": 0.000,
    "mirror": 4.620,
    "match_share": 0.000,
    "matches_near": 3.427,
    "overlap": 0.000,
    "sharpness": 2.300,
    "early_fall": 2.771,
}


def signals(metrics: Mapping[str, float]) -> dict[str, float]:
    """Bring a registration's metrics to the scale on which the logistic adds them; larger is better."""
    return {
        "fresh": -math.log1p(min(metrics["fresh_to_final_mm"], 50.0)),
        "starts": -math.log1p(min(metrics["starts_apart_mm"], 50.0)),
        "margin": 10.0 * math.log(min(metrics["margin"], 1.5)),
        "mirror": 10.0 * math.log(min(max(metrics["mirror_margin"], 0.7), 1.5)),
        "match_share": metrics["match_share"],
        "matches_near": -math.log1p(min(metrics["match_apart_mm"], 50.0)),
        "overlap": min(metrics["overlap"], 1.0),
        "sharpness": 10.0 * math.log(min(max(metrics["sharpness"], 0.9), 1.5)),  # as wide as the others
        "early_fall": 20.0 * (min(max(metrics["early_fall"], 0.25), 0.6) - 0.25),
    }


def confidence(metrics: Mapping[str, float]) -> float:
    """Return the probability, 0 to 1, that the mean target registration error over the brain is under 5 mm.

    Parameters
    ----------
    metrics : mapping
        `Registration.metrics`, of which `signals` takes what it needs.
    """
    logit = INTERCEPT + sum(COEFFICIENTS[name] * value for name, value in signals(metrics).items())
    return 1.0 / (1.0 + math.exp(-max(-40.0, min(40.0, logit))))


def is_calibrated(profile: Profile, network: Network) -> bool:
    """Tell whether the coefficients were fitted to runs of this profile with this network; else nothing is accepted."""
    return profile == DEFAULT and network.sha256 == CALIBRATED_SHA256


def verdict(probability: float, metrics: Mapping[str, float], *, is_calibrated: bool) -> Verdict:
    """Decide: `accept` needs a calibrated probability that is high, and enough evidence behind it besides."""
    if probability < REJECT_BELOW:
        return "reject"
    enough = (
        metrics["overlap"] >= LEAST_OVERLAP_TO_ACCEPT
        and metrics["matches_kept"] >= LEAST_MATCHES_TO_ACCEPT
        and metrics["mirror_margin"] >= LEAST_MIRROR_MARGIN_TO_ACCEPT
        and metrics["sharpness"] >= LEAST_SHARPNESS_TO_ACCEPT
        and metrics["early_fall"] >= LEAST_EARLY_FALL_TO_ACCEPT
    )
    return "accept" if is_calibrated and probability >= ACCEPT_FROM and enough else "review"


def is_doubtful(metrics: Mapping[str, float]) -> bool:
    """Tell whether more starts are worth their time."""
    return (
        metrics["starts_apart_mm"] > DOUBT_STARTS_MM
        or metrics["fresh_to_final_mm"] > DOUBT_FRESH_MM
        or metrics["match_share"] < DOUBT_SHARE
        or metrics["sharpness"] < DOUBT_SHARPNESS
        or metrics["early_fall"] < DOUBT_EARLY_FALL
    )
