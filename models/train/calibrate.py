"""`python -m models.train.calibrate --data FOLDER`: fit the confidence to runs whose error is known, bad ones included.

Flow: anatomy > cases > registration > [calibrate] > registration/confidence.py (by hand) | card | plot
Never: a person the network was trained on; a figure from the people a fit has seen (each is judged by the others' fit).
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.train.anatomy import find_people, split_people
from models.train.card import make_table, write_section
from models.train.plot import Panel, Points, draw
from models.train.records import append_records, continue_records
from models.train.runs import FAR_OFF_DEG, MIRRORED, OTHER_HEAD, WRONG_TOP, find_version, make_numbered
from registration.confidence import COEFFICIENTS, signals, verdict
from registration.descriptors import Network

log = logging.getLogger("models.train")

RIGHT_MM = 5.0
RIDGE = 0.1
NEWTON_STEPS = 40
WEIGHT_OF_BAD = 2.0  # accepting a wrong one costs more than asking about a right one
RUNS = "calibration.jsonl"  # beside the card: a line of JSON for each run, after one with what they were made by
PLOT = "docs/benchmarks/confidence-roc.svg"  # from the folder above the card's
KIND_COLUMNS = ("kind", "runs", "TRE mm, median / max", "right", "accept", "review", "reject", "wrong but accepted")
BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0)


def main() -> None:
    """Run or load the runs, fit, judge by leaving out one person at a time, and write the card's section."""
    parser = argparse.ArgumentParser(prog="python -m models.train.calibrate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of T1 volumes (NIfTI) and one template")
    parser.add_argument("--output", type=Path, default=Path("models"), help="folder of card and runs (%(default)s)")
    cache = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "dicomnode-train"
    parser.add_argument("--cache", type=Path, default=cache, help="folder for prepared people (%(default)s)")
    parser.add_argument(
        "--runs", type=int, default=300, help="registrations; half of them meant to be bad (%(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runs = load_runs(arguments)
    names = list(COEFFICIENTS)
    weights = fit(fitted(runs), names)
    log.info('CALIBRATED_SHA256 = "%s"', Network.load(device="cpu").sha256)
    log.info("INTERCEPT = %.3f", weights[0])
    for name, weight in zip(names, weights[1:], strict=True):
        log.info('    "%s": %.3f,', name, weight)
    judged = judge_by_others(runs, names)
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    command = f"python -m models.train.calibrate --data FOLDER --runs {arguments.runs}"
    body = describe_runs(runs, judged, arguments.runs - len(runs))
    write_section(arguments.output, "Confidence", command, date, body)
    path = arguments.output.parent / PLOT
    path.parent.mkdir(parents=True, exist_ok=True)
    panel = Panel("share of wrong ones that pass", (0.0, 0.25, 0.5, 0.75, 1.0), find_rocs(runs, judged))
    path.write_text(draw("Right ones that pass", [panel]), encoding="utf-8")


def load_runs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the runs, each registered once and kept beside the card while nothing behind it changes."""
    path = arguments.output / RUNS
    _, paths = find_people(arguments.data)
    runs = continue_records(path, find_version(split_people(list(paths))[1]))
    make = functools.partial(make_numbered, arguments.data, arguments.cache)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, spawn) as pool:
        for run in pool.map(make, range(len(runs), arguments.runs)):
            append_records(path, [run])
            log.info("%d %s", len(runs), {key: run[key] for key in ("kind", "tre_mm")})
            runs.append(run)
    return [run for run in runs[: arguments.runs] if run["metrics"]]


def fitted(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs a fit may learn from."""
    return [run for run in runs if run["kind"] != MIRRORED]


def is_right(run: dict[str, Any]) -> bool:
    """Tell whether a run's answer may be used."""
    return run["tre_mm"] is not None and run["tre_mm"] < RIGHT_MM


def fit(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> NDArray[np.float64]:
    """Fit a logistic by Newton's method with a small ridge; a signal that would count against a pose gets weight 0."""
    table, right = make_arrays(runs, names)
    importance = np.where(right > 0.5, 1.0, WEIGHT_OF_BAD)
    used = np.ones(len(names) + 1, dtype=bool)
    is_signal = np.arange(len(used)) > 0
    while True:
        weights = np.zeros(len(names) + 1)
        part = table[:, used]
        for _ in range(NEWTON_STEPS):
            share = 1 / (1 + np.exp(-part @ weights[used]))
            slope = part.T @ (importance * (right - share)) - RIDGE * weights[used]
            curve = (part.T * (importance * share * (1 - share))) @ part + RIDGE * np.eye(part.shape[1])
            weights[used] += np.linalg.solve(curve, slope)
        wrong = used & (weights < 0) & is_signal
        if not wrong.any():
            return weights
        used &= ~wrong


def make_arrays(
    runs: Sequence[dict[str, Any]], names: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the signals with a leading 1, (n, 1 + signals), and who is right, (n,)."""
    rows = [[1.0, *(signals(run["metrics"])[name] for name in names)] for run in runs]
    return np.array(rows), np.array([float(is_right(run)) for run in runs])


def judge_by_others(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> NDArray[np.float64]:
    """Return each run's probability under the fit to all other people's runs."""
    judged = np.zeros(len(runs))
    for person in sorted({run["person"] for run in runs}):
        mine = [number for number, run in enumerate(runs) if run["person"] == person]
        others = [run for run in fitted(runs) if run["person"] != person]
        table, _ = make_arrays([runs[number] for number in mine], names)
        judged[mine] = 1 / (1 + np.exp(-table @ fit(others, names)))
    return judged


def describe_runs(runs: Sequence[dict[str, Any]], judged: NDArray[np.float64], refused: int) -> str:
    """Return the section's text: reliability, how well right and wrong come apart, and what becomes of each kind.

    `refused` runs ended with an error instead of an answer.
    """
    right = np.array([is_right(run) for run in runs])
    known = np.array([run["kind"] != MIRRORED for run in runs])
    reliability = []
    for low, high in itertools.pairwise(BINS):
        chosen = (judged >= low) & ((judged < high) | (high == 1.0)) & known
        if chosen.any():
            share, mean = right[chosen].mean(), judged[chosen].mean()
            reliability.append((f"{low:.2f}-{high:.2f}", int(chosen.sum()), f"{mean:.2f}", f"{share:.2f}"))
    verdicts = np.array(
        [verdict(value, run["metrics"], is_calibrated=True) for value, run in zip(judged, runs, strict=True)]
    )
    rows = []
    for kind in sorted({run["kind"] for run in runs}):
        mine = np.array([run["kind"] == kind for run in runs])
        counts = [int((mine & (verdicts == name)).sum()) for name in ("accept", "review", "reject")]
        wrong = int((mine & ~right & (verdicts == "accept")).sum())
        errors = [run["tre_mm"] for run in runs if run["kind"] == kind and run["tre_mm"] is not None]
        tre = f"{np.median(errors):.2f} / {max(errors):.1f}" if errors else ""
        rows.append((kind, int(mine.sum()), tre, int((mine & right).sum()), *counts, wrong))
    areas = ", ".join(f"{name}: {find_area(points):.3f}" for name, points in find_rocs(runs, judged).items())
    return f"""{len(runs)} runs on held-out people, half of them meant to be bad; each judged by a fit to the other
people. Right means a mean TRE under {RIGHT_MM:.0f} mm; every bad kind counts as wrong. Registrations that ended with an
error instead of an answer, and are not among them: {refused}.

A mirrored PET is left out of the fit, of the first table and of the curve, since one signal alone tells it from a right
one, and would count for more than it tells of the others; the second table says what becomes of it. "{WRONG_TOP}" is
the right PET, searched from starts turned by {FAR_OFF_DEG[0]:.0f} to {FAR_OFF_DEG[1]:.0f} degrees alone, so that many
searches end on a wrong top.

{make_table(["confidence", "runs", "mean confidence", "share right"], reliability)}

{make_table(KIND_COLUMNS, rows)}

Area under the curve that tells right from wrong by the confidence alone ({areas}):

![How many right ones pass for how many wrong ones](../{PLOT})"""


def find_rocs(runs: Sequence[dict[str, Any]], judged: NDArray[np.float64]) -> dict[str, Points]:
    """Return the share of right runs against that of wrong ones at every threshold: all wrong ones, and other heads."""
    right = np.array([is_right(run) for run in runs])
    wrong = {
        "wrong of every kind": np.array([run["kind"] != MIRRORED for run in runs]) & ~right,
        "another person's PET": np.array([run["kind"] == OTHER_HEAD for run in runs]),
    }
    thresholds = np.unique([0.0, *judged, 1.1])[::-1]
    return {
        name: [(float((judged[bad] >= at).mean()), float((judged[right] >= at).mean())) for at in thresholds]
        for name, bad in wrong.items()
    }


def find_area(points: Points) -> float:
    """Return the area under a curve of points from left to right."""
    across, up = np.array(points).T
    return float(np.sum(np.diff(across) * (up[1:] + up[:-1]) / 2))


if __name__ == "__main__":
    main()
