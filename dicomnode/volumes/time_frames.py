"""The time frames of a dynamic PET become parts of one mean, or the reason why they cannot.

Flow: stacks > [time_frames] > series
Never: a frame left out of a mean; a mean of values that stand on different references; a time of day in a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pydicom

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.frames import MOMENT
from dicomnode.volumes.geometry import MIN_SLICES, REPEAT_MM, Numbers
from dicomnode.volumes.headers import read_numbers, read_sequence_items, read_word, show_word
from dicomnode.volumes.stacks import Stack

# What stacks may differ in to be time frames of one PET; `stacks.REPEATS` splits by these, or a dimension does.
TIME_WORDS = {
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TemporalPositionTimeOffset",
    "FrameReferenceTime",
    "AcquisitionTime",
}
# What all images must say for their values to have one mean, and why: PS3.3 C.8.9.1.1.3 (what does not grow with the
# time it was counted for) and C.8.9.1.1.4 (NONE leaves each image at its own moment).
NEEDED = {
    "DecayCorrection": (("START", "ADMIN"), "frames are on one reference only where decay is corrected to one moment"),
    "Units": (("BQML", "GML", "CM2ML", "CPS", "PROPCPS"), "other values grow with the time they were counted for"),
}
# What they must say alike: quantity, corrections, and the moment that decay is corrected to, which is SeriesTime where
# DecayCorrection is START. Units, DecayCorrection and CountsSource are checked in every PET.
ONE_REFERENCE = ("SUVType", "CorrectedImage", "SeriesDate", "SeriesTime")
SHOWN = {"SUVType", "CorrectedImage"}  # the others' values are nobody's business
ISOTOPES = "RadiopharmaceuticalInformationSequence"
# A frame's reference time stands at its start, in its middle, or a little before that, where decay puts it: always so
# much of the shorter frame's duration lies between two, while a sum over other frames comes nearer than half.
MIN_DISTANCE = 0.8


@dataclass(frozen=True)
class TimeFrame:
    """One time frame of a PET: its slices, and for how long they were counted."""

    stack: Stack
    duration_ms: float


def find_time_frames(stacks: Sequence[Stack]) -> list[Stack]:
    """Find the stacks of a series that differ in time alone; none where others might be meant as well.

    Parameters
    ----------
    stacks : sequence of Stack
        All of one series, as `split_stacks` gives them.

    Returns
    -------
    list of Stack
        All stacks of the one kind that has a stack of `MIN_SLICES` or more, if there are several: small ones too, which
        are incomplete then.
    """
    kinds: dict[tuple[tuple[str, str], ...], list[Stack]] = {}
    for stack in stacks:
        kind = tuple((keyword, value) for keyword, value in stack.kind.items() if keyword not in TIME_WORDS)
        kinds.setdefault(kind, []).append(stack)
    large = [alike for alike in kinds.values() if max(len(stack.frames) for stack in alike) >= MIN_SLICES]
    return large[0] if len(large) == 1 and len(large[0]) > 1 else []


def order_time_frames(stacks: Sequence[Stack]) -> list[TimeFrame]:
    """Order time frames by time, their slices alike, and see that a mean of them means something.

    Parameters
    ----------
    stacks : sequence of Stack
        Those that `find_time_frames` found.

    Returns
    -------
    list of TimeFrame
        In the order of time; slice n of each stands where slice n of the first does.

    Raises
    ------
    SeriesRefusedError
        If the series is gated, a frame lacks a slice or its duration, frames overlap, or their values do not stand on
        one reference: with the frame and the values.
    """
    _check_gates(stacks)
    references_ms = {number: _find_reference_ms(stack) for number, stack in enumerate(stacks)}
    order = sorted(references_ms, key=references_ms.__getitem__)
    ordered = [stacks[number] for number in order]
    aligned = _align_all(ordered)
    _check_reference(ordered)
    durations_ms = [
        _read_duration_ms(stack, f"time frame {number} of {len(ordered)}") for number, stack in enumerate(ordered, 1)
    ]
    _check_apart([references_ms[number] for number in order], durations_ms)
    return [TimeFrame(stack, duration_ms) for stack, duration_ms in zip(aligned, durations_ms, strict=True)]


def describe_mean(time_frames: Sequence[TimeFrame]) -> str:
    """Say of what a volume is the mean."""
    seconds = sum(one.duration_ms for one in time_frames) / 1000
    return f"the duration-weighted mean of {len(time_frames)} time frames over {seconds:.6g} s"


def _check_gates(stacks: Sequence[Stack]) -> None:
    headers = [frame.header for stack in stacks for frame in stack.frames]
    is_gated = any("GATED" in read_word(header, "SeriesType").upper().split("\\") for header in headers)
    if is_gated or len({read_word(header, "TriggerTime") for header in headers}) > 1:
        raise SeriesRefusedError(
            f"a gated series of {len(stacks)} gates: nothing says how long each was counted, which a mean would go by"
        )


def _find_reference_ms(stack: Stack) -> float:
    """Find when a frame's values hold, in ms from a moment that is the same for all frames."""
    return float(np.mean([_read_reference_ms(frame.header) for frame in stack.frames]))


