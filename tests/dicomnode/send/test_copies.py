"""An instance goes compressed where the destination wants and takes it, else as it was made."""

from __future__ import annotations

from pathlib import Path

from dicomnode.send.copies import choose_copy, find_copies
from dicomnode.send.scu import Instance

PET, PLAIN, JPEG_LS = "1.2.840.10008.5.1.4.1.1.128", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.80"

DIGESTS = {"jpeg-ls": "b" * 64}


def make_instance(folder: Path) -> Instance:
    return Instance("1.2.3", PET, PLAIN, folder / "pt-0001.dcm", "a" * 64)


def test_the_compressed_copy_comes_first_where_it_is_wanted_and_there(tmp_path: Path) -> None:
    instance = make_instance(tmp_path)
    assert find_copies(instance, "jpeg-ls", DIGESTS) == (instance,)
    (tmp_path / "pt-0001.jpeg-ls.dcm").touch()
    assert find_copies(instance, "jpeg-ls", DIGESTS) == (
        Instance("1.2.3", PET, JPEG_LS, tmp_path / "pt-0001.jpeg-ls.dcm", "b" * 64),
        instance,
    )
    assert find_copies(instance, "jpeg-2000", DIGESTS) == find_copies(instance, "none", DIGESTS) == (instance,)


def test_a_copy_whose_digest_nobody_knows_is_not_sent(tmp_path: Path) -> None:
    instance = make_instance(tmp_path)
    (tmp_path / "pt-0001.jpeg-ls.dcm").touch()
    assert find_copies(instance, "jpeg-ls", None) == find_copies(instance, "jpeg-ls", {}) == (instance,)


def test_what_the_peer_accepted_decides(tmp_path: Path) -> None:
    instance = make_instance(tmp_path)
    (tmp_path / "pt-0001.jpeg-ls.dcm").touch()
    copies = find_copies(instance, "jpeg-ls", DIGESTS)
    assert choose_copy(copies, {(PET, PLAIN), (PET, JPEG_LS)}) == copies[0]
    assert choose_copy(copies, {(PET, PLAIN)}) == instance
    assert choose_copy(copies, set()) == instance
