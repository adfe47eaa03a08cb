from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from registration.confidence import COEFFICIENTS, confidence, is_calibrated, is_doubtful, signals, verdict
from registration.descriptors import Network
from registration.profiles import DEFAULT, PAPER

GOOD = {
    "fresh_to_final_mm": 1.5,
    "starts_apart_mm": 0.3,
    "margin": 5.0,
    "mirror_margin": 1.4,
    "match_share": 0.85,
    "match_apart_mm": 2.5,
    "matches_kept": 170.0,
    "overlap": 0.9,
    "sharpness": 1.3,
    "early_fall": 0.52,
}
BAD = {
    "fresh_to_final_mm": 99.0,
    "starts_apart_mm": 60.0,
    "margin": 1.0,
    "mirror_margin": 0.8,
    "match_share": 0.02,
    "match_apart_mm": 60.0,
    "matches_kept": 40.0,
    "overlap": 0.4,
    "sharpness": 1.05,
    "early_fall": 0.35,
}
WORSE = {
    "fresh_to_final_mm": 40.0,
    "starts_apart_mm": 30.0,
    "margin": 1.0,
    "mirror_margin": 0.8,
    "match_share": 0.1,
    "match_apart_mm": 25.0,
    "overlap": 0.36,
    "sharpness": 1.05,
    "early_fall": 0.35,
}


def test_agreement_is_accepted_and_disagreement_rejected() -> None:
    assert verdict(confidence(GOOD), GOOD, is_calibrated=True) == "accept"
    assert verdict(confidence(BAD), BAD, is_calibrated=True) == "reject"
    assert confidence(GOOD) > 0.9 > 0.3 > confidence(BAD)


@pytest.mark.parametrize("name", WORSE)
def test_no_signal_that_gets_worse_raises_the_confidence(name: str) -> None:
    assert confidence({**GOOD, name: WORSE[name]}) <= confidence(GOOD)


@pytest.mark.parametrize(
    ("name", "value"),
    [("overlap", 0.39), ("matches_kept", 12.0), ("sharpness", 1.07), ("early_fall", 0.42), ("mirror_margin", 1.02)],
)
def test_thin_evidence_is_never_accepted(name: str, value: float) -> None:
    assert verdict(0.999, {**GOOD, name: value}, is_calibrated=True) == "review"


def test_only_the_profile_and_network_of_the_calibration_are_calibrated() -> None:
    network = Network.load(device="cpu")

    assert is_calibrated(DEFAULT, network)
    assert not is_calibrated(DEFAULT, replace(network, sha256="0" * 64))
    assert not is_calibrated(replace(DEFAULT, last="guided"), network)
    assert not is_calibrated(PAPER, Network.load(PAPER.network, device="cpu"))


def test_what_was_not_calibrated_is_never_accepted() -> None:
    assert verdict(0.999, GOOD, is_calibrated=False) == "review"


def test_doubt_calls_for_more_starts() -> None:
    assert not is_doubtful(GOOD)
    assert is_doubtful({**GOOD, "starts_apart_mm": 20.0})
    assert is_doubtful({**GOOD, "fresh_to_final_mm": 30.0})
    assert is_doubtful({**GOOD, "match_share": 0.05})
    assert is_doubtful({**GOOD, "sharpness": 1.1})
    assert is_doubtful({**GOOD, "early_fall": 0.4})


def test_every_coefficient_has_its_signal_and_all_are_finite() -> None:
    assert set(COEFFICIENTS) == set(signals(GOOD))
    assert np.isfinite(list(signals(BAD).values())).all()
    assert 0.0 <= confidence(BAD) <= confidence(GOOD) <= 1.0