def _read_reference_ms(header: pydicom.Dataset) -> float:
    if read_word(header, "FrameReferenceTime"):
        return read_numbers(header, "FrameReferenceTime", 1)[0]
    for keyword in ("FrameReferenceDateTime", "FrameAcquisitionDateTime"):  # Enhanced: PS3.3 C.7.6.16.2.2
        if found := MOMENT.fullmatch(read_word(header, keyword)):
            whole, _, fraction = found[2].partition(".")
            try:
                moment = datetime.strptime(found[1] + whole + (found[3] or "+0000"), "%Y%m%d%H%M%S%z")
            except ValueError:
                continue
            return 1000 * (moment.timestamp() + float(f"0.{fraction or 0}"))
    raise SeriesRefusedError(
        "time frames without FrameReferenceTime; by it they are seen not to overlap before a mean is made"
    )


def _align_all(ordered: Sequence[Stack]) -> list[Stack]:
    """Align every frame with the first, and see that none is missing and each has the slices that the others have."""
    count = max(len(stack.frames) for stack in ordered)
    aligned: list[Stack] = []
    for number, stack in enumerate(ordered, 1):
        if len(stack.frames) < count:
            raise SeriesRefusedError(
                f"time frame {number} of {len(ordered)} has {len(stack.frames)} slices, another {count}; a mean needs "
                "all slices of each"
            )
        aligned.append(_align(stack, ordered[0]))
        off_mm = float(np.linalg.norm(aligned[-1].positions - ordered[0].positions, axis=1).max())
        if off_mm > REPEAT_MM:
            raise SeriesRefusedError(
                f"time frame {number} of {len(ordered)} has a slice {off_mm:.2f} mm from where the first frame has its "
                "own; a mean needs all frames on the same positions"
            )
    said = max(_read_count(frame.header) for stack in ordered for frame in stack.frames)
    if said > len(ordered):
        raise SeriesRefusedError(f"{len(ordered)} time frames where NumberOfTimeSlices is {said:.0f}; all are needed")
    return aligned


def _read_count(header: pydicom.Dataset) -> float:
    return read_numbers(header, "NumberOfTimeSlices", 1)[0] if read_word(header, "NumberOfTimeSlices") else 0.0


def _check_reference(ordered: Sequence[Stack]) -> None:
    headers = [frame.header for stack in ordered for frame in stack.frames]
    for keyword, (needed, why) in NEEDED.items():
        if strange := sorted({read_word(header, keyword) for header in headers} - set(needed)):
            raise SeriesRefusedError(
                f"{keyword} {show_word(strange[0])} in a series of time frames, one of {', '.join(needed)} is needed: "
                f"{why}"
            )
    for keyword in ONE_REFERENCE:
        values = sorted({read_word(header, keyword) for header in headers})
        if len(values) > 1:
            shown = f" ({', '.join(map(show_word, values))})" if keyword in SHOWN else ""
            raise SeriesRefusedError(f"time frames with {len(values)} values of {keyword}{shown}, a mean needs one")
    isotopes = [read_sequence_items(stack.frames[0].header, ISOTOPES) for stack in ordered]
    if any(items != isotopes[0] for items in isotopes):
        raise SeriesRefusedError(f"time frames with different values in {ISOTOPES}, a mean needs one")


def _read_duration_ms(stack: Stack, name: str) -> float:
    """Read for how long the slices of a frame were counted: ActualFrameDuration, PS3.3 C.8.9.4."""
    words = sorted({read_word(frame.header, "ActualFrameDuration") for frame in stack.frames})
    if len(words) > 1 or not words[0]:
        found = ", ".join(map(show_word, words))
        raise SeriesRefusedError(f"{name}: ActualFrameDuration is {found}, one duration in ms is needed for a mean")
    duration_ms = read_numbers(stack.frames[0].header, "ActualFrameDuration", 1)[0]
    if duration_ms <= 0:
        raise SeriesRefusedError(f"{name}: ActualFrameDuration is {duration_ms:g} ms, more than 0 is needed for a mean")
    return duration_ms


def _check_apart(references_ms: Sequence[float], durations_ms: Sequence[float]) -> None:
    """Refuse frames that overlap, as where a series also holds the sum of its frames."""
    for number, distance_ms in enumerate(np.diff(references_ms), 1):
        shorter_ms = min(durations_ms[number - 1], durations_ms[number])
        if distance_ms < MIN_DISTANCE * shorter_ms:
            raise SeriesRefusedError(
                f"time frames {number} and {number + 1} of {len(references_ms)} overlap: their reference times are "
                f"{distance_ms / 1000:g} s apart, and the shorter was counted for {shorter_ms / 1000:g} s"
            )


def _align(stack: Stack, first: Stack) -> Stack:
    """Put the slices of a stack in the order in which those of the first stand."""
    order = np.empty(len(first.frames), dtype=np.intp)
    order[np.argsort(_along(first, first))] = np.argsort(_along(stack, first))
    return replace(stack, frames=tuple(stack.frames[number] for number in order), positions=stack.positions[order])


def _along(stack: Stack, first: Stack) -> Numbers:
    """Return how far each slice stands along the first stack's normal, in mm."""
    return stack.positions @ np.cross(first.orientation[:3], first.orientation[3:])
