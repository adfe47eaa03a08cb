"""People to train on: T1 volumes and the tissue in each voxel, found with the help of one template.

Flow: folder of NIfTI files > [anatomy] > simulate > samples | cases
Never: a file of the excluded licences (spm12 is GPL); a person in two splits.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from registration.preprocess import blur, prepare_fixed
from registration.refinement import Search, minimise
from registration.resample import make_spline, sample_points
from registration.similarity import make_comparison, measure
from registration.volume import Volume, spacing_of

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
EXCLUDED = ("spm12", "magia")  # a licence that does not suit weights; PET templates
HELD_OUT_EVERY = 4  # of each folder's people, in the order of their names
ROUNDS = 6  # of classification
PRIOR_SIGMA_MM = 3.0


@dataclass(frozen=True, eq=False)
class Person:
    """One anatomy.

    Attributes
    ----------
    name : str
        Folder and file stem.
    mr : Volume
    tissue : (4, k, j, i) uint8, 0 to 255
        Share of grey matter, white matter, fluid, and other soft tissue in each voxel of `mr`.
    is_stripped : bool
        Whether the depositors removed all but the brain.
    """

    name: str
    mr: Volume
    tissue: NDArray[np.uint8]
    is_stripped: bool


@dataclass(frozen=True, eq=False)
class Template:
    """An average brain: T1, grey and white matter on one grid."""

    t1: Volume
    grey: NDArray[np.float32]
    white: NDArray[np.float32]


def load_volume(path: Path) -> Volume:
    """Load a NIfTI volume into LPS mm with axes (k, j, i)."""
    image: Any = nibabel.loadsave.load(path)
    array = np.asarray(image.dataobj, dtype=np.float32).T
    affine = LPS_FROM_RAS @ np.asarray(image.affine, dtype=np.float64)
    reversed_axes = affine[:, [2, 1, 0, 3]]
    return Volume(np.ascontiguousarray(array), reversed_axes)


def find_people(folder: Path) -> tuple[Template, dict[str, Path]]:
    """Find the template (a T1 beside files named _gm_ and _wm_), in the folder or beside it, and every other T1 below.

    Raises
    ------
    FileNotFoundError
        If there is no template, or nobody besides.
    """
    grey = next((path for place in (folder, folder.parent) for path in find_files(place) if "_gm_" in path.name), None)
    if grey is None:
        raise FileNotFoundError(
            f"no template in or beside {folder}: an average T1, its grey and its white matter are needed, on one grid, "
            "named alike but for _t1_, _gm_ and _wm_"
        )
    t1, white = (grey.with_name(grey.name.replace("_gm_", word)) for word in ("_t1_", "_wm_"))
    scale = np.float32(1 / 255)
    template = Template(load_volume(t1), load_volume(grey).array * scale, load_volume(white).array * scale)
    rest = [path for path in find_files(folder) if path not in (grey, t1, white) and "bet" not in path.name]
    if not rest:
        raise FileNotFoundError(f"no T1 volume below {folder}; NIfTI files, one of each person, are needed")
    return template, name_people(rest, folder)


def find_files(folder: Path) -> list[Path]:
    """Return every NIfTI file below a folder whose licence suits weights."""
    return [path for path in sorted(folder.rglob("*.nii*")) if not any(word in path.parts for word in EXCLUDED)]


def name_people(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Name each by its folder and its file's first word, or by as much of its path as it takes to tell all apart."""
    ways: tuple[Callable[[Path], str], ...] = (
        lambda path: f"{path.parent.name}-{re.sub('_.*|[.]nii.*', '', path.name)}",
        lambda path: f"{path.parent.name}-{re.sub('[.]nii.*', '', path.name)}",
        lambda path: "-".join(path.relative_to(folder).parts),
    )
    tries = ({name(path): path for path in paths} for name in ways)
    return next(named for named in tries if len(named) == len(paths))


