"""Slices of one series become stacks, each of which could be one volume; rules choose one of them, or say why none.

Flow: frames > [stacks] > geometry
Never: a time or a UID in a message; a choice that depends on the order of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.frames import Frame
from dicomnode.volumes.geometry import MAX_ORIENTATION_DIFFERENCE, MIN_SLICES, Numbers, count_at_places
from dicomnode.volumes.headers import read_numbers, read_word, show_word

MAX_SPACING_DIFFERENCE = 1e-3  # of the spacing: headers carry 3 to 8 decimals
# What no two slices of one volume differ in, most telling first; orientation and spacing come after, by tolerance.
GROUP_WORDS = ("EchoTime", "ImageType", "ComplexImageComponent", "StackID", "FrameOfReferenceUID")
# What tells apart images of one position, most telling first, and what a series that varies it is.
REPEATS = {
    "TemporalPositionIdentifier": "a time series, as functional or dynamic imaging makes",
    "FrameReferenceTime": "a dynamic series",
    "TriggerTime": "a gated series",
    "DiffusionBValue": "diffusion weighted (DWI)",
    "DiffusionGradientOrientation": "diffusion weighted (DWI)",
    "EchoNumbers": "several echoes",
    "InversionTime": "several inversion times",
    "FlipAngle": "several flip angles",
    "AcquisitionNumber": "several acquisitions",
    "AcquisitionTime": "several acquisitions",
}
# Values of ImageType (PS3.3 C.8.3.1.1.1 and vendors' own) and of Complex Image Component that are no magnitude.
NO_MAGNITUDE = {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY"}
HIDDEN = {"FrameOfReferenceUID", "AcquisitionTime"}  # differ, but their values are nobody's business
SHOWN_VALUES = 4


@dataclass(frozen=True)
class Stack:
    """Parallel slices of one kind, in the order of their SOP Instance UIDs."""

    frames: tuple[Frame, ...]
    positions: Numbers  # (n, 3) LPS mm
    orientation: Numbers  # (6,) direction cosines, the mean of the slices'
    spacing_mm: Numbers  # (2,) between rows, between columns
    kind: Mapping[str, str]  # what sets it apart within its series, keyword -> value


@dataclass(frozen=True)
class _Planes:
    """The planes of frames, one row each, and the kind that splitting has found so far."""

    frames: Sequence[Frame]
    positions: Numbers
    orientations: Numbers
    spacings_mm: Numbers
    kind: Mapping[str, str]

    def split(self, values: Sequence[str], keyword: str) -> list[_Planes]:
        """Split by one value for each frame, in the order of the values' first appearance."""
        places: dict[str, list[int]] = {}
        for number, value in enumerate(values):
            places.setdefault(value, []).append(number)
        return [
            _Planes(
                [self.frames[number] for number in at],
                self.positions[at],
                self.orientations[at],
                self.spacings_mm[at],
                {**self.kind, keyword: value},
            )
            for value, at in places.items()
        ]

    def words(self, keyword: str) -> list[str]:
        """Read the attribute, or the dimension, of each frame."""
        return [read_word(frame.header, keyword) or frame.dimensions.get(keyword, "") for frame in self.frames]


def split_stacks(frames: Sequence[Frame]) -> list[Stack]:
    """Split the slices of a series into stacks.

    Parameters
    ----------
    frames : sequence of Frame
        At least one, in an order that does not depend on the files'.

    Returns
    -------
    list of Stack
        Slices of one stack agree in `GROUP_WORDS`, orientation and spacing. Images that repeat a position are split
        further by what tells them apart; where nothing does, they stay in one stack.

    Raises
    ------
    SeriesRefusedError
        If a slice lacks a plane.
    """
    parts = [_read_planes(frames)]
    for keyword in GROUP_WORDS:
        parts = [smaller for part in parts for smaller in part.split(part.words(keyword), keyword)]
    parts = [smaller for part in parts for smaller in _split_by_plane(part)]
    return [_make_stack(smaller) for part in parts for smaller in _split_repeats(part)]


def choose_stack(stacks: Sequence[Stack]) -> tuple[Stack, str]:
    """Choose the stack that becomes the volume, and say by which rule; empty words where there was no choice.

    Raises
    ------
    SeriesRefusedError
        If no stack has enough slices, several are alike in every rule, or one repeats its positions.
    """
    large: Sequence[Stack] = [stack for stack in stacks if len(stack.frames) >= MIN_SLICES]
    if not large:
        raise SeriesRefusedError(_say_too_few(stacks))
    reasons = []
    for words, narrow in RULES:
        kept = narrow(large)
        if len(kept) < len(large):
            reasons.append(f"{words}, of {_say_difference(large)}")
            large = kept
    if len(large) > 1:
        raise SeriesRefusedError(_say_too_many(large))
    (chosen,) = large
    at_places = count_at_places(chosen.positions, chosen.orientation)
    if max(at_places) > 1:
        raise SeriesRefusedError(
            f"{len(chosen.frames)} images at {len(at_places)} positions and nothing in them that tells which belong "
            "together, as in some functional and diffusion series; one image a position is needed"
        )
    others = [stack for stack in stacks if len(stack.frames) < MIN_SLICES]
    if others:
        slices = sum(len(stack.frames) for stack in others)
        reasons.append(f"{slices} slice(s) set aside that differ in {_say_difference([chosen, *others])}")
    return chosen, "; ".join(reasons)


