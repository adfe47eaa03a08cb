"""How far a registration may be trusted: an estimated probability, and the verdict it leads to.

Flow: pipeline > [confidence]
Never: a look at the images; only whether estimates that do not share a cause agree. A mirror image cannot be seen by
any of these signals: the header's geometry is trusted, and volumes/ refuses headers that contradict themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

Verdict = Literal["accept", "review", "reject"]

ACCEPT_FROM = 0.9
REJECT_BELOW = 0.3
DOUBT_STARTS_MM = 4.0
DOUBT_FRESH_MM = 15.0
DOUBT_SHARE = 0.15
LEAST_OVERLAP_TO_ACCEPT = 0.5
LEAST_MATCHES_TO_ACCEPT = 20
# Similarity over that of the pose turned by 4 degrees: 1.11 and more in 12 right poses, 1.07 and less for 12 PETs of
# another person (simulated, people never trained on).
LEAST_SHARPNESS_TO_ACCEPT = 1.09

# Set by hand: not yet fitted to runs. models/train/calibrate.py fits them, and models/MODEL_CARD.md says when it has.
INTERCEPT = 0.0
COEFFICIENTS: Mapping[str, float] = {
    "fresh_mm": -1.0,
    "starts_mm": -1.0,
    "match_share": 4.0,
    "overlap": 1.0,
    "similarity": 20.0,
}


def signals(metrics: Mapping[str, float]) -> dict[str, float]:
    """Bring a registration's metrics to the scale on which the logistic adds them; larger is not always better."""
    return {
        "fresh_mm": math.log1p(min(metrics["fresh_to_final_mm"], 50.0)),
        "starts_mm": math.log1p(min(metrics["starts_apart_mm"], 50.0)),
        "match_share": metrics["match_share"],
        "overlap": min(metrics["overlap"], 1.0),
        "similarity": metrics["similarity"] - 1.0,
    }


def confidence(metrics: Mapping[str, float]) -> float:
    """Return the probability, 0 to 1, that the mean target registration error over the brain is under 5 mm.

    Parameters
    ----------
    metrics : mapping
        `fresh_to_final_mm`, `starts_apart_mm`, `match_share`, `overlap`, `similarity`, as `Registration.metrics`.
    """
    logit = INTERCEPT + sum(COEFFICIENTS[name] * value for name, value in signals(metrics).items())
    return 1.0 / (1.0 + math.exp(-max(-40.0, min(40.0, logit))))


def verdict(probability: float, metrics: Mapping[str, float]) -> Verdict:
    """Decide: `accept` needs a high probability and enough evidence behind it, whatever the logistic says."""
    if probability < REJECT_BELOW:
        return "reject"
    enough = (
        metrics["overlap"] >= LEAST_OVERLAP_TO_ACCEPT
        and metrics["matches_kept"] >= LEAST_MATCHES_TO_ACCEPT
        and metrics["sharpness"] >= LEAST_SHARPNESS_TO_ACCEPT
    )
    return "accept" if probability >= ACCEPT_FROM and enough else "review"


def is_doubtful(metrics: Mapping[str, float]) -> bool:
    """Tell whether more starts are worth their time."""
    return (
        metrics["starts_apart_mm"] > DOUBT_STARTS_MM
        or metrics["fresh_to_final_mm"] > DOUBT_FRESH_MM
        or metrics["match_share"] < DOUBT_SHARE
    )
