from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.train import calibrate
from models.train.calibrate import describe_runs, find_area, find_rocs, fit, judge_by_others
from models.train.runs import HERE, MIRRORED, OTHER_HEAD, REGISTRATION, find_version
from registration import confidence
from registration.confidence import COEFFICIENTS

NAMES = list(COEFFICIENTS)
GOOD = {
    "fresh_to_final_mm": 1.5,
    "starts_apart_mm": 0.3,
    "margin": 5.0,
    "mirror_margin": 1.4,
    "match_share": 0.8,
    "match_apart_mm": 3.0,
    "matches_kept": 150.0,
    "overlap": 0.9,
    "sharpness": 1.3,
    "early_fall": 0.52,
}
BAD = {
    **GOOD,
    "fresh_to_final_mm": 30.0,
    "starts_apart_mm": 20.0,
    "match_share": 0.1,
    "sharpness": 1.06,
    "early_fall": 0.35,
}


def make_runs(count: int = 60) -> list[dict[str, Any]]:
    """Make runs of three people, every second of them bad, with signals that scatter."""
    rng = np.random.default_rng(3)
    runs: list[dict[str, Any]] = []
    for number in range(count):
        is_bad = number % 2 == 1
        metrics = {name: value * rng.uniform(0.8, 1.25) for name, value in (BAD if is_bad else GOOD).items()}
        for name in ("sharpness", "early_fall"):
            metrics[name] = (BAD if is_bad else GOOD)[name] + rng.normal(0, 0.01)
        kind = OTHER_HEAD if is_bad else "easy"
        runs.append(
            {
                "person": f"person {number % 3}",
                "kind": kind,
                "tre_mm": None if is_bad else 0.5,
                "metrics": metrics,
            }
        )
    return runs


def test_what_comes_apart_is_told_apart_by_the_fit_to_other_people() -> None:
    runs = make_runs()

    judged = judge_by_others(runs, NAMES)

    assert judged[::2].min() > 0.8
    assert judged[1::2].max() < 0.2


def test_a_signal_of_the_wrong_sign_gets_no_weight() -> None:
    runs = make_runs()
    for run in runs:
        run["metrics"]["overlap"] = 0.5 if run["tre_mm"] else 0.9  # in these runs, more overlap is worse

    weights = dict(zip(NAMES, fit(runs, NAMES)[1:], strict=True))

    assert weights["overlap"] == 0.0
    assert weights["match_share"] > 0.0


def test_a_person_is_judged_without_their_own_runs() -> None:
    runs = make_runs()
    before = judge_by_others(runs, NAMES)
    for run in runs:
        if run["person"] == "person 0":
            run["tre_mm"] = None if run["tre_mm"] else 0.5  # a fit to these would turn the judgement round

    after = judge_by_others(runs, NAMES)

    mine = np.array([run["person"] == "person 0" for run in runs])
    assert after[mine] == pytest.approx(before[mine])
    assert after[~mine] != pytest.approx(before[~mine])


def test_the_area_is_one_when_apart_and_a_half_when_alike() -> None:
    runs = make_runs()
    right = np.array([run["tre_mm"] is not None for run in runs])

    apart = find_rocs(runs, np.where(right, 0.9, 0.1))
    alike = find_rocs(runs, np.full(len(runs), 0.5))

    assert [find_area(points) for points in apart.values()] == [1.0, 1.0]
    assert [find_area(points) for points in alike.values()] == [0.5, 0.5]


def test_the_section_counts_who_was_accepted_and_leaves_mirrored_ones_out_of_the_reliability() -> None:
    runs = make_runs(20)
    runs[0]["kind"] = MIRRORED
    judged = np.where([run["tre_mm"] is not None for run in runs], 0.97, 0.05)

    text = describe_runs(runs, judged, 3)

    assert "| 0.95-1.00 | 9 | 0.97 | 1.00 |" in text
    assert "| 0.00-0.10 | 10 | 0.05 | 0.00 |" in text
    assert f"| {OTHER_HEAD} | 10 |  | 0 | 0 | 0 | 10 | 0 |" in text
    assert "| easy | 9 | 0.50 / 0.5 | 9 | 9 | 0 | 0 | 0 |" in text
    assert "error instead of an answer, and are not among them: 3." in text


def test_runs_are_made_again_when_what_made_them_changes_and_not_for_a_coefficient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = ["a-01", "a-02"]
    copy = tmp_path / "registration"
    shutil.copytree(REGISTRATION, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("models.train.runs.REGISTRATION", copy)
    before = find_version(people)

    (copy / "confidence.py").write_text("INTERCEPT = 7.0\n")
    judged_otherwise = find_version(people)
    of_others = find_version(people[:1])
    monkeypatch.setattr(confidence, "DOUBT_SHARE", 0.5)
    in_doubt_otherwise = find_version(people)
    (copy / "evidence.py").write_text("")

    assert judged_otherwise == before
    assert len({before, of_others, in_doubt_otherwise, find_version(people)}) == 4


def test_the_shipped_coefficients_are_the_fit_to_the_shipped_runs() -> None:
    lines = (HERE.parent / calibrate.RUNS).read_text().splitlines()[1:]
    runs = [run for run in map(json.loads, lines) if run["metrics"]]

    intercept, *weights = fit(calibrate.fitted(runs), NAMES)

    assert intercept == pytest.approx(confidence.INTERCEPT, abs=5e-4)
    assert dict(zip(NAMES, weights, strict=True)) == pytest.approx(COEFFICIENTS, abs=5e-4)
