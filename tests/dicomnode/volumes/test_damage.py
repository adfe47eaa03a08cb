"""Whatever is wrong with a file, a series is read or refused: nothing else is raised, and nothing quotes the file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.series import load_series
from tests.dicomnode.enhanced_files import make_enhanced_series
from tests.dicomnode.series_files import SeriesSpec, make_series, write_files

ROUNDS = 150
SMALL = SeriesSpec(modality="PT", shape=(10, 8, 8), spacing_mm=(9.0, 12.0, 12.0))


def damage(content: bytes, draw: random.Random) -> bytes:
    """Change, drop, add or cut off bytes after the preamble, at up to five places."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at = draw.randrange(128, len(damaged))
        kind = draw.random()
        if kind < 0.7:
            damaged[at] = draw.choice((0x00, 0xFF, 0x41, 0x51, draw.randrange(256)))
        elif kind < 0.8:
            del damaged[at : at + draw.randrange(1, 9)]
        elif kind < 0.9:
            damaged[at:at] = draw.randbytes(draw.randrange(1, 9))
        else:
            del damaged[max(200, at) :]
    return bytes(damaged)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("is_enhanced", [False, True], ids=["single-frame", "multi-frame"])
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, seed: int, is_enhanced: bool) -> None:
    draw = random.Random(seed)  # noqa: S311  damage, not a secret
    paths = write_files(tmp_path, [make_enhanced_series(SMALL)] if is_enhanced else make_series(SMALL))
    refusals = []
    for _ in range(ROUNDS):
        path = draw.choice(paths)
        whole = path.read_bytes()
        path.write_bytes(damage(whole, draw))
        try:
            load_series(paths)
        except SeriesRefusedError as refusal:
            refusals.append(str(refusal))
        path.write_bytes(whole)
    assert len(refusals) > ROUNDS // 4
    assert all(refusal.isprintable() and "Käthe" not in refusal and "19500102" not in refusal for refusal in refusals)
