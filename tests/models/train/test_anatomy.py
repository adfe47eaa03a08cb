from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from models.train import anatomy
from models.train.anatomy import Person, Template, fetch_person, find_people, name_people
from registration.volume import Volume

SHAPE = (4, 5, 6)


def write_volume(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    make: Any = nibabel.nifti1.Nifti1Image
    make(np.full(SHAPE, value, np.float32), np.eye(4)).to_filename(path)
    return path


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/x_T1.nii", "b/y.nii.gz"], ["a-x", "b-y"]),
        (["a/sub_01_T1.nii", "a/sub_02_T1.nii"], ["a-sub_01_T1", "a-sub_02_T1"]),
        (["s1/anat/T1.nii", "s2/anat/T1.nii"], ["s1-anat-T1.nii", "s2-anat-T1.nii"]),
    ],
)
def test_nobody_is_lost_to_anothers_name(files: list[str], names: list[str]) -> None:
    folder = Path("data")

    assert name_people([folder / file for file in files], folder) == {
        name: folder / file for name, file in zip(names, files, strict=True)
    }


def test_the_template_may_lie_beside_the_folder_and_is_nobody(tmp_path: Path) -> None:
    for word in ("t1", "gm", "wm"):
        write_volume(tmp_path / "templates" / f"average_{word}_mm.nii.gz")
    person = write_volume(tmp_path / "people" / "somebody.nii.gz")

    template, people = find_people(tmp_path / "people")

    assert template.t1.shape == SHAPE[::-1]
    assert people == {"people-somebody": person}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["somebody.nii"], "no template in or beside"),
        (["a_t1_.nii", "a_gm_.nii", "a_wm_.nii"], "no T1 volume below"),
    ],
)
def test_a_folder_that_nobody_can_be_trained_on_says_what_is_needed(
    tmp_path: Path, names: list[str], words: str
) -> None:
    for name in names:
        write_volume(tmp_path / "data" / name)

    with pytest.raises(FileNotFoundError, match=words):
        find_people(tmp_path / "data")


def test_a_person_is_prepared_once_and_again_when_the_file_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []

    def make_person(name: str, mr: Volume, template: Template) -> Person:
        prepared.append(float(mr.array[0, 0, 0]))
        return Person(name, mr, np.zeros((4, *mr.shape), np.uint8), is_stripped=False)

    monkeypatch.setattr(anatomy, "make_person", make_person)
    ones = np.ones(SHAPE, np.float32)
    template = Template(Volume(ones, np.eye(4)), ones, ones)
    path = tmp_path / "somebody.nii"

    for value in (1.0, 1.0, 2.0):
        write_volume(path, value)
        person = fetch_person("a-somebody", path, template, tmp_path / "cache")

        assert person.name == "a-somebody"
        assert person.mr.array[0, 0, 0] == value
    assert prepared == [1.0, 2.0]