def split_people(names: list[str]) -> tuple[list[str], list[str]]:
    """Split by person: every fourth of each folder with several people is held out; the others are for training."""
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folders.setdefault(name.split("-")[0], []).append(name)
    held_out = [name for people in folders.values() for name in people[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]]
    held_out += [people[1] for people in folders.values() if len(people) > 3]
    return [name for name in sorted(names) if name not in held_out], sorted(held_out)


def make_person(name: str, mr: Volume, template: Template) -> Person:
    """Find the tissue of a T1 volume: the template laid on it gives priors, its own intensities decide."""
    person_from_template = fit_affine(mr, template)
    template_index = np.linalg.inv(person_from_template @ template.t1.affine)
    k, j, i = np.indices(mr.shape, dtype=np.float64).reshape(3, -1)
    points = (mr.affine[:3, :3] @ np.stack([k, j, i]) + mr.affine[:3, 3:]).T
    brain = np.clip(template.grey + template.white, 0, 1)
    fluid = blur((template.t1.array > 0).astype(np.float32), np.full(3, 1.5)) - brain
    priors = []
    for share in (template.grey, template.white, np.clip(fluid, 0, 1)):
        smoothed = blur(share.astype(np.float32), np.full(3, PRIOR_SIGMA_MM))
        spline = make_spline(Volume(smoothed, np.linalg.inv(template_index)))
        priors.append(np.clip(sample_points(spline, points), 0, 1).reshape(mr.shape))
    is_stripped = float((mr.array > 0).mean()) < 0.45 and _has_no_scalp(mr, np.sum(priors, axis=0))
    shares = classify(mr, np.stack(priors), is_stripped=is_stripped)
    return Person(name, mr, np.rint(shares * 255).astype(np.uint8), is_stripped)


def _has_no_scalp(mr: Volume, brain_prior: NDArray[np.float32]) -> bool:
    """Tell whether hardly any signal lies away from the brain."""
    away = brain_prior < 0.02
    bright = mr.array > 0.25 * np.percentile(mr.array[mr.array > 0], 97)
    return float((bright & away).sum() / max(1, bright.sum())) < 0.08


def fit_affine(mr: Volume, template: Template) -> NDArray[np.float64]:
    """Find the (4, 4) matrix that takes template LPS mm to the person's, by mutual information in three rounds."""
    prepared = prepare_fixed(mr)
    near = blur((template.t1.array > 0).astype(np.float32), np.full(3, 3.0)) > 0.05
    index = np.argwhere(near)[::41]
    points = index @ template.t1.affine[:3, :3].T + template.t1.affine[:3, 3]
    blurred = blur(template.t1.array, np.full(3, 2.0))
    values = np.clip(blurred[tuple(index.T)] / np.percentile(blurred[blurred > 0], 99), 0, 1)
    comparison = make_comparison(points, values.astype(np.float32), prepared.volume, prepared.bright * 1.2)
    middle = points.mean(axis=0)

    def to_matrix(steps: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.float64]:
        full = np.zeros(12)
        full[: len(steps)] = steps
        rx, ry, rz = full[3:6] / 70
        linear = np.eye(3) + np.array([[0, -rz, ry], [rz, 0, -rx], [-ry, rx, 0]])
        linear = linear @ (np.diag(1 + full[6:9] / 70) + np.array([[0, *full[9:11]], [0, 0, full[11]], [0, 0, 0]]) / 70)
        matrix = np.eye(4)
        matrix[:3, :3] = linear
        matrix[:3, 3] = middle + shift + full[:3] - linear @ middle
        return matrix

    def loss(steps: NDArray[np.float64]) -> float:
        return -measure(comparison, to_matrix(steps, shift))

    tries = []
    for up_mm in (-20.0, 0.0, 20.0, 40.0):
        shift = prepared.centre_mm - middle + np.array([0.0, 0.0, up_mm])
        tries.append((*minimise(loss, np.zeros(9), Search(6.0, 1.0, 4)), shift))
    steps, _, shift = min(tries, key=lambda found: found[1])
    steps, _ = minimise(loss, np.concatenate([steps, np.zeros(3)]), Search(2.0, 0.1, 6))
    return to_matrix(steps, shift)