def _read_planes(frames: Sequence[Frame]) -> _Planes:
    positions = np.array([read_numbers(frame.header, "ImagePositionPatient", 3) for frame in frames])
    orientations = np.array([read_numbers(frame.header, "ImageOrientationPatient", 6) for frame in frames])
    spacings_mm = np.array([read_numbers(frame.header, "PixelSpacing", 2) for frame in frames])
    if spacings_mm.min() <= 0:
        raise SeriesRefusedError(f"PixelSpacing of {spacings_mm.min():.4f} mm, more than 0 is needed")
    return _Planes(frames, positions, orientations, spacings_mm, {})


def _split_by_plane(part: _Planes) -> list[_Planes]:
    turned = part.split(_name_alike(part.orientations, MAX_ORIENTATION_DIFFERENCE), "ImageOrientationPatient")
    tolerance_mm = MAX_SPACING_DIFFERENCE * float(part.spacings_mm.max())
    return [part for one in turned for part in one.split(_name_alike(one.spacings_mm, tolerance_mm), "PixelSpacing")]


def _name_alike(rows: Numbers, tolerance: float) -> list[str]:
    """Give rows that agree within a tolerance one name: the first of them in figures."""
    names = [""] * len(rows)
    left: NDArray[np.intp] = np.arange(len(rows))
    while len(left):
        is_like = np.abs(rows[left] - rows[left[0]]).max(axis=1) <= tolerance
        name = "\\".join(f"{value:.6g}" for value in rows[left[0]] + 0.0)
        for number in left[is_like]:
            names[number] = name
        left = left[~is_like]
    return names


def _split_repeats(part: _Planes) -> list[_Planes]:
    """Split images of one position by the first attribute that takes as many values as a position has images."""
    repeats = max(count_at_places(part.positions, part.orientations.mean(axis=0)))
    if repeats == 1:
        return [part]
    dimensions = {keyword for frame in part.frames for keyword in frame.dimensions}
    for keyword in (*REPEATS, *sorted(dimensions - REPEATS.keys())):
        counts = Counter(words := part.words(keyword))
        # More values than that would cut through volumes: each slice has its own.
        if 1 < len(counts) <= repeats and min(counts.values()) > 1:
            return [smaller for one in part.split(words, keyword) for smaller in _split_repeats(one)]
    return [part]


def _make_stack(part: _Planes) -> Stack:
    orientation, spacing_mm = part.orientations.mean(axis=0), part.spacings_mm.mean(axis=0)
    return Stack(tuple(part.frames), part.positions, orientation, spacing_mm, part.kind)


def _keep_magnitude(stacks: Sequence[Stack]) -> Sequence[Stack]:
    return [stack for stack in stacks if not NO_MAGNITUDE & _image_values(stack)] or stacks


def _keep_first_echo(stacks: Sequence[Stack]) -> Sequence[Stack]:
    """Keep the shortest echo: it has the most signal and the least distortion."""
    echoes_ms = [_number(stack.kind["EchoTime"]) for stack in stacks]
    return [stack for stack, echo_ms in zip(stacks, echoes_ms, strict=True) if echo_ms == min(echoes_ms)]


# In order; each leaves at least one.
RULES: Sequence[tuple[str, Callable[[Sequence[Stack]], Sequence[Stack]]]] = (
    ("the magnitude", _keep_magnitude),
    ("the first echo", _keep_first_echo),
)


def _image_values(stack: Stack) -> set[str]:
    return {*stack.kind["ImageType"].upper().split("\\"), stack.kind["ComplexImageComponent"].upper()}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _say_too_few(stacks: Sequence[Stack]) -> str:
    if len(stacks) == 1:
        count = len(stacks[0].frames)
        return f"{count} {'slice' if count == 1 else 'slices'}, at least {MIN_SLICES} are needed"
    planes = {stack.kind["ImageOrientationPatient"] for stack in stacks}
    kind = f"{len(planes)} orientations, as in a localizer: " if len(planes) > 1 else ""
    return f"{kind}{_say_stacks(stacks)}; at least {MIN_SLICES} slices in one are needed"


def _say_too_many(stacks: Sequence[Stack]) -> str:
    keyword = next(iter(_find_differences(stacks)))
    kind = f"{REPEATS[keyword]}: " if keyword in REPEATS else ""
    return f"{kind}{_say_stacks(stacks)}; one is needed, and no rule chooses"


def _say_stacks(stacks: Sequence[Stack]) -> str:
    sizes = _join(str(len(stack.frames)) for stack in stacks)
    return f"{len(stacks)} stacks of {sizes} slices that differ in {_say_difference(stacks)}"


def _say_difference(stacks: Sequence[Stack]) -> str:
    """Name the attributes that stacks differ in, with the values of the first."""
    keywords = list(_find_differences(stacks))
    values = dict.fromkeys(show_word(stack.kind.get(keywords[0], "")) for stack in stacks)
    first = keywords[0] if keywords[0] in HIDDEN else f"{keywords[0]} ({_join(values)})"
    return " and ".join([first, *keywords[1:]])


def _find_differences(stacks: Sequence[Stack]) -> dict[str, None]:
    keywords = dict.fromkeys(keyword for stack in stacks for keyword in stack.kind)
    return {keyword: None for keyword in keywords if len({stack.kind.get(keyword, "") for stack in stacks}) > 1}


def _join(words: Iterable[str]) -> str:
    shown = list(words)
    return ", ".join(shown[:SHOWN_VALUES]) + (", ..." if len(shown) > SHOWN_VALUES else "")
