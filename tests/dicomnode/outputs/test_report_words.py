"""What the report says of a registration: found, meant, needed; and what it marks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dicomnode.outputs.report_words import DOUBT, SIGNALS, describe_run, describe_signals, describe_verdict
from registration.transforms import RigidTransform
from tests.dicomnode.outputs.known_requests import make_registration

SURE = {
    "matches_kept": 158.0,
    "match_share": 0.506,
    "fresh_to_final_mm": 5.55,
    "starts_apart_mm": 1.0,
    "overlap": 0.96,
}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("matches_kept", 19.0, "19"),
        ("match_share", 0.149, "15%"),
        ("fresh_to_final_mm", 15.1, "15.1 mm"),
        ("starts_apart_mm", 99.0, "\u2265 99 mm"),
        ("overlap", 0.39, "39%"),
    ],
)
def test_a_signal_that_raises_doubt_is_marked_and_says_what_was_needed(name: str, value: float, shown: str) -> None:
    sure = describe_signals(SURE)
    assert [line.colour for line in sure if line.colour == DOUBT] == []
    (marked,) = [line for line in describe_signals({**SURE, name: value}) if line.colour == DOUBT]
    assert marked.value == shown
    assert marked.words.endswith((" at least)", " at most)"))


def test_signals_come_with_units_in_one_order_and_none_is_left_out() -> None:
    lines = describe_signals({"a_new_one": 0.12345, **dict(reversed(SURE.items()))})
    assert [line.value for line in lines] == ["158", "51%", "5.5 mm", "1.0 mm", "96%", "0.1235"]
    assert lines[-1].words == "a_new_one"


def test_every_millimetre_says_so() -> None:
    assert {name for name, signal in SIGNALS.items() if "mm" in signal.form} == {
        name for name in SIGNALS if name.endswith("_mm")
    }


def test_the_shift_is_that_of_the_heads_middle_and_not_of_the_origin() -> None:
    middle_mm = np.array([100.0, 0.0, 0.0])
    turned = RigidTransform.from_parameters(np.radians([0, 0, 10]), np.array([3.0, 0, 4]), middle_mm)
    lines = describe_verdict(make_registration(turned), "because", middle_mm)
    assert {"5.0 mm", "10.0 degrees", "0.99"} <= {line.value for line in lines}
    assert "because" in [line.words for line in lines]


def test_the_run_is_told_with_seconds_device_and_a_short_checksum() -> None:
    registration = replace(make_registration(), timings_s={"prepare": 0.441, "moving_features": 2.8})
    values = {line.words: line.value for line in describe_run(registration)}
    assert values == {
        "prepare": "0.44 s",
        "moving features": "2.80 s",
        "all stages": "3.24 s",
        "device of the network": "cpu",
        "model, sha256": "ab" * 6,
    }