def classify(mr: Volume, priors: NDArray[np.float32], *, is_stripped: bool) -> NDArray[np.float32]:
    """Share of grey, white, fluid and soft tissue in each voxel, (4, k, j, i), by expectation maximisation.

    Intensities are first divided by the local white matter's, or the vertex of a biased coil image becomes fluid.
    """
    spacing = spacing_of(mr.affine)
    array, inside = mr.array, priors.sum(axis=0) > 0.15
    if is_stripped:
        inside = (array > 0) & (blur(inside.astype(np.float32), 8.0 / spacing) > 0.02)
        priors = priors + np.float32(0.05)
    sure = inside & (priors[1] > 0.5)
    level = float(np.median(array[sure]))
    white = (sure & (array > 0.8 * level) & (array < 1.3 * level)).astype(np.float32)
    local = blur(array * white, 12.0 / spacing) / np.maximum(blur(white, 12.0 / spacing), 1e-4)
    local = np.where(blur(white, 12.0 / spacing) > 2e-3, local, level)
    values = np.clip(array / np.maximum(local, 0.3 * level), 0, 2)[inside]
    weights = priors[:, inside] + 1e-3
    weights /= weights.sum(axis=0)
    means, sigmas = np.array([0.72, 1.0, 0.3]), np.array([0.1, 0.08, 0.12])
    shares = weights
    for _ in range(ROUNDS):
        likelihood = np.exp(-0.5 * ((values - means[:, None]) / sigmas[:, None]) ** 2) / sigmas[:, None]
        likelihood[1, values > means[1]] = 1 / sigmas[1]
        shares = weights * likelihood + 1e-9
        shares /= shares.sum(axis=0)
        total = shares.sum(axis=1)
        means = (shares @ values) / total
        sigmas = np.sqrt([(shares[n] @ (values - means[n]) ** 2) / total[n] for n in range(3)]).clip(0.05, 0.15)
    brain = np.clip(priors.sum(axis=0) * 1.5, 0, 1) if not is_stripped else inside.astype(np.float32)
    result = np.zeros((4, *mr.shape), dtype=np.float32)
    result[:3, inside] = shares * brain[inside]
    soft = np.clip(array / (0.8 * level), 0, 1) * (1 - np.clip(result[:3].sum(axis=0), 0, 1))
    result[3] = 0.0 if is_stripped else soft
    return result


def fetch_person(name: str, path: Path, template: Template, cache: Path) -> Person:
    """Return one person, prepared by an earlier run of the same file and template, or now."""
    cache.mkdir(parents=True, exist_ok=True)
    content = hashlib.sha256(path.read_bytes() + template.t1.array.tobytes() + template.grey.tobytes())
    stored = cache / f"{content.hexdigest()[:16]}.npz"
    if not stored.is_file():
        save_person(make_person(name, load_volume(path), template), stored)
    return load_person(name, stored)


def save_person(person: Person, path: Path) -> None:
    """Write one person to a file of the cache."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as unfinished:
        np.savez_compressed(
            unfinished,
            array=person.mr.array,
            affine=person.mr.affine,
            tissue=person.tissue,
            is_stripped=person.is_stripped,
        )
    Path(unfinished.name).replace(path)


def load_person(name: str, path: Path) -> Person:
    """Load one person from a file of the cache."""
    with np.load(path) as stored:
        mr = Volume(stored["array"], stored["affine"])
        return Person(name, mr, stored["tissue"], bool(stored["is_stripped"]))


def load_people(data: Path, cache: Path) -> dict[str, Person]:
    """Load every person below `data`, preparing those that the cache does not hold yet."""
    template, paths = find_people(data)
    return {name: fetch_person(name, path, template, cache) for name, path in paths.items()}
